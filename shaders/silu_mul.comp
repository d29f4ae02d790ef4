#version 450
// gate = silu(gate) * up, elementwise, for per_token values of each token.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require

layout(local_size_x_id = 0) in;
layout(binding = 0) buffer Gate { vec4 gate[]; };
layout(binding = 1) readonly buffer Up { vec4 up[]; };
#define PARAMS_BINDING 2
#include "params.glsl"

layout(push_constant) uniform Push {
    uint per_token; // elements, a multiple of 4
};

void main() {
    uint token = gl_WorkGroupID.y;
    uint i = gl_WorkGroupID.x * gl_SubgroupSize + gl_SubgroupInvocationID;
    if (token >= n_tokens || i >= per_token / 4u) return;
    uint at = token * (per_token / 4u) + i;
    gate[at] = gate[at] / (1.0 + exp(-gate[at])) * up[at];
}
