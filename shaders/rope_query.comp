#version 450
// Rotates the rope part of every head's query of each token of a chunk (rope_heads.glsl).
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

vec2 query_pair(uint i) { return q[i]; }
void put_rotated(uint i, vec2 v) { rotated[i] = v; }
#include "rope_heads.glsl"

void main() {
    if (gl_WorkGroupID.x < n_tokens) rotate_queries(gl_WorkGroupID.x);
}
