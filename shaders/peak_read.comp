#version 450
// Reads a buffer once, 16 bytes a lane and load, consecutive across the subgroup: what reading memory costs at best.
// TEXELS: as a texel buffer.
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint LOADS = 64; // loads a lane, a multiple of 4

#ifdef TEXELS
layout(binding = 0) uniform usamplerBuffer source;
#define LOAD(i) texelFetch(source, int(i))
#else
layout(binding = 0) readonly buffer Source { uvec4 source[]; };
#define LOAD(i) source[i]
#endif
layout(binding = 1) writeonly buffer Sink { uint sink[]; };

void main() {
    uint width = gl_WorkGroupSize.x;
    uint base = gl_WorkGroupID.x * LOADS * width + gl_LocalInvocationID.x;
    uvec4 sum = uvec4(0u);
    for (uint i = 0u; i < LOADS; i += 4u) {
        [[unroll]] for (uint k = 0u; k < 4u; k++) sum ^= LOAD(base + (i + k) * width);
    }
    // One word a workgroup and lane, so that no load can be left out.
    sink[gl_WorkGroupID.x * width + gl_LocalInvocationID.x] = sum.x ^ sum.y ^ sum.z ^ sum.w;
}
