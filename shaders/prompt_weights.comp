#version 450
// What prompt_expand.comp multiplies latent rows with: one tensor of f32 as halves, for each head and latent number a row of the
// columns that it adds to. attn_k_b [head][latent][column] keeps its order, attn_v_b [head][column][latent] is turned over.
// One subgroup makes a row, a lane every subgroup-size-th word.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require

layout(local_size_x_id = 0) in;
layout(binding = 0) readonly buffer Source { float source[]; };
layout(binding = 1) writeonly buffer Output { uint halves[]; }; // [head][latent][words], pairs of halves
#define TOO_LARGE_BINDING 2
#include "half_range.glsl"

layout(push_constant) uniform Push {
    uint pairs;  // of columns
    uint rows;   // latent numbers
    uint head;   // elements of the source between two heads
    uint latent; // between two latent numbers
    uint column; // and between two columns
    uint words;  // of an output row
    uint first;  // word of it where these columns begin
};

void main() {
    uint from = gl_WorkGroupID.y * head + gl_WorkGroupID.x * latent;
    uint to = (gl_WorkGroupID.y * rows + gl_WorkGroupID.x) * words + first;
    for (uint i = gl_SubgroupInvocationID; i < pairs; i += gl_SubgroupSize) {
        uint at = from + 2u * i * column;
        vec2 pair = vec2(source[at], source[at + column]);
        uvec2 size = magnitudes(pair);
        check_half(max(size.x, size.y));
        halves[to + i] = pack_halves(pair);
    }
}
