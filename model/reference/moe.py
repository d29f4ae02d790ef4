"""Feed-forward layers: the dense gated one, and routed experts beside a shared one. Letters: see ops.py."""

from collections.abc import Callable

import numpy as np

from model.config import ModelConfig
from model.reference.ops import Floats, linear, route, silu

Weight = Callable[[str], Floats]
ExpertWeight = Callable[[str, int], Floats]  # stacked tensor's name, expert id -> that expert's matrix


def gated_ffn(x: Floats, gate: Floats, up: Floats, down: Floats) -> Floats:
    """``down(silu(gate x) * up x)``. x [T, D], gate and up [F, D], down [D, F] -> [T, D]."""
    return linear(silu(linear(x, gate)) * linear(x, up), down)


def routed_experts(x: Floats, ids: np.ndarray, weights: Floats, expert: ExpertWeight) -> Floats:
    """Sum over each token's K experts of weight times expert. x [T, D], ids and weights [T, K] -> [T, D].

    Each chosen expert is fetched once, whatever the number of tokens that chose it; others are never fetched.
    """
    out = np.zeros_like(x)
    for e in np.unique(ids):
        tokens, slots = np.nonzero(ids == e)
        matrices = (expert(name, int(e)) for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"))
        out[tokens] += weights[tokens, slots, None] * gated_ffn(x[tokens], *matrices)
    return out


def moe_ffn(
    x: Floats, logits: Floats, weight: Weight, expert: ExpertWeight, bias: Floats | None, config: ModelConfig
) -> Floats:
    """Routed experts chosen by ``logits`` [T, E], plus the shared expert unscaled. x [T, D] -> [T, D]."""
    ids, weights = route(logits, bias, config)
    out = routed_experts(x, ids, weights, expert)
    if config.n_expert_shared:
        out = out + gated_ffn(x, weight("ffn_gate_shexp"), weight("ffn_up_shexp"), weight("ffn_down_shexp"))
    return out
