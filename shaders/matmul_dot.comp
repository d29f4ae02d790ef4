#version 450
// As matmul.comp, y[t] = W x[t] for a chunk of tokens, with inputs of 8 bits (quantize_inputs.comp) and integer dot
// products: quants stay packed, four to a word, and 32 columns take eight products for each row and token, whose exact
// sum is then scaled. One subgroup makes a tile of ROWS * subgroup-size rows by TOKENS tokens.
// ROUTED: as in matmul.comp.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_shuffle : require
#define PACKED_QUANTS

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 2;
layout(constant_id = 2) const uint TOKENS = 8;

#include "dot_inputs.glsl"
layout(binding = 2) buffer Output { float y[]; };
#define PARAMS_BINDING 3
#include "params.glsl"
#include "linear_push.glsl"
#include "linear_extent.glsl"
#include "chunk_vectors.glsl"
#include "weights.glsl"
#include "unit.glsl"
#include "formats.glsl"
#include "dot_product.glsl"

float acc[ROWS * TOKENS];
Unit w[ROWS * UNITS_A_STEP];

const uint UNITS_A_GROUP = UNITS_A_BLOCK < UNITS_A_STEP ? UNITS_A_STEP : UNITS_A_BLOCK;
// Of a step's input block k the lower and the upper 16 columns meet these runs of the step's units.
const uint BLOCKS = UNITS_A_STEP, LOW_UNIT = 0u, HIGH_UNIT = UNITS_A_STEP - 1u;
uint low_run(uint k) { return UNITS_A_STEP == 1u ? 0u : k; }
uint high_run(uint k) { return UNITS_A_STEP == 1u ? 1u : k; }

float scale_of(Unit w, uint run) { return run == 0u ? w.da : w.db; }
float minimum_of(Unit w, uint run) { return run == 0u ? w.ma : w.mb; }

// sum + the run's product with 16 inputs. 32 of them stay below 2^24 and so are exact as a float, too.
int with_product(int sum, Unit w, uint run, ivec4 q) {
    [[unroll]] for (uint k = 0u; k < 4u; k++) sum += packed_dot(w.q[4u * run + k], q[k], 0);
    return sum;
}

// acc += what the step's rows make of input block k of token t.
void add_products(uint t, uint k, Inputs x) {
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        Unit low = w[r * UNITS_A_STEP + LOW_UNIT], high = w[r * UNITS_A_STEP + HIGH_UNIT];
        uint i = low_run(k), j = high_run(k);
        int sum = with_product(0, low, i, x.low);
#ifdef SCALES_OF_16
        float scaled = scale_of(low, i) * float(sum) + scale_of(high, j) * float(with_product(0, high, j, x.high));
        acc[r * TOKENS + t] += x.d * scaled - (minimum_of(low, i) * x.sum_low + minimum_of(high, j) * x.sum_high);
#else
        float scaled = scale_of(low, i) * float(with_product(sum, high, j, x.high));
        acc[r * TOKENS + t] += x.d * scaled - minimum_of(low, i) * (x.sum_low + x.sum_high);
#endif
    }
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
    [[unroll]] for (uint t = 0u; t < TOKENS; t++)
        x_base[t] = input_of(matrix, min(first_token + t, count - 1u)) / 32u * INPUT_PIECES;
#ifdef TEXELS
    // Lane BLOCKS * i + k fetches block k of token i, of as many tokens at once as there are such lanes.
    const uint AT_ONCE = gl_WorkGroupSize.x / BLOCKS, FETCHES = (TOKENS + AT_ONCE - 1u) / AT_ONCE;
    uint from[FETCHES];
    [[unroll]] for (uint i = 0u; i < FETCHES; i++) {
        from[i] = x_base[i * AT_ONCE];
        [[unroll]] for (uint t = 1u; t < AT_ONCE && i * AT_ONCE + t < TOKENS; t++)
            if (lane / BLOCKS == t) from[i] = x_base[i * AT_ONCE + t];
    }
#endif

    [[unroll]] for (uint i = 0u; i < ROWS * TOKENS; i++) acc[i] = 0.0;
    for (uint b = 0u; b * UNITS_A_GROUP < end; b++) {
        uint block = b * (UNITS_A_GROUP / UNITS_A_BLOCK);
        Head head[ROWS];
        [[unroll]] for (uint r = 0u; r < ROWS; r++) head[r] = load_head(row_block[r] + block * NEXT_BLOCK);
        for (uint i = 0u; i < UNITS_A_GROUP; i += UNITS_A_STEP) {
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                [[unroll]] for (uint j = 0u; j < UNITS_A_STEP; j++) {
                    // A group is one block, or several blocks of one unit.
                    uint next = UNITS_A_BLOCK == 1u ? i + j : 0u, of_block = UNITS_A_BLOCK == 1u ? 0u : i + j;
                    Unit of = load_unit(head[r], row_block[r] + (block + next) * NEXT_BLOCK, of_block);
                    of.da *= QUANT;
                    of.db *= QUANT;
                    w[r * UNITS_A_STEP + j] = of;
                }
            }
            uint u = b * UNITS_A_GROUP + i;
            uint piece_a = column_a(u) / 32u * INPUT_PIECES, piece_b = column_b(u) / 32u * INPUT_PIECES;
#ifdef TEXELS
            uint mine_at = lane % BLOCKS == 0u ? piece_a : piece_b;
            [[unroll]] for (uint t = 0u; t < TOKENS; t += AT_ONCE) {
                Inputs mine = load_inputs(from[t / AT_ONCE] + mine_at);
                [[unroll]] for (uint l = 0u; l < AT_ONCE * BLOCKS; l++)
                    if (t + l / BLOCKS < TOKENS) add_products(t + l / BLOCKS, l % BLOCKS, shared_inputs(mine, l));
            }
#else
            [[unroll]] for (uint t = 0u; t < TOKENS; t++)
                [[unroll]] for (uint k = 0u; k < BLOCKS; k++)
                    add_products(t, k, load_inputs(x_base[t] + (k == 0u ? piece_a : piece_b)));
#endif
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
