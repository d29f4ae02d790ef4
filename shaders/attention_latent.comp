#version 450
// Fused absorbed attention over the latent cache, one token or a causal chunk of them.
// A workgroup is one subgroup: HEADS query heads of one token over one of SPLITS ranges of the cache. A cache row, spread over
// the lanes word by word, serves all of them, and its first LATENT entries serve again as the value.
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
layout(binding = 0) readonly buffer Query { vec2 q[]; };   // [token][head][LATENT + ROPE]
layout(binding = 1) readonly buffer Cache { STORED cache[]; }; // [position][ROW_WORDS]
layout(binding = 2) writeonly buffer Output { vec2 outp[]; }; // [token][head][split][LATENT]
layout(binding = 3) writeonly buffer Stats { vec2 stats[]; }; // [token][head][split]: running maximum, sum
#define PARAMS_BINDING 4
#include "params.glsl"
#include "array_loop.glsl"
#ifdef REDUNDANT_V
layout(binding = 5) readonly buffer ValueCache { STORED values[]; }; // [position][ROW_WORDS]
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

const uint PAIRS = LATENT_PAIRS + ROPE_PAIRS;
const uint ROW = (LATENT + ROPE) / 2;
const float LOWEST = -1e30, HIDDEN = -3e38; // before the first row; of a lane without a row

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

    vec2 query[HEADS * PAIRS], acc[HEADS * LATENT_PAIRS];
    float top[HEADS], sum[HEADS];
    [[unroll]] for (uint h = 0u; h < HEADS; h++) {
        ARRAY_LOOP for (uint i = 0u; i < PAIRS; i++)
            query[h * PAIRS + i] = held(i) ? scale * q[(first_head + h) * ROW + row_pair(i)] : vec2(0.0);
        ARRAY_LOOP for (uint i = 0u; i < LATENT_PAIRS; i++) acc[h * LATENT_PAIRS + i] = vec2(0.0);
        top[h] = LOWEST;
        sum[h] = 0.0;
    }

    for (uint j = begin; j < end; j += TILE) {
        // Lane k keeps the scores of the tile's row k, so that one exp serves the whole tile. The row loops stay loops:
        // unrolled, the accumulators' code takes a CPU driver's compiler tens of seconds.
        uint rows = min(TILE, end - j);
        float score[HEADS];
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
        [[unroll]] for (uint h = 0u; h < HEADS; h++) {
            float highest = max(top[h], subgroupMax(score[h]));
            float shrink = exp(top[h] - highest);
            top[h] = highest;
            score[h] = exp(score[h] - highest);
            sum[h] = sum[h] * shrink + subgroupAdd(score[h]);
            [[unroll]] for (uint i = 0u; i < LATENT_PAIRS; i++) acc[h * LATENT_PAIRS + i] *= shrink;
        }
        [[dont_unroll]] for (uint k = 0u; k < rows; k++) {
#ifdef REDUNDANT_V
            uint base = (j + k) * ROW_WORDS(LATENT / 2u);
#else
            uint base = (j + k) * ROW_WORDS(ROW);
#endif
            float p[HEADS];
            [[unroll]] for (uint h = 0u; h < HEADS; h++) p[h] = subgroupShuffle(score[h], k);
            [[unroll]] for (uint i = 0u; i < LATENT_PAIRS; i++) {
                uint word = held(i) ? row_word(i) : 0u;
#ifdef REDUNDANT_V
                vec2 v = STORED_PAIR(values, base, LATENT / 2u, word, i % PAIRS_A_WORD);
#else
                vec2 v = STORED_PAIR(cache, base, ROW, word, i % PAIRS_A_WORD);
#endif
                [[unroll]] for (uint h = 0u; h < HEADS; h++) acc[h * LATENT_PAIRS + i] += p[h] * v;
            }
        }
    }

    [[unroll]] for (uint h = 0u; h < HEADS; h++) {
        uint slot = (first_head + h) * slots_a_head + slot_offset + split;
        float norm = partial_sums ? 1.0 : 1.0 / sum[h];
        ARRAY_LOOP for (uint i = 0u; i < LATENT_PAIRS; i++)
            if (held(i)) outp[slot * (LATENT / 2u) + row_pair(i)] = acc[h * LATENT_PAIRS + i] * norm;
        if (partial_sums && gl_SubgroupInvocationID == 0u) stats[slot] = vec2(top[h], sum[h]);
    }
}
