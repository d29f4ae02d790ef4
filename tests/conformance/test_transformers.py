"""The oracle against Hugging Face transformers (5.x), an implementation by others. Skipped where it is not installed.

Random weights go into both. Epsilon is 1e-6, which transformers fixes for the q_a and kv_a norms.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.config import ModelConfig, Yarn
from model.reference import PATHS, Reference
from tests.null.random_model import BASE, random_tokens, random_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Odd sizes stay odd where transformers allows it: it wants a hidden size that is a multiple of the heads, and even rows
# for its complex rope.
COMMON = replace(BASE, n_embd=55, n_expert=12, kv_lora=24, qk_nope=8, rms_eps=1e-6)
CASES: dict[str, tuple[str, ModelConfig]] = {
    "glm-4.7-flash": ("Glm4MoeLite", replace(COMMON, rope_theta=1e6)),
    "deepseek-v3": (
        "DeepseekV3",
        replace(COMMON, n_group=4, n_group_used=2, expert_scale=2.5, yarn=Yarn(40.0, 16, log_multiplier=0.1)),
    ),
    "deepseek-v2-lite": (
        "DeepseekV2",
        replace(
            COMMON,
            q_lora=0,
            gating="softmax",
            norm_topk=False,
            expert_scale=1.0,
            expert_bias=False,
            n_expert_shared=2,
            yarn=Yarn(40.0, 16, log_multiplier=0.0707),
        ),
    ),
}

BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}


def their_config(family: str, c: ModelConfig) -> Any:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.yarn is not None:
        all_dim = c.yarn.log_multiplier / 0.1
        rope = {
            "rope_type": "yarn",
            "rope_theta": c.rope_theta,
            "factor": c.yarn.factor,
            "original_max_position_embeddings": c.yarn.n_ctx_orig,
            "beta_fast": c.yarn.beta_fast,
            "beta_slow": c.yarn.beta_slow,
            "mscale": all_dim,
            "mscale_all_dim": all_dim,
        }
    config = getattr(transformers, f"{family}Config")(
        vocab_size=c.n_vocab,
        hidden_size=c.n_embd,
        intermediate_size=c.n_ff,
        moe_intermediate_size=c.n_ff_exp,
        num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head,
        num_key_value_heads=c.n_head,
        kv_lora_rank=c.kv_lora,
        q_lora_rank=c.q_lora or None,
        qk_nope_head_dim=c.qk_nope,
        qk_rope_head_dim=c.qk_rope,
        v_head_dim=c.v_head,
        n_routed_experts=c.n_expert,
        num_experts_per_tok=c.n_expert_used,
        n_shared_experts=c.n_expert_shared,
        n_group=c.n_group,
        topk_group=c.n_group_used,
        norm_topk_prob=c.norm_topk,
        routed_scaling_factor=c.expert_scale,
        rms_norm_eps=c.rms_eps,
        rope_parameters=rope,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
        attn_implementation="eager",
        **({} if family == "Glm4MoeLite" else {"first_k_dense_replace": c.n_dense}),
        **({"topk_method": "greedy"} if family == "DeepseekV2" else {}),
    )
    config._experts_implementation = "eager"  # the grouped kernel wants widths of multiples of 16 bytes
    return config


def their_weights(weights: dict[str, np.ndarray], c: ModelConfig) -> dict[str, np.ndarray]:
    """The same numbers under transformers' names: kv_b joined again, gate and up of the experts stacked."""
    out = {
        "model.embed_tokens.weight": weights["token_embd.weight"],
        "model.norm.weight": weights["output_norm.weight"],
        "lm_head.weight": weights["output.weight"],
    }
    for i in range(c.n_layer):
        ours, theirs = f"blk.{i}.", f"model.layers.{i}."
        for name, their_name in BLOCK.items():
            if f"{ours}{name}.weight" in weights:
                out[f"{theirs}{their_name}.weight"] = weights[f"{ours}{name}.weight"]
        k_b, v_b = weights[f"{ours}attn_k_b.weight"], weights[f"{ours}attn_v_b.weight"]
        joint = np.concatenate([k_b.transpose(0, 2, 1), v_b], axis=1)
        out[f"{theirs}self_attn.kv_b_proj.weight"] = joint.reshape(-1, c.kv_lora)
        if c.is_moe(i):
            gate, up = weights[f"{ours}ffn_gate_exps.weight"], weights[f"{ours}ffn_up_exps.weight"]
            out[f"{theirs}mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
            out[f"{theirs}mlp.experts.down_proj"] = weights[f"{ours}ffn_down_exps.weight"]
            if c.expert_bias:
                out[f"{theirs}mlp.gate.e_score_correction_bias"] = weights[f"{ours}exp_probs_b.bias"]
    return out


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_logits_are_those_of_transformers(name: str, seed: int) -> None:
    family, config = CASES[name]
    weights = random_weights(config, seed)
    model = getattr(transformers, f"{family}ForCausalLM")(their_config(family, config)).eval().float()
    slots = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    theirs = their_weights(weights, config)
    assert {n for n in slots if "inv_freq" not in n} == set(theirs)
    ours = Reference(weights, config)
    tokens = random_tokens(config, 40, seed)
    while ours.routing_margins(tokens).min() < 1e-4:  # nearer, rounding may choose other experts
        tokens = random_tokens(config, 40, tokens[0] + 1000 * tokens[1])
    with torch.no_grad():
        for n, values in theirs.items():
            assert tuple(slots[n].shape) == values.shape, n
            slots[n].copy_(torch.from_numpy(values))
        want = model(torch.tensor([tokens])).logits[0].numpy()
    for path in PATHS:
        got = ours.logits(tokens, path)
        difference = float(np.abs(got - want).max() / np.abs(want).max())
        print(f"{name} seed {seed} {path}: {difference:.2e} of the largest logit")
        assert difference < 1e-5
