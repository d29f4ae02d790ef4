#version 450
// Absorbed attention over a quantised latent cache (latent_attention.glsl) by packed arithmetic.
// Scores: every lane has a row of its own. The workgroup's queries are made 8 bits for each 32 columns once
// (eight_bits.glsl) and wait in shared memory; a block of a row is eight integer dot products, whose exact sum both
// blocks' scales multiply.
// Values: weights and values are halves, two columns an instruction, summed in halves over CHAIN rows and then in f32.
// Weights are relative to the largest of their tile, so that none that matters is subnormal, and a CHAIN-th of that, so
// that sums overflow only where a value would. shaders/README.md has the error.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#include "latent_attention.glsl"
#include "lane_words.glsl"
#include "eight_bits.glsl"
#include "dot_product.glsl"

const uint PART = 2u;  // blocks of a row that a lane scores at a time: their scales are one word
const uint CHAIN = 8u; // rows whose loads wait for memory together
const uint DOTS = 8u, FOURS = DOTS / 4u; // of a block: words of four queries, and fours of them
const uint ROW_BLOCKS = BLOCKS(ROW), QUERY_BLOCKS = (ROW_BLOCKS + PART - 1u) / PART * PART;

// [block][head]
shared ivec4 query_quants[QUERY_BLOCKS * HEADS * FOURS];
shared float query_step[QUERY_BLOCKS * HEADS]; // 0 of blocks past the row's
#ifdef CACHE_Q4_0
shared int query_sum[QUERY_BLOCKS * HEADS]; // of the quants, times -8: what all q of a row are less by
#endif

// Running maxima and sums, each head's in a lane of its own; and what a tile's weights are of those that acc is in.
const uint KEPT = (HEADS + gl_WorkGroupSize.x - 1u) / gl_WorkGroupSize.x;
float top[KEPT], sum[KEPT], factor[HEADS];

// The four columns of a block whose queries make word w, in the order in which `row_quants` has them.
vec4 word_of(vec2 v[BLOCK_PAIRS], uint w) {
#ifdef CACHE_Q8_0
    return vec4(v[2u * w], v[2u * w + 1u]);
#else
    uint at = w / 2u * 4u, odd = w % 2u;
    return vec4(v[at][odd], v[at + 1u][odd], v[at + 2u][odd], v[at + 3u][odd]);
#endif
}

// Word w of a block at that word of a buffer, as four signed bytes.
int row_quants(uint at, uint w) {
#ifdef CACHE_Q8_0
    return int(cache[at + w]);
#else
    return int((cache[at + w / 2u] >> 4u * (w % 2u)) & 0x0F0F0F0Fu);
#endif
}

// A lane makes whole blocks.
void take_queries(uint first_head) {
    for (uint i = gl_SubgroupInvocationID; i < QUERY_BLOCKS * HEADS; i += gl_SubgroupSize) {
        uint from = (first_head + i % HEADS) * ROW, pair = i / HEADS * BLOCK_PAIRS, largest = 0u;
        vec2 v[BLOCK_PAIRS];
        [[unroll]] for (uint c = 0u; c < BLOCK_PAIRS; c++) {
            bool within = ROW % (PART * BLOCK_PAIRS) == 0u || pair + c < ROW;
            v[c] = within ? q[from + pair + c] : vec2(0.0);
            uvec2 bits = magnitudes(v[c]);
            largest = max(largest, max(bits.x, bits.y));
        }
        Step by = step_of(largest);
        int sum = 0;
        [[unroll]] for (uint w = 0u; w < DOTS; w++) {
            int packed = int(as_bytes(quants(word_of(v, w), by)));
            query_quants[i * FOURS + w / 4u][w % 4u] = packed;
            sum = packed_dot(packed, 0x01010101, 0) + sum;
        }
        query_step[i] = scale * by.d;
#ifdef CACHE_Q4_0
        query_sum[i] = -8 * sum;
#endif
    }
    subgroupBarrier();
}

void score_rows(uint first_head, uint j, uint rows) {
    uint base = (j + min(gl_SubgroupInvocationID, rows - 1u)) * ROW_WORDS(ROW);
    [[unroll]] for (uint h = 0u; h < HEADS; h++) score[h] = 0.0;
    [[dont_unroll]] for (uint first_block = 0u; first_block < ROW_BLOCKS; first_block += PART) {
        int k[PART * DOTS];
        vec2 d = unpackHalf2x16(cache[base + ROW_BLOCKS * BLOCK_WORDS + first_block / PART]);
        [[unroll]] for (uint b = 0u; b < PART; b++) {
            bool within = ROW_BLOCKS % PART == 0u || first_block + b < ROW_BLOCKS;
            uint word = base + (within ? first_block + b : 0u) * BLOCK_WORDS;
            [[unroll]] for (uint w = 0u; w < DOTS; w++) k[b * DOTS + w] = row_quants(word, w);
            if (!within) d[b] = 0.0;
        }
        uint queries = min(first_block, ROW_BLOCKS) * HEADS; // as is known, but a bound lets offsets be instructions' own
        [[unroll]] for (uint b = 0u; b < PART; b++) {
            [[unroll]] for (uint h = 0u; h < HEADS; h++) {
                uint i = queries + b * HEADS + h;
#ifdef CACHE_Q4_0
                int sum = query_sum[i];
#else
                int sum = 0;
#endif
                [[unroll]] for (uint w = 0u; w < DOTS; w++)
                    sum = packed_dot(k[b * DOTS + w], query_quants[i * FOURS + w / 4u][w % 4u], 0) + sum;
                score[h] = fma(d[b], query_step[i] * float(sum), score[h]);
            }
        }
    }
    if (gl_SubgroupInvocationID >= rows)
        [[unroll]] for (uint h = 0u; h < HEADS; h++) score[h] = HIDDEN;
}

