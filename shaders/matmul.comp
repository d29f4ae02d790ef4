#version 450
// Matrix-matrix product of dequantised rows with a chunk of tokens: y[t] = W x[t]. One subgroup makes a tile of
// ROWS * subgroup-size rows by TOKENS tokens: a lane dequantises a unit of its own rows once for all tokens; the tokens'
// 32 inputs are loaded once by the subgroup, a vec4 a lane, and broadcast. TEXELS: as texels, which CPU drivers load whole.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_ballot : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 2;
layout(constant_id = 2) const uint TOKENS = 8;

#ifdef TEXELS
layout(binding = 1) uniform usamplerBuffer x;
vec4 inputs(uint i) { return uintBitsToFloat(texelFetch(x, int(i))); }
#else
layout(binding = 1) readonly buffer Input { vec4 x[]; };
vec4 inputs(uint i) { return x[i]; }
#endif
layout(binding = 2) buffer Output { float y[]; };
#define PARAMS_BINDING 3
#include "params.glsl"
#include "linear_push.glsl"
#include "linear_extent.glsl"
#include "chunk_vectors.glsl"

#include "weights.glsl"
#include "unit.glsl"
#include "formats.glsl"

// Four columns of the unit for one token; a macro because a broadcast's source lane must be a constant in SPIR-V 1.3.
#define STEP(i) { \
    vec4 xs = subgroupBroadcast(mine, i); \
    [[unroll]] for (uint r = 0u; r < ROWS; r++) { \
        vec4 p = w[r * 8u + i] * xs; \
        acc[r * TOKENS + t] += (p.x + p.y) + (p.z + p.w); \
    } \
}

void main() {
    uint matrix = gl_WorkGroupID.z, first_token = gl_WorkGroupID.y * TOKENS, count = vectors_of(matrix);
    uint first = gl_WorkGroupID.x * ROWS * gl_SubgroupSize;
    if (first >= live_rows() || first_token >= count || matrix < matrix_first || matrix >= matrix_end) return;
    uint lane = gl_SubgroupInvocationID;
    uint last = live_rows() - 1u, end = live_units();

    uint row_block[ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS; r++)
        row_block[r] = block_at((matrix - matrix_first) * rows + min(first + r * gl_SubgroupSize + lane, last),
                                units / UNITS_A_BLOCK);
    uint x_base[TOKENS];
    [[unroll]] for (uint t = 0u; t < TOKENS; t++) x_base[t] = input_of(matrix, min(first_token + t, count - 1u)) >> 2;

    float acc[ROWS * TOKENS];
    [[unroll]] for (uint i = 0u; i < ROWS * TOKENS; i++) acc[i] = 0.0;
    uint part = lane & 7u;
    for (uint b = 0u; b * UNITS_A_BLOCK < end; b++) {
        Head head[ROWS];
        [[unroll]] for (uint r = 0u; r < ROWS; r++) head[r] = load_head(row_block[r] + b * NEXT_BLOCK);
        for (uint i = 0u; i < UNITS_A_BLOCK; i++) {
            uint u = b * UNITS_A_BLOCK + i;
            vec4 w[ROWS * 8u];
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                Unit unit = load_unit(head[r], row_block[r] + b * NEXT_BLOCK, i);
                [[unroll]] for (uint k = 0u; k < 4u; k++) {
                    w[r * 8u + k] = unit.da * unit.q[k] - unit.ma;
                    w[r * 8u + 4u + k] = unit.db * unit.q[4u + k] - unit.mb;
                }
            }
            uint column = (part < 4u ? column_a(u) : column_b(u)) / 4u + (part & 3u);
            [[unroll]] for (uint t = 0u; t < TOKENS; t++) {
                vec4 mine = inputs(x_base[t] + column);
                STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7)
            }
        }
    }
    [[unroll]] for (uint t = 0u; t < TOKENS; t++) {
        if (first_token + t >= count) break;
        uint y_base = output_of(matrix, first_token + t);
        [[unroll]] for (uint r = 0u; r < ROWS; r++) {
            uint row = first + r * gl_SubgroupSize + lane, at = y_base + row;
            if (row <= last) y[at] = accumulate != 0u ? y[at] + acc[r * TOKENS + t] : acc[r * TOKENS + t];
        }
    }
}
