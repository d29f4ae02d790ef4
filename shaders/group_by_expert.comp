#version 450
// Lists, for each expert, a chunk's (token, slot) pairs that chose it, in order: pair_of[expert][capacity], pair_count[expert].
// A lane takes every subgroup-size-th expert and scans all choices; no atomics, so the order never varies.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require

layout(local_size_x_id = 0) in;
layout(binding = 0) readonly buffer Chosen { uint chosen[]; };
layout(binding = 1) writeonly buffer Counts { uint pair_count[]; };
layout(binding = 2) writeonly buffer Pairs { uint pair_of[]; };
#define PARAMS_BINDING 3
#include "params.glsl"

layout(push_constant) uniform Push {
    uint experts;
    uint used;
    uint capacity; // tokens of a chunk, the longest list
};

void main() {
    uint expert = gl_WorkGroupID.x * gl_SubgroupSize + gl_SubgroupInvocationID;
    if (expert >= experts) return;
    uint count = 0u;
    for (uint pair = 0u; pair < n_tokens * used; pair++) {
        if (chosen[pair] == expert) {
            pair_of[expert * capacity + count] = pair;
            count++;
        }
    }
    pair_count[expert] = count;
}
