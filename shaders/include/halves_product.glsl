// Matrix-matrix product of dequantised rows with a chunk of tokens in halves: y[t] = W x[t]. One subgroup makes a tile of
// ROWS rows by TOKENS tokens. It puts 32 columns of both into shared memory as halves, where each weight and each input is
// made once for the whole tile, and multiplies fragments of them (fragments.glsl), with sums in f32.
// A row's weights and a token's inputs are brought near one by a power of two, which is undone in the end: no half
// overflows, and none that matters is subnormal. The powers are guessed from the first unit that is not all zero; where a
// sum is not finite, they are found again from all units. shaders/README.md has the error.
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_quad : require
#extension GL_KHR_shader_subgroup_vote : require
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 64;   // a multiple of 16 and of the subgroup's size
layout(constant_id = 2) const uint TOKENS = 32; // a multiple of 16 and of a quarter of the subgroup's size

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
#include "array_loop.glsl"
#include "fragments.glsl"

// A lane makes the weights of rows lane, lane + subgroup size, ...; the four lanes of a quad make a token's inputs, eight
// columns each.
const uint MINE = ROWS / gl_WorkGroupSize.x, TOKENS_AT_ONCE = gl_WorkGroupSize.x / 4u, ROUNDS = TOKENS / TOKENS_AT_ONCE;
uint matrix, count, first_token, lane;
uint row_block[MINE], x_base[ROUNDS];
float row_power[MINE], x_power[ROUNDS];
shared float token_power[TOKENS]; // what undoes x_power

float greatest(vec4 v) {
    v = abs(v);
    return max(max(v.x, v.y), max(v.z, v.w));
}

// The power of two that brings numbers of up to `most` to less than 2.
float power_for(float most) {
    uint exponent = most == 0.0 ? 127u : clamp(floatBitsToUint(most) >> 23, 1u, 253u);
    return uintBitsToFloat((254u - exponent) << 23);
}
float undo(float power) { return uintBitsToFloat((254u << 23) - floatBitsToUint(power)); }

// A quad's eighth of unit u of its token, as two vec4s of x.
uint eighth(uint base, uint u) {
    uint part = lane & 3u;
    return base + (part < 2u ? column_a(u) : column_b(u)) / 4u + 2u * (part & 1u);
}

// `all_units`: from the whole row and token; else from as much as it takes to find one number.
void find_powers(bool all_units) {
    uint end = live_units();
    ARRAY_LOOP for (uint r = 0u; r < MINE; r++) {
        float most = 0.0;
        for (uint u = 0u; u < end && (all_units || most == 0.0); u++) {
            Unit unit = unit_of_row(row_block[r], u);
            [[unroll]] for (uint k = 0u; k < 4u; k++)
                most = max(most, max(greatest(unit.da * unit.q[k] - unit.ma), greatest(unit.db * unit.q[4u + k] - unit.mb)));
        }
        row_power[r] = power_for(most);
    }
    ARRAY_LOOP for (uint i = 0u; i < ROUNDS; i++) {
        float most = 0.0;
        for (uint u = 0u; u < end && (all_units || most == 0.0); u++) {
            uint at = eighth(x_base[i], u);
            most = max(most, max(greatest(inputs(at)), greatest(inputs(at + 1u))));
            most = max(most, subgroupQuadSwapHorizontal(most));
            most = max(most, subgroupQuadSwapVertical(most));
        }
        x_power[i] = power_for(most);
        if ((lane & 3u) == 0u) token_power[i * TOKENS_AT_ONCE + lane / 4u] = undo(x_power[i]);
    }
}

uvec2 halves(vec4 v) { return uvec2(packFloat2x16(f16vec2(v.xy)), packFloat2x16(f16vec2(v.zw))); }

// Weights d q - m of eight columns. The quants of block formats are exact in halves: only d, m and the result are rounded.
uvec4 weight_halves(vec4 q, vec4 next, float d, float m, float power) {
#if defined(FORMAT_F32) || defined(FORMAT_F16) || defined(FORMAT_BF16)
    return uvec4(halves(q * power), halves(next * power));
#else
    f16vec2 scale = f16vec2(float16_t(d * power)), minimum = f16vec2(float16_t(m * power));
    return uvec4(packFloat2x16(scale * unpackFloat2x16(packHalf2x16(q.xy)) - minimum),
                 packFloat2x16(scale * unpackFloat2x16(packHalf2x16(q.zw)) - minimum),
                 packFloat2x16(scale * unpackFloat2x16(packHalf2x16(next.xy)) - minimum),
                 packFloat2x16(scale * unpackFloat2x16(packHalf2x16(next.zw)) - minimum));
#endif
}

