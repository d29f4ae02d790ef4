#version 450
// x[t] += sum over slots of weight * expert output, plus the shared expert's output.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require

layout(local_size_x_id = 0) in;
layout(binding = 0) readonly buffer Routed { vec4 routed[]; };  // [token][used][width]
layout(binding = 1) readonly buffer Weights { float weights[]; }; // [token][used]
layout(binding = 2) readonly buffer Shared { vec4 shared_out[]; }; // [token][width]
layout(binding = 3) buffer Residual { vec4 x[]; };
#define PARAMS_BINDING 4
#include "params.glsl"

layout(push_constant) uniform Push {
    uint width; // elements, a multiple of 4
    uint used;
    uint has_shared;
};

void main() {
    uint token = gl_WorkGroupID.y, quads = width / 4u;
    uint i = gl_WorkGroupID.x * gl_SubgroupSize + gl_SubgroupInvocationID;
    if (token >= n_tokens || i >= quads) return;
    vec4 sum = has_shared != 0u ? shared_out[token * quads + i] : vec4(0.0);
    for (uint k = 0u; k < used; k++) sum += weights[token * used + k] * routed[(token * used + k) * quads + i];
    x[token * quads + i] += sum;
}
