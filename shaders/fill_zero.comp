#version 450
// Zeroes words of a buffer: Kompute does not initialise its device-local tensors.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint EACH = 16; // words an invocation

layout(binding = 0) writeonly buffer Target { uint target[]; };

layout(push_constant) uniform Push {
    uint to; // word of the target
    uint count;
};

void main() {
    uint at = gl_WorkGroupID.x * EACH * gl_WorkGroupSize.x + gl_LocalInvocationID.x;
    for (uint i = 0u; i < EACH; i++, at += gl_WorkGroupSize.x)
        if (at < count) target[to + at] = 0u;
}
