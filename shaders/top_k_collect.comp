#version 450
// All logits that reach the bound of top_k_bound.comp, in no order: the k largest are among them. Numbers that are none are
// collected too, so that whoever chooses sees them. Of more than the list holds only the count is right.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require

layout(local_size_x_id = 0) in;
layout(binding = 0) readonly buffer Logits { float logits[]; };
layout(binding = 1) buffer Top { float bound; uint collected; uvec2 list[]; }; // value's bits, id

layout(push_constant) uniform Push {
    uint count;    // logits
    uint share;    // of them for each workgroup
    uint capacity; // of the list
};

void main() {
    uint begin = gl_WorkGroupID.x * share, end = min(begin + share, count);
    for (uint first = begin; first < end; first += gl_SubgroupSize) {
        uint id = first + gl_SubgroupInvocationID;
        float value = logits[min(id, count - 1u)];
        bool reaches = id < end && !(value < bound);
        uvec4 who = subgroupBallot(reaches);
        uint found = subgroupBallotBitCount(who);
        if (found == 0u) continue;
        uint place = 0u;
        if (subgroupElect()) place = atomicAdd(collected, found);
        place = subgroupBroadcastFirst(place) + subgroupBallotExclusiveBitCount(who);
        if (reaches && place < capacity) list[place] = uvec2(floatBitsToUint(value), id);
    }
}
