#version 450
// Softmax of a tile's scores and its product with the tile's values, joined with what earlier tiles gave: after the last tile
// out[token][head] = sum of softmax(scores) * values over all positions that the token sees.
// One subgroup makes eight columns a lane (with FOURS four) by TOKENS tokens of one head; a lane holds four neighbouring positions' scores, from
// which online softmax (Milakov and Gimelshein 2018; Dao et al. 2022) makes weights, shared by shuffles. Values are
// loaded once for all tokens.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_shuffle : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint TOKENS = 16;

layout(binding = 0) readonly buffer Scores { vec4 scores[]; }; // [head][token][capacity of a tile]
#ifdef FOURS
#define QUADS 1u
layout(binding = 1) readonly buffer Values { uvec2 values[]; }; // [head][position][column], halves
#else
#define QUADS 2u
layout(binding = 1) readonly buffer Values { uvec4 values[]; };
#endif
layout(binding = 2) buffer Output { vec4 outp[]; };             // [token][head][column]
layout(binding = 3) buffer Stats { vec2 stats[]; };             // [token][head][column block]: running maximum, sum
#define PARAMS_BINDING 4
#include "params.glsl"
layout(binding = 5) readonly buffer Tile { uint tile_first, tile_count; };
#include "array_loop.glsl"

layout(push_constant) uniform Push {
    uint heads;      // of the model
    uint columns;    // of a value, a multiple of 4
    uint blocks;     // of columns
    uint value_row;  // eights, or fours, between two values
    uint value_head; // and between two heads' values; 0 where they share them
    uint chunk;      // capacity in tokens
    uint tile;       // capacity in positions, a multiple of four times the subgroup's size
};

const float LOWEST = -1e30, HIDDEN = -3e38; // before the first position; of a position that the token does not see

void main() {
    uint block = gl_WorkGroupID.x, first_token = gl_WorkGroupID.y * TOKENS, head = gl_WorkGroupID.z;
    if (first_token >= n_tokens) return;
    uint lane = gl_SubgroupInvocationID;
    uint last_token = min(first_token + TOKENS, n_tokens) - 1u;
    // Positions of the tile that the block's last token sees, if any.
    uint visible = min(max(n_past + last_token + 1u, tile_first) - tile_first, tile_count);
    uint column = (block * gl_SubgroupSize + lane) * 4u * QUADS;
    uint value = head * value_head + min(column, columns - 1u) / (4u * QUADS);
    uint last_quad = columns / 4u - 1u;

    vec4 acc[TOKENS * QUADS];
    float top[TOKENS], sum[TOKENS]; // of a lane's own positions, until the end
    bool begun = tile_first > 0u;
    ARRAY_LOOP for (uint t = 0u; t < TOKENS; t++) {
        uint row = min(first_token + t, last_token) * heads + head;
        [[unroll]] for (uint k = 0u; k < QUADS; k++)
            acc[QUADS * t + k] = begun ? outp[row * (columns / 4u) + min(column / 4u + k, last_quad)] : vec4(0.0);
        vec2 before = begun ? stats[row * blocks + block] : vec2(LOWEST, 0.0);
        top[t] = before.x;
        sum[t] = lane == 0u ? before.y : 0.0;
    }

    [[dont_unroll]] for (uint from = 0u; from < visible; from += 4u * gl_SubgroupSize) {
        vec4 weight[TOKENS];
        [[unroll]] for (uint t = 0u; t < TOKENS; t++) {
            uint token = min(first_token + t, last_token);
            uint position = from + 4u * lane;
            vec4 score = scores[((head * chunk + token) * tile + position) / 4u];
            uint seen = n_past + token + 1u; // from position 0 on
            bvec4 shown = lessThan(uvec4(tile_first + position) + uvec4(0u, 1u, 2u, 3u), uvec4(min(seen, tile_first + tile_count)));
            score = mix(vec4(HIDDEN), score, shown);
            float highest = max(top[t], subgroupMax(max(max(score.x, score.y), max(score.z, score.w))));
            float shrink = exp(top[t] - highest);
            top[t] = highest;
            weight[t] = exp(score - highest);
            sum[t] = sum[t] * shrink + (weight[t].x + weight[t].y) + (weight[t].z + weight[t].w);
            [[unroll]] for (uint k = 0u; k < QUADS; k++) acc[QUADS * t + k] *= shrink;
        }
        uint fours = min(gl_SubgroupSize, (visible - from + 3u) / 4u);
        [[dont_unroll]] for (uint l = 0u; l < fours; l++) {
            vec4 v[4u * QUADS];
            [[unroll]] for (uint i = 0u; i < 4u; i++) {
                uint at = value + min(from + 4u * l + i, visible - 1u) * value_row;
#ifdef FOURS
                uvec2 stored = values[at];
#else
                uvec4 stored = values[at];
                v[4u + i] = vec4(unpackHalf2x16(stored.z), unpackHalf2x16(stored.w));
#endif
                v[i] = vec4(unpackHalf2x16(stored.x), unpackHalf2x16(stored.y));
            }
            [[unroll]] for (uint t = 0u; t < TOKENS; t++) {
                vec4 p = subgroupShuffle(weight[t], l);
                [[unroll]] for (uint k = 0u; k < QUADS; k++)
                    acc[QUADS * t + k] += (p.x * v[4u * k] + p.y * v[4u * k + 1u]) + (p.z * v[4u * k + 2u] + p.w * v[4u * k + 3u]);
            }
        }
    }

    bool done = tile_first + tile_count >= n_past + n_tokens;
    ARRAY_LOOP for (uint t = 0u; t < TOKENS; t++) {
        float all = subgroupAdd(sum[t]);
        uint token = first_token + t;
        uint row = token * heads + head;
        if (token < n_tokens) {
            if (lane == 0u && !done) stats[row * blocks + block] = vec2(top[t], all);
            float norm = done ? 1.0 / all : 1.0;
            [[unroll]] for (uint k = 0u; k < QUADS; k++)
                if (column / 4u + k <= last_quad) outp[row * (columns / 4u) + column / 4u + k] = acc[QUADS * t + k] * norm;
        }
    }
}
