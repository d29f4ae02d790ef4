// Push constants of expert_choice.glsl, within a block of them.
    uint used;
    uint always;       // shared experts behind the routed ones
    uint sigmoid_gate; // 1: sigmoid, 0: softmax
    uint normalise;    // 1: the chosen weights are divided by their sum
    float scale;
    uint groups_used;
    uint group_best;   // of a group's experts, whose scores are summed: 1 or 2
