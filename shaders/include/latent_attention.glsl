// Fused absorbed attention over the latent cache, one token or a causal chunk of them: what its kernels share.
// A workgroup is one subgroup: HEADS query heads of one token over one of SPLITS ranges of the cache. For the output a
// cache row, whose first LATENT entries are the value, is spread over the lanes word by word and serves all heads.
// Online softmax over tiles of TILE rows (Milakov and Gimelshein 2018; Dao et al. 2022).
// REDUNDANT_V: values come from their own buffer instead.
// SHARD: the buffers hold only the positions from `first` to `last`; attention_combine joins the shards' sums.
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

const uint ROW = (LATENT + ROPE) / 2;
#ifdef REDUNDANT_V
layout(binding = 5) restrict readonly buffer ValueCache { STORED values[]; }; // [position][ROW_WORDS]
#define VALUES values
const uint VALUE_ROW = LATENT / 2;
#else
#define VALUES cache
const uint VALUE_ROW = ROW;
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

const float LOWEST = -1e30, HIDDEN = -3e38; // before the first row; of a lane without a row

// A tile's scores, of which a lane has its row's, then the rows' weights; and what all rows so far add up to.
float score[HEADS];
vec2 acc[HEADS * LATENT_PAIRS];

void shrink_sums(uint h, float factor) {
    [[unroll]] for (uint i = 0u; i < LATENT_PAIRS; i++) acc[h * LATENT_PAIRS + i] *= factor;
}

// What a kernel defines:
void take_queries(uint first_head);
// The lane's scores are those of row j + its number, if that is below `rows`; else HIDDEN.
void score_rows(uint first_head, uint j, uint rows);
// Makes the scores weights and the sums so far what they are beside these; before the first tile.
void begin_weights();
void weigh_rows();
// A head's running maximum and the sum of its weights.
vec2 running(uint h);
// acc += weights times the values of the rows from j on.
void add_values(uint j, uint rows);
// Whether the lane has an i-th pair of the output, which one of a head's it is, and its sum.
bool held(uint i);
uint row_pair(uint i);
vec2 summed(uint h, uint i);

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
    begin_weights();
    [[unroll]] for (uint h = 0u; h < HEADS; h++)
        ARRAY_LOOP for (uint i = 0u; i < LATENT_PAIRS; i++) acc[h * LATENT_PAIRS + i] = vec2(0.0);

    for (uint j = begin; j < end; j += TILE) {
        // Lane k keeps the scores of the tile's row k, so that one exp serves the whole tile.
        uint rows = min(TILE, end - j);
        score_rows(first_head, j, rows);
        weigh_rows();
        add_values(j, rows);
    }

    [[unroll]] for (uint h = 0u; h < HEADS; h++) {
        uint slot = (first_head + h) * slots_a_head + slot_offset + split;
        vec2 so_far = running(h);
        float norm = partial_sums ? 1.0 : 1.0 / so_far.y;
        ARRAY_LOOP for (uint i = 0u; i < LATENT_PAIRS; i++)
            if (begin < end && held(i)) outp[slot * (LATENT / 2u) + row_pair(i)] = summed(h, i) * norm;
        if (partial_sums && gl_SubgroupInvocationID == 0u) stats[slot] = so_far;
    }
}
