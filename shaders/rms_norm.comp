#version 450
// y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight, one subgroup a token. A lane keeps its HELD vec4s of x, as many as
// the width needs: they are loaded once and together, where the loops that serve any width (HELD 0) wait for each load.
// LAST_TOKEN: only the chunk's last token, written to row 0.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint HELD = 8;
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
    uint lane = gl_SubgroupInvocationID, quads = width / 4u;
    float squares = 0.0;
    vec4 held[HELD == 0u ? 1u : HELD];
    [[unroll]] for (uint i = 0u; i < HELD; i++) {
        uint at = lane + i * gl_SubgroupSize;
        vec4 v = x[source + min(at, quads - 1u)]; // a load under a condition would wait for the one before
        held[i] = at < quads ? v : vec4(0.0);
        squares += dot(held[i], held[i]);
    }
    for (uint i = lane; HELD == 0u && i < quads; i += gl_SubgroupSize) squares += dot(x[source + i], x[source + i]);
    float scale = inversesqrt(subgroupAdd(squares) / float(width) + eps);
    [[unroll]] for (uint i = 0u; i < HELD; i++)
        held[i] *= scale * weight[min(lane + i * gl_SubgroupSize, quads - 1u)];
    [[unroll]] for (uint i = 0u; i < HELD; i++) {
        uint at = lane + i * gl_SubgroupSize;
        if (at < quads) y[target + at] = held[i];
    }
    for (uint i = lane; HELD == 0u && i < quads; i += gl_SubgroupSize)
        y[target + i] = x[source + i] * scale * weight[i];
}
