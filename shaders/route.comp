#version 450
// MoE routing of one token: gate scores, top-k by score plus selection bias (the lower id wins a tie), weights from the unbiased
// scores, renormalised where the model asks for it, scaled. DeepSeek-V3 report (2024), section 2.1.2.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint PER_LANE = 8; // ceil(experts / subgroup size)

layout(binding = 0) readonly buffer Logits { float logits[]; }; // [token][expert]
layout(binding = 1) readonly buffer Bias { float bias[]; };
layout(binding = 2) writeonly buffer Chosen { uint chosen[]; };   // [token][used]
layout(binding = 3) buffer Weights { float weights[]; }; // [token][used]
#define PARAMS_BINDING 4
#include "params.glsl"

layout(push_constant) uniform Push {
    uint experts;
    uint used;
    uint sigmoid_gate; // 1: sigmoid, 0: softmax
    uint normalise;    // 1: the chosen weights are divided by their sum
    float scale;
};

const float TAKEN = -3e38;

void main() {
    uint token = gl_WorkGroupID.x;
    if (token >= n_tokens) return;
    uint lane = gl_SubgroupInvocationID;
    float score[PER_LANE], biased[PER_LANE];
    float top = -1e30;
    [[unroll]] for (uint i = 0u; i < PER_LANE; i++) {
        uint e = lane + i * gl_SubgroupSize;
        score[i] = e < experts ? logits[token * experts + e] : TAKEN;
        top = max(top, score[i]);
    }
    top = subgroupMax(top);
    float sum = 0.0;
    [[unroll]] for (uint i = 0u; i < PER_LANE; i++) {
        score[i] = sigmoid_gate != 0u ? 1.0 / (1.0 + exp(-score[i])) : exp(score[i] - top);
        sum += score[i];
    }
    float total = sigmoid_gate != 0u ? 1.0 : subgroupAdd(sum);
    [[unroll]] for (uint i = 0u; i < PER_LANE; i++) {
        uint e = lane + i * gl_SubgroupSize;
        score[i] /= total;
        biased[i] = e < experts ? score[i] + bias[e] : TAKEN;
    }
    float chosen_sum = 0.0;
    for (uint k = 0u; k < used; k++) {
        float best = TAKEN, weight = 0.0;
        uint id = 0xFFFFFFFFu;
        [[unroll]] for (uint i = 0u; i < PER_LANE; i++) {
            if (biased[i] > best) { best = biased[i]; weight = score[i]; id = lane + i * gl_SubgroupSize; }
        }
        float highest = subgroupMax(best);
        uint winner = subgroupMin(best == highest ? id : 0xFFFFFFFFu);
        float won = subgroupAdd(id == winner && best == highest ? weight : 0.0);
        chosen_sum += won;
        [[unroll]] for (uint i = 0u; i < PER_LANE; i++)
            if (lane + i * gl_SubgroupSize == winner) biased[i] = TAKEN;
        if (lane == 0u) {
            chosen[token * used + k] = winner;
            weights[token * used + k] = won;
        }
    }
    // Only lane 0 wrote these, so only lane 0 reads them back.
    if (lane == 0u) {
        // 1e-20 is DeepSeek's guard against a sum of zero; it changes no other sum in f32.
        float factor = normalise != 0u ? scale / (chosen_sum + 1e-20) : scale;
        for (uint k = 0u; k < used; k++) weights[token * used + k] *= factor;
    }
}
