#version 450
// y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight, one subgroup a token.
// LAST_TOKEN: only the chunk's last token, written to row 0.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;
layout(binding = 0) readonly buffer Input { vec4 x[]; };
layout(binding = 1) readonly buffer Weight { vec4 weight[]; };
layout(binding = 2) writeonly buffer Output { vec4 y[]; };
#define PARAMS_BINDING 3
#include "params.glsl"

layout(push_constant) uniform Push {
    uint width;   // elements that are normed
    uint x_token; // elements between two tokens' inputs
    uint y_token;
    float eps;
};

void main() {
    uint token = gl_WorkGroupID.x;
    if (token >= n_tokens) return;
#ifdef LAST_TOKEN
    uint source = (n_tokens - 1u) * x_token / 4u;
#else
    uint source = token * x_token / 4u;
#endif
    uint target = token * y_token / 4u;
    float squares = 0.0;
    for (uint i = gl_SubgroupInvocationID; i < width / 4u; i += gl_SubgroupSize) squares += dot(x[source + i], x[source + i]);
    float scale = inversesqrt(subgroupAdd(squares) / float(width) + eps);
    for (uint i = gl_SubgroupInvocationID; i < width / 4u; i += gl_SubgroupSize)
        y[target + i] = x[source + i] * scale * weight[i];
}