void add_all_units() {
    uint end = live_units();
    clear_sums();
    for (uint b = 0u; b * UNITS_A_BLOCK < end; b++) {
        Head head[MINE];
        ARRAY_LOOP for (uint r = 0u; r < MINE; r++) head[r] = load_head(row_block[r] + b * NEXT_BLOCK);
        for (uint i = 0u; i < UNITS_A_BLOCK; i++) {
            ARRAY_LOOP for (uint r = 0u; r < MINE; r++) {
                Unit unit = load_unit(head[r], row_block[r] + b * NEXT_BLOCK, i);
                uint at = (r * gl_SubgroupSize + lane) * PITCH;
                [[unroll]] for (uint k = 0u; k < 2u; k++) {
                    tile[at + k] = weight_halves(unit.q[2u * k], unit.q[2u * k + 1u], unit.da, unit.ma, row_power[r]);
                    tile[at + 2u + k] =
                        weight_halves(unit.q[4u + 2u * k], unit.q[5u + 2u * k], unit.db, unit.mb, row_power[r]);
                }
            }
            ARRAY_LOOP for (uint j = 0u; j < ROUNDS; j++) {
                uint at = eighth(x_base[j], b * UNITS_A_BLOCK + i), token = j * TOKENS_AT_ONCE + lane / 4u;
                vec4 low = inputs(at) * x_power[j], high = inputs(at + 1u) * x_power[j];
                tile[(ROWS + token) * PITCH + (lane & 3u)] = uvec4(halves(low), halves(high));
            }
            subgroupBarrier();
            add_unit();
            subgroupBarrier();
        }
    }
}

bool all_finite() {
    bool finite = true;
    for (uint g = 0u; g < TOKENS / 16u; g++) {
        stage_sums(g);
        subgroupBarrier();
        for (uint i = lane; i < 4u * ROWS; i += gl_SubgroupSize) {
            uvec4 exponents = tile[i / (ROWS / 4u) * STAGED + i % (ROWS / 4u)] & 0x7F800000u;
            finite = finite && all(notEqual(exponents, uvec4(0x7F800000u)));
        }
        subgroupBarrier();
    }
    return subgroupAll(finite);
}

void main() {
    matrix = gl_WorkGroupID.z;
    first_token = gl_WorkGroupID.y * TOKENS;
    count = vectors_of(matrix);
    uint first = gl_WorkGroupID.x * ROWS;
    if (first >= live_rows() || first_token >= count || matrix < matrix_first || matrix >= matrix_end) return;
    lane = gl_SubgroupInvocationID;
    uint last = live_rows() - 1u;

    ARRAY_LOOP for (uint r = 0u; r < MINE; r++)
        row_block[r] = block_at((matrix - matrix_first) * rows + min(first + r * gl_SubgroupSize + lane, last),
                                units / UNITS_A_BLOCK);
    ARRAY_LOOP for (uint i = 0u; i < ROUNDS; i++) {
        uint token = first_token + i * TOKENS_AT_ONCE + lane / 4u;
        x_base[i] = input_of(matrix, min(token, count - 1u)) >> 2;
    }

    for (uint attempt = 0u; attempt < 2u; attempt++) {
        find_powers(attempt > 0u);
        add_all_units();
        if (all_finite()) break;
    }

    for (uint g = 0u; g < TOKENS / 16u; g++) {
        stage_sums(g);
        subgroupBarrier();
        for (uint t = 0u; t < 16u && first_token + 16u * g + t < count; t++) {
            uint y_base = output_of(matrix, first_token + 16u * g + t);
            ARRAY_LOOP for (uint r = 0u; r < MINE; r++) {
                uint of = r * gl_SubgroupSize + lane, at = y_base + first + of;
                float sum = uintBitsToFloat(tile[t * STAGED + of / 4u][of & 3u]);
                sum = sum * undo(row_power[r]) * token_power[16u * g + t];
                if (first + of <= last) y[at] = accumulate != 0u ? y[at] + sum : sum;
            }
        }
        subgroupBarrier();
    }
}
