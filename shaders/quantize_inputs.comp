#version 450
// Inputs of matmul_dot.comp: vectors of a chunk's tokens in 8 bits, x = d * q with d = max |x| / 127 of every 32 columns,
// laid out as dot_inputs.glsl says. A lane takes four columns, eight lanes a block.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require

layout(local_size_x_id = 0) in;
layout(binding = 0) readonly buffer Input { vec4 x[]; };
layout(binding = 1) writeonly buffer Quantized { uint quantized[]; };
#define PARAMS_BINDING 2
#include "params.glsl"
#include "eight_bits.glsl"

layout(push_constant) uniform Push {
    uint columns;  // of a vector, whole blocks of 32
    uint vectors;  // of a token
    uint x_offset; // elements, as those that follow
    uint x_batch;  // between the vectors of a token
    uint x_token;  // between two tokens
};

const uint INPUT_WORDS = 12u; // of a block

void main() {
    uint at = (gl_WorkGroupID.x * gl_SubgroupSize + gl_SubgroupInvocationID) * 4u;
    uint token = gl_WorkGroupID.y, batch = gl_WorkGroupID.z;
    if (token >= n_tokens || at >= columns) return; // whole blocks, so that all lanes of one stay
    vec4 v = x[(x_offset + token * x_token + batch * x_batch + at) / 4u];

    uvec4 bits = magnitudes(v);
    uint largest = max(max(bits.x, bits.y), max(bits.z, bits.w));
    for (uint i = 1u; i < 8u; i *= 2u) largest = max(largest, subgroupShuffleXor(largest, i));
    Step by = step_of(largest);
    ivec4 q = quants(v, by);

    int sum = (q.x + q.y) + (q.z + q.w);
    for (uint i = 1u; i < 4u; i *= 2u) sum += subgroupShuffleXor(sum, i);
    int other = subgroupShuffleXor(sum, 4u);
    uint vector = token * vectors + batch, part = at / 4u & 7u;
    uint block = (vector * columns + at) / 32u * INPUT_WORDS;
    quantized[block + part] = as_bytes(q);
    if (part < 4u) {
        float floats = part == 0u ? by.d : part == 1u ? by.d * float(sum) : part == 2u ? by.d * float(other) : 0.0;
        quantized[block + 8u + part] = floatBitsToUint(floats);
    }
}
