#version 450
// Absorbed attention over the latent cache (latent_attention.glsl) in f32. For the scores a CPU spreads a row over the
// lanes as for the output; on a GPU every lane has a row of its own, so that no sum crosses lanes and the queries, then
// alike for all lanes, come by scalar loads.
#extension GL_GOOGLE_include_directive : require
#include "latent_attention.glsl"

float top[HEADS], sum[HEADS];

void begin_weights() {
    [[unroll]] for (uint h = 0u; h < HEADS; h++) {
        top[h] = LOWEST;
        sum[h] = 0.0;
    }
}

void weigh_rows() {
    [[unroll]] for (uint h = 0u; h < HEADS; h++) {
        float highest = max(top[h], subgroupMax(score[h]));
        float shrink = exp(top[h] - highest);
        top[h] = highest;
        score[h] = exp(score[h] - highest);
        sum[h] = sum[h] * shrink + subgroupAdd(score[h]);
        shrink_sums(h, shrink);
    }
}

vec2 running(uint h) { return vec2(top[h], sum[h]); }
vec2 summed(uint h, uint i) { return acc[h * LATENT_PAIRS + i]; }

#ifdef ARRAYS_IN_MEMORY
const uint PAIRS = LATENT_PAIRS + ROPE_PAIRS;
const uint ROWS_AT_ONCE = 1u;
vec2 query[HEADS * PAIRS];

// Word of a cache row that has the lane's i-th pair, that pair's place in the row, and whether there is one.
uint row_word(uint i) {
    uint part = i < LATENT_PAIRS ? 0u : LATENT / 2u / PAIRS_A_WORD, j = i < LATENT_PAIRS ? i : i - LATENT_PAIRS;
    return part + gl_SubgroupInvocationID + j / PAIRS_A_WORD * gl_SubgroupSize;
}
uint row_pair(uint i) { return row_word(i) * PAIRS_A_WORD + i % PAIRS_A_WORD; }
bool held(uint i) {
    uint pairs = (i < LATENT_PAIRS ? LATENT : ROPE) / 2u;
    return pairs % (PAIRS_A_WORD * gl_WorkGroupSize.x) == 0u || row_pair(i) < (i < LATENT_PAIRS ? LATENT / 2u : ROW);
}

uint scale_word(uint i) { return row_word(i); } // one of the same block

void take_queries(uint first_head) {
    [[unroll]] for (uint h = 0u; h < HEADS; h++)
        ARRAY_LOOP for (uint i = 0u; i < PAIRS; i++)
            query[h * PAIRS + i] = held(i) ? scale * q[(first_head + h) * ROW + row_pair(i)] : vec2(0.0);
}

// The row loops stay loops: unrolled, the accumulators' code takes a CPU driver's compiler tens of seconds.
void score_rows(uint first_head, uint j, uint rows) {
    [[unroll]] for (uint h = 0u; h < HEADS; h++) score[h] = HIDDEN;
    [[dont_unroll]] for (uint k = 0u; k < rows; k++) {
        uint base = (j + k) * ROW_WORDS(ROW);
        float partial[HEADS];
        [[unroll]] for (uint h = 0u; h < HEADS; h++) partial[h] = 0.0;
        [[unroll]] for (uint i = 0u; i < PAIRS; i++) {
            vec2 v = STORED_PAIR(cache, base, ROW, held(i) ? row_word(i) : 0u, i % PAIRS_A_WORD);
            [[unroll]] for (uint h = 0u; h < HEADS; h++) {
                partial[h] += query[h * PAIRS + i].x * v.x;
                partial[h] += query[h * PAIRS + i].y * v.y;
            }
        }
        [[unroll]] for (uint h = 0u; h < HEADS; h++) {
            float s = subgroupAdd(partial[h]);
            if (gl_SubgroupInvocationID == k) score[h] = s;
        }
    }
}
#else
#include "lane_words.glsl"
const uint ROWS_AT_ONCE = 4u; // whose loads wait for memory together

void take_queries(uint first_head) {}

// Words of a row that a lane scores at a time: 128 bytes, a GPU's cache line, or a block of quants.
#if defined(QUANTISED)
const uint PART = BLOCK_WORDS;
#elif defined(CACHE_F32)
const uint PART = 16u;
#else
const uint PART = 32u;
#endif

void score_rows(uint first_head, uint j, uint rows) {
    uint base = (j + min(gl_SubgroupInvocationID, rows - 1u)) * ROW_WORDS(ROW);
    [[unroll]] for (uint h = 0u; h < HEADS; h++) score[h] = 0.0;
    [[dont_unroll]] for (uint word = 0u; word * PAIRS_A_WORD < ROW; word += PART) {
        uint at = word * PAIRS_A_WORD;
        vec2 v[PART * PAIRS_A_WORD];
        [[unroll]] for (uint c = 0u; c < v.length(); c++) {
            uint w = c / PAIRS_A_WORD;
            bool within = ROW % v.length() == 0u || at + c < ROW;
            v[c] = UNSCALED_PAIR(cache, base, within ? word + w : 0u, c % PAIRS_A_WORD);
        }
        float d = BLOCK_SCALE(cache, base, ROW, word);
        [[unroll]] for (uint h = 0u; h < HEADS; h++) {
            float sum = 0.0;
            [[unroll]] for (uint c = 0u; c < v.length(); c++) {
                bool within = ROW % v.length() == 0u || at + c < ROW;
                vec2 x = within ? q[(first_head + h) * ROW + at + c] : vec2(0.0);
                sum = fma(x.y, v[c].y, fma(x.x, v[c].x, sum));
            }
            score[h] = fma(d, sum, score[h]);
        }
    }
    [[unroll]] for (uint h = 0u; h < HEADS; h++)
        score[h] = gl_SubgroupInvocationID < rows ? scale * score[h] : HIDDEN;
}
#endif

void add_values(uint j, uint rows) {
    [[dont_unroll]] for (uint first_row = 0u; first_row < rows; first_row += ROWS_AT_ONCE) {
        [[unroll]] for (uint r = 0u; r < ROWS_AT_ONCE; r++) {
            uint k = first_row + r, row = j + (r == 0u ? k : min(k, rows - 1u)); // past the last row p is 0
            uint base = row * ROW_WORDS(VALUE_ROW);
            float p[HEADS];
            [[unroll]] for (uint h = 0u; h < HEADS; h++) p[h] = subgroupShuffle(score[h], k);
            [[unroll]] for (uint i = 0u; i < LATENT_PAIRS; i++) {
                uint word = held(i) ? row_word(i) : 0u, scaled = held(i) ? scale_word(i) : 0u;
                vec2 v = UNSCALED_PAIR(VALUES, base, word, i % PAIRS_A_WORD);
                v *= BLOCK_SCALE(VALUES, base, VALUE_ROW, scaled);
                [[unroll]] for (uint h = 0u; h < HEADS; h++) acc[h * LATENT_PAIRS + i] += p[h] * v;
            }
        }
    }
}
