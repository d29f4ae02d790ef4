#version 450
// A tile of latent cache rows as prompt attention reads them, of whatever type the cache is: halves, each row padded with zeros
// to whole eights.
// SHARD: the buffer holds only the positions from `first` to `last`, and the tile's others are left alone.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
#include "latent_row.glsl"
layout(binding = 0) readonly buffer Cache { STORED cache[]; }; // [position][ROW_WORDS]
layout(binding = 1) writeonly buffer Rows { uint rows[]; };    // [position of the tile][words], pairs of halves
layout(binding = 2) readonly buffer Tile { uint tile_first, tile_count; };

layout(push_constant) uniform Push {
    uint pairs; // of a cache row
    uint words; // of a row of the tile
#ifdef SHARD
    uint first; // position of the buffer's first row
    uint last;  // one past its last
#endif
};

void main() {
    uint in_tile = gl_WorkGroupID.x, row = tile_first + in_tile;
    if (in_tile >= tile_count) return;
#ifdef SHARD
    if (row < first || row >= last) return;
    row -= first;
#endif
    uint base = row * ROW_WORDS(pairs);
    for (uint i = gl_SubgroupInvocationID; i < words; i += gl_SubgroupSize) {
        uint at = min(i, pairs - 1u);
        vec2 v = STORED_PAIR(cache, base, pairs, at / PAIRS_A_WORD, at % PAIRS_A_WORD);
        rows[in_tile * words + i] = i < pairs ? packHalf2x16(v) : 0u;
    }
}
