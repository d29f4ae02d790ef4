#version 450
// A bound that at least k logits reach, so that none below it is among the k largest: the k-th largest of the groups' best, each
// the best of another share of the logits. Where the best are spread evenly over G groups, about -G ln(1 - k / G) logits
// reach it. Also empties the list that top_k_collect.comp fills.
// Found bit by bit, as the largest key that k of the groups' keys reach; one workgroup.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint PER_LANE = 16; // ceil(groups / subgroup size)

layout(binding = 0) readonly buffer Best { uvec2 best[]; }; // value's bits, id
layout(binding = 1) writeonly buffer Top { float bound; uint collected; };
#include "array_loop.glsl"

layout(push_constant) uniform Push {
    uint groups;
    uint k;
};

// Unsigned integers in the order of the floats, from 0 for none.
uint key_of(uint bits) { return bits >= 0x80000000u ? ~bits : bits | 0x80000000u; }
uint bits_of(uint key) { return key >= 0x80000000u ? key & 0x7FFFFFFFu : ~key; }

void main() {
    uint keys[PER_LANE];
    ARRAY_LOOP for (uint i = 0u; i < PER_LANE; i++) {
        uint group = gl_SubgroupInvocationID + i * gl_SubgroupSize;
        keys[i] = group < groups ? key_of(best[group].x) : 0u;
    }
    uint reached = 0u;
    [[dont_unroll]] for (uint bit = 0x80000000u; bit != 0u; bit >>= 1u) {
        uint tried = reached | bit, count = 0u;
        ARRAY_LOOP for (uint i = 0u; i < PER_LANE; i++) count += uint(keys[i] >= tried);
        if (subgroupAdd(count) >= k) reached = tried;
    }
    if (gl_SubgroupInvocationID == 0u) {
        bound = uintBitsToFloat(bits_of(reached));
        collected = 0u;
    }
}
