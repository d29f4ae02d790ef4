#version 450
// Fused absorbed attention over the latent cache, one token or a causal chunk of them.
// A workgroup is one subgroup: HEADS query heads of one token over one of SPLITS ranges of the cache. For the output a
// cache row, whose first LATENT entries are the value, is spread over the lanes word by word and serves all heads.
// For the scores, a CPU spreads it so too; on a GPU every lane has a row of its own, so that no sum crosses lanes and
// the queries, then alike for all lanes, come by scalar loads.
// Online softmax over tiles of TILE rows (Milakov and Gimelshein 2018; Dao et al. 2022).
// REDUNDANT_V: values come from their own buffer instead.
// SHARD: the buffers hold only the positions from `first` to `last`; attention_combine joins the shards' sums.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_shuffle : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint LATENT = 512;
layout(constant_id = 2) const uint ROPE = 64;
layout(constant_id = 3) const uint HEADS = 4;
layout(constant_id = 4) const uint TILE = 8;          // at most the subgroup's size
layout(constant_id = 5) const uint SPLITS = 1;
// Pairs of a row that a lane holds: whole words of latent_row.glsl, as many as leave none to no lane.
layout(constant_id = 6) const uint LATENT_PAIRS = 32;
layout(constant_id = 7) const uint ROPE_PAIRS = 4;

#include "latent_row.glsl"
// restrict: what no store can change may be loaded by scalar instructions.
layout(binding = 0) restrict readonly buffer Query { vec2 q[]; };   // [token][head][LATENT + ROPE]
layout(binding = 1) restrict readonly buffer Cache { STORED cache[]; }; // [position][ROW_WORDS]
layout(binding = 2) restrict writeonly buffer Output { vec2 outp[]; }; // [token][head][split][LATENT], if it has rows
layout(binding = 3) restrict writeonly buffer Stats { vec2 stats[]; }; // [token][head][split]: running maximum, sum
#define PARAMS_BINDING 4
#include "params.glsl"
#include "array_loop.glsl"
#ifdef REDUNDANT_V
layout(binding = 5) restrict readonly buffer ValueCache { STORED values[]; }; // [position][ROW_WORDS]
#endif

layout(push_constant) uniform Push {
    uint heads; // of the model
    float scale;
#ifdef SHARD
    uint first;      // position of the buffers' first row
    uint last;       // one past their last
    uint slot_first; // of this launch's splits among all of a head's
    uint slots;
#endif
};

const uint ROW = (LATENT + ROPE) / 2;
const float LOWEST = -1e30, HIDDEN = -3e38; // before the first row; of a lane without a row

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

