"""Our weights in a Hugging Face transformers model (5.x): the conversion, names and layouts both ways known."""

from typing import Any

import numpy as np

from model.config import ModelConfig

# By the first word of a configuration's name.
FAMILIES = {"glm": "Glm4MoeLite", "v2-lite": "DeepseekV2", "v2": "DeepseekV2", "v3": "DeepseekV3"}
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


def _rope(c: ModelConfig) -> dict[str, Any]:
    if c.yarn is None:
        return {"rope_type": "default", "rope_theta": c.rope_theta}
    all_dim = c.yarn.log_multiplier / 0.1
    return {
        "rope_type": "yarn",
        "rope_theta": c.rope_theta,
        "factor": c.yarn.factor,
        "original_max_position_embeddings": c.yarn.n_ctx_orig,
        "beta_fast": c.yarn.beta_fast,
        "beta_slow": c.yarn.beta_slow,
        "mscale": all_dim,
        "mscale_all_dim": all_dim,
    }


def their_config(transformers: Any, family: str, c: ModelConfig) -> Any:
    """``c`` as the configuration class of one of FAMILIES."""
    name = FAMILIES[family.split()[0]]
    extra: dict[str, Any] = {}
    if name != "Glm4MoeLite":
        extra["first_k_dense_replace"] = c.n_dense
    else:
        extra["mlp_layer_types"] = ["sparse" if c.is_moe(i) else "dense" for i in range(c.n_layer)]
    if name == "DeepseekV2":
        extra["topk_method"] = "greedy" if c.n_group == 1 else "group_limited_greedy"
    config = getattr(transformers, f"{name}Config")(
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
        rope_parameters=_rope(c),
        max_position_embeddings=c.n_ctx_train,
        tie_word_embeddings=c.tied_output,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
        attn_implementation="eager",
        **extra,
    )
    config._experts_implementation = "eager"  # the grouped kernel wants widths of multiples of 16 bytes
    return config


def their_weights(weights: dict[str, np.ndarray], c: ModelConfig) -> dict[str, np.ndarray]:
    """The same numbers under transformers' names: kv_b joined again, gate and up of the experts stacked."""
    out = {
        "model.embed_tokens.weight": weights["token_embd.weight"],
        "model.norm.weight": weights["output_norm.weight"],
        "lm_head.weight": weights["token_embd.weight" if c.tied_output else "output.weight"],
    }
    for i in range(c.n_layer):
        ours, theirs = f"blk.{i}.", f"model.layers.{i}."
        for name, their_name in BLOCK.items():
            if f"{ours}{name}.weight" in weights:
                out[f"{theirs}{their_name}.weight"] = weights[f"{ours}{name}.weight"]
        out[f"{theirs}self_attn.kv_b_proj.weight"] = _joint_kv_b(weights, ours, c)
        if c.is_moe(i):
            out[f"{theirs}mlp.experts.gate_up_proj"] = _fused_gate_up(weights, ours, c)
            out[f"{theirs}mlp.experts.down_proj"] = weights[f"{ours}ffn_down_exps.weight"]
            if c.expert_bias:
                out[f"{theirs}mlp.gate.e_score_correction_bias"] = weights[f"{ours}exp_probs_b.bias"]
    return out


def _joint_kv_b(weights: dict[str, np.ndarray], prefix: str, c: ModelConfig) -> np.ndarray:
    if not c.split_kv_b:
        return weights[f"{prefix}attn_kv_b.weight"]
    k_b, v_b = weights[f"{prefix}attn_k_b.weight"], weights[f"{prefix}attn_v_b.weight"]
    return np.concatenate([k_b.transpose(0, 2, 1), v_b], axis=1).reshape(-1, c.kv_lora)


def _fused_gate_up(weights: dict[str, np.ndarray], prefix: str, c: ModelConfig) -> np.ndarray:
    if c.fused_gate_up:
        return weights[f"{prefix}ffn_gate_up_exps.weight"]
    return np.concatenate([weights[f"{prefix}ffn_{name}_exps.weight"] for name in ("gate", "up")], axis=1)


class TheirModel:
    """A transformers model that holds our weights; every one of its parameters must be given."""

    def __init__(self, family: str, config: ModelConfig, weights: dict[str, np.ndarray]) -> None:
        import torch
        import transformers

        self._torch = torch
        their = their_config(transformers, family, config)
        self._model = getattr(transformers, f"{FAMILIES[family.split()[0]]}ForCausalLM")(their).eval().float()
        slots = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        values = their_weights(weights, config)
        missing = {n for n in slots if "inv_freq" not in n} ^ set(values)
        if missing - ({"lm_head.weight"} if config.tied_output else set()):
            raise AssertionError(f"names that only one side has: {sorted(missing)}")
        with torch.no_grad():
            for name, array in values.items():
                if name in slots:
                    if tuple(slots[name].shape) != array.shape:
                        raise AssertionError(f"{name}: {tuple(slots[name].shape)} there, {array.shape} here")
                    slots[name].copy_(torch.from_numpy(np.array(array)))

    def logits(self, tokens: list[int]) -> np.ndarray:
        """f32 logits of every position: [T, n_vocab]."""
        with self._torch.no_grad():
            found: np.ndarray = self._model(self._torch.tensor([tokens])).logits[0].numpy()
        return found
