"""Random models of any shape, in memory: what the reference and the kernels are tested on."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from model.config import ModelConfig, Yarn, expected_tensors

# Awkward on purpose: primes and odd numbers wherever the architecture allows one.
BASE = ModelConfig(
    name="random",
    n_layer=3,
    n_dense=1,
    n_embd=53,
    n_vocab=101,
    n_head=5,
    q_lora=19,
    kv_lora=23,
    qk_nope=7,
    qk_rope=6,
    v_head=11,
    n_ff=71,
    n_expert=9,
    n_expert_used=3,
    n_expert_shared=1,
    n_ff_exp=13,
    gating="sigmoid",
    norm_topk=True,
    expert_scale=1.8,
    rope_theta=1e4,
    rms_eps=1e-5,
    n_ctx_train=512,
)

CONFIGS = {
    "glm": BASE,
    "lite": replace(
        BASE, q_lora=0, gating="softmax", norm_topk=False, expert_scale=1.0, expert_bias=False, n_expert_shared=2
    ),
    "grouped": replace(BASE, n_expert=24, n_group=6, n_group_used=2, n_expert_used=5, n_dense=0),
    "yarn": replace(BASE, yarn=Yarn(factor=40.0, n_ctx_orig=16, log_multiplier=0.0707)),
    "joint-kv-b": replace(BASE, split_kv_b=False),
    "fused": replace(BASE, fused_gate_up=True),
    "tied": replace(BASE, tied_output=True, n_dense=3),
    "one-head": replace(BASE, n_head=1, n_expert_used=9, n_expert_shared=0),
}


def random_weights(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Float32 weights that keep activations near unit size, with norms and a selection bias that matter."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_tensors(config).items():
        values = random.standard_normal(shape)
        if name.endswith("_norm.weight"):
            values = 1 + 0.3 * values
        elif name.endswith("exp_probs_b.bias"):
            values = 0.2 * values
        elif name != "token_embd.weight":
            values = values / np.sqrt(shape[-1])
        weights[name] = values.astype(np.float32)
    return weights


def random_tokens(config: ModelConfig, n_tokens: int, seed: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, config.n_vocab, n_tokens)]


def models(seeds: int = 1) -> Iterator[tuple[str, ModelConfig, dict[str, np.ndarray]]]:
    """Every config of ``CONFIGS`` with ``seeds`` draws of weights."""
    for name, config in CONFIGS.items():
        for seed in range(seeds):
            yield name, config, random_weights(config, seed)
