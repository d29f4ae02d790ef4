#version 450
// A tile's weights times its values, joined with what earlier tiles gave: after the last tile out[token][head] is the sum of
// softmax(scores) * values over all positions that the token sees.
// One subgroup makes the columns of its lanes (half_columns.glsl) by TOKENS tokens of one head. A lane holds four neighbouring
// positions' weights, shared by shuffles; values are loaded once for all tokens.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_shuffle : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint TOKENS = 16;

layout(binding = 0) readonly buffer Weights { vec4 weights[]; }; // [head][token][capacity of a tile]
#define HALVES values // [head][position][column]
#define HALVES_BINDING 1
#include "half_columns.glsl"
layout(binding = 2) buffer Output { vec4 outp[]; };              // [token][head][column]
layout(binding = 3) readonly buffer Stats { vec4 stats[]; };     // [token][head], as prompt_softmax.comp left them
#define PARAMS_BINDING 4
#include "params.glsl"
layout(binding = 5) readonly buffer Tile { uint tile_first, tile_count; };
#include "array_loop.glsl"

layout(push_constant) uniform Push {
    uint heads;       // of the model
    uint columns;     // of a value, a multiple of 4
    uint value_row;   // between two values, counted by what a lane takes
    uint value_head;  // between two heads' values; 0 where they share them
    uint value_first; // where a head's first value begins
    uint chunk;       // capacity in tokens
    uint tile;        // capacity in positions, a multiple of four times the subgroup's size
};

void main() {
    uint first_token = gl_WorkGroupID.y * TOKENS, head = gl_WorkGroupID.z;
    if (first_token >= n_tokens) return;
    uint lane = gl_SubgroupInvocationID;
    uint last_token = min(first_token + TOKENS, n_tokens) - 1u;
    // Positions of the tile that the block's last token sees, if any.
    uint visible = min(max(n_past + last_token + 1u, tile_first) - tile_first, tile_count);
    uint column = (gl_WorkGroupID.x * gl_SubgroupSize + lane) * 4u * QUADS;
    uint value = value_first + head * value_head + min(column, columns - 1u) / (4u * QUADS);
    uint quads = columns / 4u;
    bool begun = tile_first > 0u, done = tile_first + tile_count >= n_past + n_tokens;

    vec4 acc[TOKENS * QUADS];
    ARRAY_LOOP for (uint t = 0u; t < TOKENS; t++) {
        uint row = min(first_token + t, last_token) * heads + head;
        float shrink = stats[row].z;
        [[unroll]] for (uint k = 0u; k < QUADS; k++)
            acc[QUADS * t + k] = begun ? shrink * outp[row * quads + min(column / 4u + k, quads - 1u)] : vec4(0.0);
    }

    [[dont_unroll]] for (uint from = 0u; from < visible; from += 4u * gl_SubgroupSize) {
        vec4 weight[TOKENS];
        [[unroll]] for (uint t = 0u; t < TOKENS; t++)
            weight[t] = weights[(head * chunk + min(first_token + t, last_token)) * (tile / 4u) + from / 4u + lane];
        uint fours = min(gl_SubgroupSize, (visible - from + 3u) / 4u);
        [[dont_unroll]] for (uint l = 0u; l < fours; l++) {
            Columns v[4];
            [[unroll]] for (uint i = 0u; i < 4u; i++) v[i] = columns_at(value + min(from + 4u * l + i, visible - 1u) * value_row);
            [[unroll]] for (uint t = 0u; t < TOKENS; t++) {
                vec4 p = subgroupShuffle(weight[t], l);
                [[unroll]] for (uint k = 0u; k < QUADS; k++)
                    acc[QUADS * t + k] += (p.x * v[0].quad[k] + p.y * v[1].quad[k]) + (p.z * v[2].quad[k] + p.w * v[3].quad[k]);
            }
        }
    }

    ARRAY_LOOP for (uint t = 0u; t < TOKENS; t++) {
        uint row = (first_token + t) * heads + head;
        if (first_token + t < n_tokens) {
            float norm = done ? 1.0 / stats[row].y : 1.0;
            [[unroll]] for (uint k = 0u; k < QUADS; k++)
                if (column / 4u + k < quads) outp[row * quads + column / 4u + k] = acc[QUADS * t + k] * norm;
        }
    }
}
