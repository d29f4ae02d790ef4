// The choice of a token's experts by one subgroup: gate scores, top-k by score plus selection bias (the lower id wins a
// tie), weights from the unbiased scores, renormalised where the model asks for it, scaled. DeepSeek-V3 report (2024),
// section 2.1.2. Behind them the shared experts, whose ids follow the routed ones' and whose weight is 1.
// With GROUP > 0 only experts of the best groups take part; a group's score is that of its best expert, or of its best two
// together (model/reference/ops.py, group_scores, says which model does which).
// Before it: CHOICE_CONSTANT and CHOICE_BINDING, the first ids that are free, logit_at(i) for expert i of the token, and
// push constants used, always, sigmoid_gate, normalise, scale, groups_used, group_best (choice_push.glsl).
#include "array_loop.glsl"

layout(constant_id = CHOICE_CONSTANT) const uint PER_LANE = 8;            // ceil(experts / subgroup size)
layout(constant_id = CHOICE_CONSTANT + 1) const uint GROUP = 0;           // experts a group; 0: all are one
layout(constant_id = CHOICE_CONSTANT + 2) const uint GROUPS_PER_LANE = 1; // ceil(groups / subgroup size)

layout(binding = CHOICE_BINDING) readonly buffer Bias { float bias[]; };
layout(binding = CHOICE_BINDING + 1) writeonly buffer Chosen { uint chosen[]; }; // [token][used + always]
layout(binding = CHOICE_BINDING + 2) buffer Shares { float shares[]; };          // [token][used + always]

const float TAKEN = -3e38;
const uint NONE = 0xFFFFFFFFu;
const uint WIDTH = GROUP > 0u ? GROUP : 1u; // a divisor even where there are no groups

float biased[PER_LANE]; // of experts lane, lane + subgroup size, ...
float group_score[GROUPS_PER_LANE];
bool open[PER_LANE]; // whether the expert's group is among the best

uint mine(uint i) { return gl_SubgroupInvocationID + i * gl_SubgroupSize; }

// The sum of the group's best one or two.
float score_of(uint group) {
    float first = TAKEN, second = TAKEN;
    ARRAY_LOOP for (uint i = 0u; i < PER_LANE; i++) {
        float value = mine(i) / WIDTH == group ? biased[i] : TAKEN;
        second = max(second, min(first, value));
        first = max(first, value);
    }
    float best = subgroupMax(first);
    if (group_best == 1u || GROUP == 1u) return best;
    uint holder = subgroupMin(first == best ? gl_SubgroupInvocationID : NONE); // of equal bests only one lane's is used up
    return best + subgroupMax(gl_SubgroupInvocationID == holder ? second : first);
}

void close_other_groups(uint experts) {
    ARRAY_LOOP for (uint i = 0u; i < GROUPS_PER_LANE; i++) group_score[i] = TAKEN;
    for (uint group = 0u; group * GROUP < experts; group++) {
        float score = score_of(group);
        ARRAY_LOOP for (uint i = 0u; i < GROUPS_PER_LANE; i++)
            if (mine(i) == group) group_score[i] = score;
    }
    ARRAY_LOOP for (uint i = 0u; i < PER_LANE; i++) open[i] = false;
    for (uint k = 0u; k < groups_used; k++) {
        float best = TAKEN;
        uint id = NONE;
        ARRAY_LOOP for (uint i = 0u; i < GROUPS_PER_LANE; i++)
            if (group_score[i] > best) { best = group_score[i]; id = mine(i); }
        float highest = subgroupMax(best);
        uint winner = subgroupMin(best == highest ? id : NONE);
        ARRAY_LOOP for (uint i = 0u; i < GROUPS_PER_LANE; i++)
            if (mine(i) == winner) group_score[i] = TAKEN;
        ARRAY_LOOP for (uint i = 0u; i < PER_LANE; i++)
            if (mine(i) / WIDTH == winner) open[i] = true;
    }
    ARRAY_LOOP for (uint i = 0u; i < PER_LANE; i++)
        if (!open[i]) biased[i] = TAKEN;
}

// Of `experts` experts; the first of those chosen goes to `slot`.
void choose(uint experts, uint slot) {
    float score[PER_LANE];
    float top = -1e30;
    ARRAY_LOOP for (uint i = 0u; i < PER_LANE; i++) {
        score[i] = mine(i) < experts ? logit_at(mine(i)) : TAKEN;
        top = max(top, score[i]);
    }
    top = subgroupMax(top);
    float sum = 0.0;
    ARRAY_LOOP for (uint i = 0u; i < PER_LANE; i++) {
        score[i] = sigmoid_gate != 0u ? 1.0 / (1.0 + exp(-score[i])) : exp(score[i] - top);
        sum += score[i];
    }
    float total = sigmoid_gate != 0u ? 1.0 : subgroupAdd(sum);
    ARRAY_LOOP for (uint i = 0u; i < PER_LANE; i++) {
        score[i] /= total;
        biased[i] = mine(i) < experts ? score[i] + bias[mine(i)] : TAKEN;
    }
    if (GROUP > 0u) close_other_groups(experts);
    float chosen_sum = 0.0;
    for (uint k = 0u; k < used; k++) {
        float best = TAKEN, weight = 0.0;
        uint id = NONE;
        ARRAY_LOOP for (uint i = 0u; i < PER_LANE; i++) {
            if (biased[i] > best) { best = biased[i]; weight = score[i]; id = mine(i); }
        }
        float highest = subgroupMax(best);
        uint winner = subgroupMin(best == highest ? id : NONE);
        float won = subgroupAdd(id == winner && best == highest ? weight : 0.0);
        chosen_sum += won;
        ARRAY_LOOP for (uint i = 0u; i < PER_LANE; i++)
            if (mine(i) == winner) biased[i] = TAKEN;
        if (gl_SubgroupInvocationID == 0u) {
            chosen[slot + k] = winner;
            shares[slot + k] = won;
        }
    }
    // Only lane 0 wrote these, so only lane 0 reads them back.
    if (gl_SubgroupInvocationID == 0u) {
        // 1e-20 is DeepSeek's guard against a sum of zero; it changes no other sum in f32.
        float factor = normalise != 0u ? scale / (chosen_sum + 1e-20) : scale;
        for (uint k = 0u; k < used; k++) shares[slot + k] *= factor;
        for (uint k = 0u; k < always; k++) {
            chosen[slot + used + k] = experts + k;
            shares[slot + used + k] = 1.0;
        }
    }
}
