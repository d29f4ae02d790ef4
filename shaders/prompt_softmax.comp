#version 450
// A tile's scores made weights, in place, for one token and head a subgroup: exp(score - maximum so far), 0 where the token sees
// nothing, up to whole loads of a subgroup. Online softmax (Milakov and Gimelshein 2018; Dao et al. 2022): the running
// maximum and sum go on from tile to tile, and what was summed with an older maximum is to be multiplied with `shrink`.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;
layout(binding = 0) buffer Scores { vec4 scores[]; }; // [head][token][capacity of a tile]
layout(binding = 1) buffer Stats { vec4 stats[]; };   // [token][head]: maximum, sum, shrink
#define PARAMS_BINDING 2
#include "params.glsl"
layout(binding = 3) readonly buffer Tile { uint tile_first, tile_count; };

layout(push_constant) uniform Push {
    uint heads; // of the model
    uint chunk; // capacity in tokens
    uint tile;  // capacity in positions, a multiple of four times the subgroup's size
};

const float LOWEST = -1e30, HIDDEN = -3e38; // before the first position; of a position that the token does not see

void main() {
    uint token = gl_WorkGroupID.x, head = gl_WorkGroupID.y;
    if (token >= n_tokens) return;
    uint row = (head * chunk + token) * (tile / 4u), slot = token * heads + head;
    // Positions of the tile that the token sees, and fours of positions in whole loads.
    uint visible = min(max(n_past + token + 1u, tile_first) - tile_first, tile_count);
    uint seen = (visible + 3u) / 4u, end = (tile_count + 4u * gl_SubgroupSize - 1u) / (4u * gl_SubgroupSize) * gl_SubgroupSize;
    vec4 before = tile_first > 0u ? stats[slot] : vec4(LOWEST, 0.0, 0.0, 0.0);

    vec4 highest = vec4(before.x);
    for (uint i = gl_SubgroupInvocationID; i < seen; i += gl_SubgroupSize) {
        bvec4 shown = lessThan(4u * i + uvec4(0u, 1u, 2u, 3u), uvec4(visible));
        highest = max(highest, mix(vec4(HIDDEN), scores[row + i], shown));
    }
    float top = subgroupMax(max(max(highest.x, highest.y), max(highest.z, highest.w)));
    vec4 sum = vec4(0.0);
    for (uint i = gl_SubgroupInvocationID; i < end; i += gl_SubgroupSize) {
        bvec4 shown = lessThan(4u * i + uvec4(0u, 1u, 2u, 3u), uvec4(visible));
        vec4 weight = exp(mix(vec4(HIDDEN), scores[row + i], shown) - top);
        sum += weight;
        scores[row + i] = weight;
    }
    float all = subgroupAdd((sum.x + sum.y) + (sum.z + sum.w)), shrink = exp(before.x - top);
    if (gl_SubgroupInvocationID == 0u) stats[slot] = vec4(top, before.y * shrink + all, shrink, 0.0);
}
