#version 450
// Multiplies and adds in registers, three independent chains of vec4 (a CPU has registers for no more): what f32 arithmetic costs at best.
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROUNDS = 1024; // each 3 chains * 4 elements * 2 operations a lane

layout(binding = 0) readonly buffer Source { vec4 source[]; }; // factor, addend
layout(binding = 1) writeonly buffer Sink { float sink[]; };

void main() {
    vec4 factor = source[0], addend = source[1];
    vec4 chain[3];
    [[unroll]] for (uint i = 0u; i < 3u; i++) chain[i] = vec4(float(gl_LocalInvocationID.x + i));
    for (uint round = 0u; round < ROUNDS; round++) {
        [[unroll]] for (uint i = 0u; i < 3u; i++) chain[i] = chain[i] * factor + addend;
    }
    vec4 sum = vec4(0.0);
    [[unroll]] for (uint i = 0u; i < 3u; i++) sum += chain[i];
    sink[gl_GlobalInvocationID.x] = dot(sum, vec4(1.0));
}
