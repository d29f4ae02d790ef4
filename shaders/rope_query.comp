#version 450
// Rotates the rope part of every head's query, from q[token][head] to its place in out[token][head].
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require

layout(local_size_x_id = 0) in;
layout(binding = 0) readonly buffer Query { vec2 q[]; };
#define ROPE_BINDING 1
#include "rope.glsl"
#define PARAMS_BINDING 2
#include "params.glsl"
layout(binding = 3) writeonly buffer Output { vec2 rotated[]; };

layout(push_constant) uniform Push {
    uint heads;
    uint rope;       // elements
    uint q_head;     // elements of one head's query
    uint q_rope;     // element of it where the rope part begins
    uint out_head;   // the same of the output
    uint out_rope;
    uint n_high;     // rows of the rope tables' coarse part
};

void main() {
    uint token = gl_WorkGroupID.x;
    if (token >= n_tokens) return;
    uint pairs = rope / 2u;
    for (uint i = gl_SubgroupInvocationID; i < heads * pairs; i += gl_SubgroupSize) {
        uint head = i / pairs, pair = i % pairs;
        uint row = token * heads + head;
        vec2 v = q[(row * q_head + q_rope) / 2u + pair];
        rotated[(row * out_head + out_rope) / 2u + pair] = rope_pair(v, n_past + token, pair, pairs, n_high);
    }
}