void begin_weights() {
    [[unroll]] for (uint n = 0u; n < KEPT; n++) {
        top[n] = LOWEST;
        sum[n] = 0.0;
    }
}

// The sum takes the rounded weights, so that their rounding is the same above and below the line.
void weigh_rows() {
    float tile_top[KEPT], tile_sum[KEPT], grow[KEPT], shrink[KEPT];
    [[unroll]] for (uint h = 0u; h < HEADS; h++) {
        bool mine = gl_SubgroupInvocationID == h % gl_WorkGroupSize.x;
        float highest = subgroupMax(score[h]);
        score[h] = float(float16_t(exp(score[h] - highest) * (1.0 / float(CHAIN))));
        float weights = subgroupAdd(score[h]);
        tile_top[h / gl_WorkGroupSize.x] = mine ? highest : tile_top[h / gl_WorkGroupSize.x];
        tile_sum[h / gl_WorkGroupSize.x] = mine ? weights : tile_sum[h / gl_WorkGroupSize.x];
    }
    [[unroll]] for (uint n = 0u; n < KEPT; n++) {
        float highest = max(top[n], tile_top[n]);
        shrink[n] = exp(top[n] - highest);
        grow[n] = exp(tile_top[n] - highest);
        top[n] = highest;
        sum[n] = sum[n] * shrink[n] + grow[n] * tile_sum[n];
    }
    [[unroll]] for (uint h = 0u; h < HEADS; h++) {
        factor[h] = subgroupShuffle(grow[h / gl_WorkGroupSize.x], h % gl_WorkGroupSize.x);
        shrink_sums(h, subgroupShuffle(shrink[h / gl_WorkGroupSize.x], h % gl_WorkGroupSize.x));
    }
}

vec2 running(uint h) {
    return vec2(subgroupShuffle(top[h / gl_WorkGroupSize.x], h % gl_WorkGroupSize.x),
                subgroupShuffle(sum[h / gl_WorkGroupSize.x], h % gl_WorkGroupSize.x));
}

// Of a word's quants the i-th and that PAIRS_A_WORD behind it: 1024 + q are the halves whose last bits are q's.
f16vec2 quant_halves(uint word, uint i) {
#ifdef CACHE_Q8_0
    uint bits = (word ^ 0x80808080u) >> 8u * i & 0x00FF00FFu;
    const float offset = 1024.0 + 128.0;
#else
    uint bits = word >> 4u * i & 0x000F000Fu;
    const float offset = 1024.0 + 8.0;
#endif
    return unpackFloat2x16(bits | 0x64006400u) - f16vec2(offset);
}

void add_values(uint j, uint rows) {
    uint pairs[(HEADS + 1u) / 2u]; // two heads' weights
    [[unroll]] for (uint h = 0u; h < HEADS; h += 2u)
        pairs[h / 2u] = packFloat2x16(f16vec2(score[h], h + 1u < HEADS ? score[min(h + 1u, HEADS - 1u)] : 0.0));
    [[dont_unroll]] for (uint first_row = 0u; first_row < rows; first_row += CHAIN) {
        f16vec2 v[CHAIN * LATENT_PAIRS];
        [[unroll]] for (uint r = 0u; r < CHAIN; r++) {
            uint base = (j + min(first_row + r, rows - 1u)) * ROW_WORDS(VALUE_ROW); // past the last row p is 0
            ARRAY_LOOP for (uint i = 0u; i < LATENT_PAIRS; i++) {
                uint word = held(i) ? row_word(i) : 0u, block = (held(i) ? scale_word(i) : 0u) / BLOCK_WORDS;
                uint scales = VALUES[base + BLOCKS(VALUE_ROW) * BLOCK_WORDS + block / 2u];
                float16_t d = unpackFloat2x16(scales >> 16u * (block % 2u)).x;
                v[r * LATENT_PAIRS + i] = d * quant_halves(VALUES[base + word], i % PAIRS_A_WORD);
            }
        }
        [[unroll]] for (uint h = 0u; h < HEADS; h++) {
            float16_t p[CHAIN];
            [[unroll]] for (uint r = 0u; r < CHAIN; r++)
                p[r] = unpackFloat2x16(subgroupShuffle(pairs[h / 2u], first_row + r))[h % 2u];
            ARRAY_LOOP for (uint i = 0u; i < LATENT_PAIRS; i++) {
                f16vec2 part = p[0] * v[i];
                [[unroll]] for (uint r = 1u; r < CHAIN; r++) part = fma(f16vec2(p[r]), v[r * LATENT_PAIRS + i], part);
                acc[h * LATENT_PAIRS + i] += factor[h] * vec2(part);
            }
        }
    }
}

// A word's i-th pair has columns of which each is in another of its pairs of sums.
vec2 summed(uint h, uint i) {
    uint word = h * LATENT_PAIRS + i / PAIRS_A_WORD * PAIRS_A_WORD, column = i % PAIRS_A_WORD * 2u;
    uint half_of = column / PAIRS_A_WORD, at = word + column % PAIRS_A_WORD;
    return vec2(acc[at][half_of], acc[at + 1u][half_of]);
}