// Lane k's scores are those of row j + k, for k below `rows`. The row loops stay loops: unrolled, the accumulators' code
// takes a CPU driver's compiler tens of seconds.
void score_rows(uint first_head, uint j, uint rows, out float score[HEADS]) {
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
const uint ROWS_AT_ONCE = 4u; // whose loads wait for memory together

// The same, of the latent part alone: a lane's words are neighbours, one load.
uint row_word(uint i) { return gl_SubgroupInvocationID * (LATENT_PAIRS / PAIRS_A_WORD) + i / PAIRS_A_WORD; }
uint row_pair(uint i) { return gl_SubgroupInvocationID * LATENT_PAIRS + i; }
bool held(uint i) { return LATENT / 2u == LATENT_PAIRS * gl_WorkGroupSize.x || row_pair(i) < LATENT / 2u; }

// One of the same block, and the same one for all of a lane's words where they lie in one block.
uint scale_word(uint i) {
#ifdef QUANTISED
    if (BLOCK_PAIRS % LATENT_PAIRS == 0u) return row_word(0u);
#endif
    return row_word(i);
}

void take_queries(uint first_head) {}

// Words of a row that a lane scores at a time: 128 bytes, a GPU's cache line, or a block of quants.
#if defined(QUANTISED)
const uint PART = BLOCK_WORDS;
#elif defined(CACHE_F32)
const uint PART = 16u;
#else
const uint PART = 32u;
#endif

// The lane's scores are those of row j + its number, if that is below `rows`.
void score_rows(uint first_head, uint j, uint rows, out float score[HEADS]) {
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

void main() {
    // Head groups of one split run side by side, so that a cache row one of them loaded serves the others from the cache.
    uint group = gl_WorkGroupID.x, split = gl_WorkGroupID.y, token = gl_WorkGroupID.z;
    if (token >= n_tokens) return;
    uint visible = n_past + token + 1u;
#ifdef SHARD
    visible = min(visible, last) - min(visible, first); // of this shard's rows, which are counted from its first
    const bool partial_sums = true;
    uint slot_offset = slot_first, slots_a_head = slots;
#else
    const bool partial_sums = SPLITS > 1u;
    uint slot_offset = 0u, slots_a_head = SPLITS;
#endif
    uint share = ((visible + SPLITS * TILE - 1u) / (SPLITS * TILE)) * TILE;
    uint begin = split * share, end = min(begin + share, visible);
    uint first_head = token * heads + group * HEADS;

    take_queries(first_head);
    vec2 acc[HEADS * LATENT_PAIRS];
    float top[HEADS], sum[HEADS];
    [[unroll]] for (uint h = 0u; h < HEADS; h++) {
        ARRAY_LOOP for (uint i = 0u; i < LATENT_PAIRS; i++) acc[h * LATENT_PAIRS + i] = vec2(0.0);
        top[h] = LOWEST;
        sum[h] = 0.0;
    }

    for (uint j = begin; j < end; j += TILE) {
        // Lane k keeps the scores of the tile's row k, so that one exp serves the whole tile.
        uint rows = min(TILE, end - j);
        float score[HEADS];
        score_rows(first_head, j, rows, score);
        [[unroll]] for (uint h = 0u; h < HEADS; h++) {
            float highest = max(top[h], subgroupMax(score[h]));
            float shrink = exp(top[h] - highest);
            top[h] = highest;
            score[h] = exp(score[h] - highest);
            sum[h] = sum[h] * shrink + subgroupAdd(score[h]);
            [[unroll]] for (uint i = 0u; i < LATENT_PAIRS; i++) acc[h * LATENT_PAIRS + i] *= shrink;
        }
        [[dont_unroll]] for (uint first_row = 0u; first_row < rows; first_row += ROWS_AT_ONCE) {
            [[unroll]] for (uint r = 0u; r < ROWS_AT_ONCE; r++) {
                uint k = first_row + r, row = j + (r == 0u ? k : min(k, rows - 1u)); // past the last row p is 0
#ifdef REDUNDANT_V
                uint base = row * ROW_WORDS(LATENT / 2u);
#else
                uint base = row * ROW_WORDS(ROW);
#endif
                float p[HEADS];
                [[unroll]] for (uint h = 0u; h < HEADS; h++) p[h] = subgroupShuffle(score[h], k);
                [[unroll]] for (uint i = 0u; i < LATENT_PAIRS; i++) {
                    uint word = held(i) ? row_word(i) : 0u, scaled = held(i) ? scale_word(i) : 0u;
#ifdef REDUNDANT_V
                    vec2 v = UNSCALED_PAIR(values, base, word, i % PAIRS_A_WORD);
                    v *= BLOCK_SCALE(values, base, LATENT / 2u, scaled);
#else
                    vec2 v = UNSCALED_PAIR(cache, base, word, i % PAIRS_A_WORD);
                    v *= BLOCK_SCALE(cache, base, ROW, scaled);
#endif
                    [[unroll]] for (uint h = 0u; h < HEADS; h++) acc[h * LATENT_PAIRS + i] += p[h] * v;
                }
            }
        }
    }

    [[unroll]] for (uint h = 0u; h < HEADS; h++) {
        uint slot = (first_head + h) * slots_a_head + slot_offset + split;
        float norm = partial_sums ? 1.0 : 1.0 / sum[h];
        ARRAY_LOOP for (uint i = 0u; i < LATENT_PAIRS; i++)
            if (begin < end && held(i)) outp[slot * (LATENT / 2u) + row_pair(i)] = acc[h * LATENT_PAIRS + i] * norm;
        if (partial_sums && gl_SubgroupInvocationID == 0u) stats[slot] = vec2(top[h], sum[h]);
    }
}
