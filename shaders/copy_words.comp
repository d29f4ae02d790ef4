#version 450
// Copies words from one buffer to another: Kompute's device-local tensors lack TRANSFER usage, so a kernel moves them.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint EACH = 16; // words an invocation

layout(binding = 0) readonly buffer Source { uint source[]; };
layout(binding = 1) writeonly buffer Target { uint target[]; };

layout(push_constant) uniform Push {
    uint from; // word of the source
    uint to;   // word of the target
    uint count;
};

void main() {
    uint at = gl_WorkGroupID.x * EACH * gl_WorkGroupSize.x + gl_LocalInvocationID.x;
    for (uint i = 0u; i < EACH; i++, at += gl_WorkGroupSize.x)
        if (at < count) target[to + at] = source[from + at];
}
