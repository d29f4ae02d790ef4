#version 450
// MHA fallback: causal softmax in place over one head's and token's scores, scaled; zeros up to the next multiple of 32 positions
// past the chunk, where the values' product reads.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;
layout(binding = 0) buffer Scores { float scores[]; }; // [head][token][n_ctx]
#define PARAMS_BINDING 1
#include "params.glsl"

layout(push_constant) uniform Push {
    uint capacity; // tokens that the scores buffer holds for each head
    uint n_ctx;
    float scale;
};

void main() {
    uint token = gl_WorkGroupID.x, head = gl_WorkGroupID.y;
    if (token >= n_tokens) return;
    uint base = (head * capacity + token) * n_ctx;
    uint visible = n_past + token + 1u, end = (n_past + n_tokens + 31u) & ~31u;
    float top = -1e30;
    for (uint i = gl_SubgroupInvocationID; i < visible; i += gl_SubgroupSize) top = max(top, scores[base + i]);
    top = subgroupMax(top);
    float sum = 0.0;
    for (uint i = gl_SubgroupInvocationID; i < visible; i += gl_SubgroupSize) {
        float p = exp(scale * (scores[base + i] - top));
        scores[base + i] = p;
        sum += p;
    }
    float norm = 1.0 / subgroupAdd(sum);
    for (uint i = gl_SubgroupInvocationID; i < end; i += gl_SubgroupSize)
        scores[base + i] = i < visible ? scores[base + i] * norm : 0.0;
}
