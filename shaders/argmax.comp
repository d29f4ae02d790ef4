#version 450
// Greedy choice, the lowest id among equals. First stage: each workgroup's best of its share of the logits. FINAL: the best of
// those, one workgroup; it also makes the parameters those of the token chosen, behind what they were for, so that the
// device can run that one without the host.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;
#ifdef FINAL
layout(binding = 0) readonly buffer Best { uvec2 candidates[]; }; // value's bits, id
layout(binding = 1) writeonly buffer Tokens { uint tokens[]; }; // chosen ones, by the position behind which, modulo `kept`
#define PARAMS_BINDING 2
#define PARAMS_ACCESS
#include "params.glsl"
#else
layout(binding = 0) readonly buffer Logits { float logits[]; };
layout(binding = 1) writeonly buffer Best { uvec2 candidates[]; };
#endif

layout(push_constant) uniform Push {
    uint count; // logits, or candidates in the final stage
    uint share; // of them for each workgroup
#ifdef FINAL
    uint kept;
#endif
};

void main() {
    float best = uintBitsToFloat(0xFF800000u); // -infinity
    uint id = 0xFFFFFFFFu;
    uint begin = gl_WorkGroupID.x * share, end = min(begin + share, count);
    for (uint i = begin + gl_SubgroupInvocationID; i < end; i += gl_SubgroupSize) {
#ifdef FINAL
        float value = uintBitsToFloat(candidates[i].x);
        uint which = candidates[i].y;
#else
        float value = logits[i];
        uint which = i;
#endif
        if (value > best || (value == best && which < id)) { best = value; id = which; }
    }
    float highest = subgroupMax(best);
    uint winner = subgroupMin(best == highest ? id : 0xFFFFFFFFu);
    if (gl_SubgroupInvocationID == 0u) {
#ifdef FINAL
        uint following = n_past + n_tokens;
        tokens[(following - 1u) % kept] = winner;
        n_past = following;
        n_tokens = 1u;
        token_ids[0] = winner;
#else
        candidates[gl_WorkGroupID.x] = uvec2(floatBitsToUint(highest), winner);
#endif
    }
}
