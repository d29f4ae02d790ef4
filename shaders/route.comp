#version 450
// MoE routing of a chunk, a workgroup a token (expert_choice.glsl).
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;

layout(binding = 0) readonly buffer Logits { float logits[]; }; // [token][expert]
#define PARAMS_BINDING 4
#include "params.glsl"

layout(push_constant) uniform Push {
    uint experts;
#include "choice_push.glsl"
};

float logit_at(uint expert) { return logits[gl_WorkGroupID.x * experts + expert]; }
#define CHOICE_CONSTANT 1
#define CHOICE_BINDING 1
#include "expert_choice.glsl"

void main() {
    uint token = gl_WorkGroupID.x;
    if (token < n_tokens) choose(experts, token * (used + always));
}
