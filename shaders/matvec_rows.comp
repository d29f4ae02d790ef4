#version 450
// Matrix-vector product of dequantised rows, y = W x, in the form for narrow subgroups: a lane takes rows of its own, so
// that nothing is summed across lanes. Every lane needs every input; each loads another vec4 of a unit's 32 and
// broadcasts it, since CPU drivers make a load one lane at a time. See matvec.comp for wide subgroups.
// One subgroup makes ROWS * subgroup-size rows. CHOSEN: batch entry k is the slot of the token's k-th chosen expert.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_ballot : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 2;

layout(binding = 0) readonly buffer Weights { uint weights[]; };
layout(binding = 1) readonly buffer Input { vec4 x[]; };
layout(binding = 2) buffer Output { float y[]; };
#ifdef CHOSEN
layout(binding = 3) readonly buffer Experts { uint expert_of[]; };
#endif
#if defined(ROWS_FROM_CACHE) || defined(UNITS_FROM_CACHE)
#define PARAMS_BINDING 3
#include "params.glsl"
#endif

#include "linear_push.glsl"
#include "linear_extent.glsl"

uint word(uint i) { return weights[i]; }
#include "unit.glsl"
#include "formats.glsl"

float sum_of(vec4 v) { return (v.x + v.y) + (v.z + v.w); }

// Quants 4i to 4i + 3 of the lane's rows by the subgroup's inputs for them: sums of run a and of run b. A macro because a
// broadcast's source lane must be a constant in SPIR-V 1.3.
#define STEP(i) { \
    vec4 xs = subgroupBroadcast(mine, i); \
    [[unroll]] for (uint r = 0u; r < ROWS; r++) run[r * 2u + i / 4u] += w[r].q[i] * xs; \
}

void main() {
    uint batch = gl_WorkGroupID.z;
#ifdef CHOSEN
    uint matrix = expert_of[batch];
#else
    uint matrix = batch;
#endif
    uint first = gl_WorkGroupID.x * ROWS * gl_SubgroupSize;
    if (first >= live_rows() || matrix < matrix_first || matrix >= matrix_end) return;
    uint lane = gl_SubgroupInvocationID, part = lane & 7u;
    uint last = live_rows() - 1u, end = live_units(), x_base = (x_offset + batch * x_batch) >> 2;

    uint row_block[ROWS];
    float total[ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        uint row = (matrix - matrix_first) * rows + min(first + r * gl_SubgroupSize + lane, last);
        row_block[r] = row * (units / UNITS_A_BLOCK);
        total[r] = 0.0;
    }
    for (uint block = 0u; block * UNITS_A_BLOCK < end; block++) {
        uvec4 head[ROWS];
        [[unroll]] for (uint r = 0u; r < ROWS; r++) head[r] = load_head(row_block[r] + block);
        for (uint i = 0u; i < UNITS_A_BLOCK; i++) {
            Unit w[ROWS];
            [[unroll]] for (uint r = 0u; r < ROWS; r++) w[r] = load_unit(head[r], row_block[r] + block, i);
            uint u = block * UNITS_A_BLOCK + i;
            vec4 mine = x[x_base + (part < 4u ? column_a(u) : column_b(u)) / 4u + (part & 3u)];
            float ones = sum_of(mine);
            float ones_a = (subgroupBroadcast(ones, 0) + subgroupBroadcast(ones, 1)) +
                           (subgroupBroadcast(ones, 2) + subgroupBroadcast(ones, 3));
            float ones_b = (subgroupBroadcast(ones, 4) + subgroupBroadcast(ones, 5)) +
                           (subgroupBroadcast(ones, 6) + subgroupBroadcast(ones, 7));
            vec4 run[ROWS * 2u];
            [[unroll]] for (uint k = 0u; k < ROWS * 2u; k++) run[k] = vec4(0.0);
            STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7)
            [[unroll]] for (uint r = 0u; r < ROWS; r++)
                total[r] += (w[r].da * sum_of(run[r * 2u]) - w[r].ma * ones_a) +
                            (w[r].db * sum_of(run[r * 2u + 1u]) - w[r].mb * ones_b);
        }
    }
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        uint row = first + r * gl_SubgroupSize + lane;
        if (row <= last) {
            uint at = y_offset + batch * y_batch + row;
            y[at] = accumulate != 0u ? y[at] + total[r] : total[r];
        }
    }
}
