#version 450
// Writes how many invocations of a workgroup really share its first subgroup: every kernel here relies on all of them.
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;
layout(binding = 0) writeonly buffer Result { uint size, lanes; };

void main() {
    uint counted = subgroupAdd(1u);
    if (gl_LocalInvocationID.x == 0u) {
        size = gl_SubgroupSize;
        lanes = counted;
    }
}
