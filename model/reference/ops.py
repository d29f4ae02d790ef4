"""The pure operations of the forward pass, each the oracle of one kernel.

Shape letters used here and in every file of this package:
T tokens of the step, n tokens in the cache (the step's own included), D n_embd, H heads, R kv_lora, N qk_nope,
P qk_rope, V v_head, E routed experts, K experts used per token, F width of a feed-forward.

Every function keeps the floating-point type of its first argument (float32 in use, float64 to measure rounding) and
writes to none of its arguments.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.config import GROUP_BEST

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


class RoutingConfig(Protocol):
    """The part of ``ModelConfig`` that routing reads."""

    @property
    def n_expert_used(self) -> int: ...
    @property
    def gating(self) -> str: ...
    @property
    def norm_topk(self) -> bool: ...
    @property
    def expert_scale(self) -> float: ...
    @property
    def n_group(self) -> int: ...
    @property
    def n_group_used(self) -> int: ...


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis. x [..., D], weight [D] -> [..., D]."""
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return (x / np.sqrt(mean_square + x.dtype.type(eps)) * weight).astype(x.dtype, copy=False)


def linear(x: Floats, weight: Floats) -> Floats:
    """``x @ weight.T``: GGUF keeps a matrix as [out, in]. x [..., in], weight [out, in] -> [..., out]."""
    return x @ weight.T


def sigmoid(x: Floats) -> Floats:
    """``1 / (1 + exp(-x))``, without overflow for large negative x. Any shape."""
    small = np.exp(-np.abs(x))  # in (0, 1]
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype, copy=False)


def silu(x: Floats) -> Floats:
    """``x * sigmoid(x)``. Any shape."""
    return x * sigmoid(x)


def softmax(x: Floats) -> Floats:
    """Softmax over the last axis, the maximum subtracted first. Entries of -inf get weight 0. [..., n] -> [..., n]."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def rope(x: Floats, positions: Ints, frequencies: NDArray[np.float64], magnitude: float = 1.0) -> Floats:
    """Rotate adjacent pairs (x[2i], x[2i+1]) by ``positions * frequencies[i]``, GGUF deepseek2's convention.

    x [T, ..., P], positions [T], frequencies [P/2] -> [T, ..., P]. Angles are float64 and only their cosine and sine
    are rounded: a float32 angle is off by 0.01 rad at position 200,000.
    """
    angle = np.asarray(positions, np.float64)[:, None] * frequencies
    angle = angle.reshape(angle.shape[0], *([1] * (x.ndim - 2)), angle.shape[1])
    cos, sin = ((magnitude * f(angle)).astype(x.dtype) for f in (np.cos, np.sin))
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


def gate_scores(logits: Floats, gating: str) -> Floats:
    """Router probabilities, each expert by itself ("sigmoid") or over all experts ("softmax"). [T, E] -> [T, E]."""
    return sigmoid(logits) if gating == "sigmoid" else softmax(logits)


def group_scores(selection: Floats, config: RoutingConfig) -> Floats:
    """How good each group of E / n_group neighbouring experts is, by selection scores [T, E] -> [T, n_group].

    As the models' authors have it: the sum of a group's two best in DeepSeek-V3 (sigmoid gate, "noaux_tc"), its one
    best in DeepSeek-V2 (softmax gate, "group_limited_greedy": modeling_deepseek.py of deepseek-ai/DeepSeek-V2, and
    transformers' DeepseekV2TopkRouter). llama.cpp sums two for both, and so may choose other groups for DeepSeek-V2.
    """
    groups = selection.reshape(selection.shape[0], config.n_group, -1)
    return np.sort(groups, axis=-1)[..., -GROUP_BEST[config.gating] :].sum(axis=-1)


def _allowed_experts(selection: Floats, config: RoutingConfig) -> NDArray[np.bool_]:
    """Group-limited selection: only the experts of the ``n_group_used`` best groups. [T, E] -> bool [T, E]."""
    n_tokens, n_expert = selection.shape
    if config.n_group <= 1:
        return np.ones((n_tokens, n_expert), bool)
    best = np.argsort(-group_scores(selection, config), axis=-1, kind="stable")[:, : config.n_group_used]
    allowed = np.zeros((n_tokens, config.n_group), bool)
    np.put_along_axis(allowed, best, True, axis=-1)
    return np.repeat(allowed, n_expert // config.n_group, axis=-1)


def route(logits: Floats, bias: Floats | None, config: RoutingConfig) -> tuple[Ints, Floats]:
    """Choose K experts a token. logits [T, E], bias [E] or None -> (ids [T, K] int64, weights [T, K]), best first.

    The bias (``exp_probs_b``) only selects: weights come from the unbiased scores, are divided by their sum where the
    config says ``norm_topk``, and are then multiplied by ``expert_scale``. Ties go to the lower expert id.
    """
    scores = gate_scores(logits, config.gating)
    selection = scores if bias is None else scores + bias
    selection = np.where(_allowed_experts(selection, config), selection, -np.inf)
    ids = np.argsort(-selection, axis=-1, kind="stable")[:, : config.n_expert_used]
    weights = np.take_along_axis(scores, ids, axis=-1)
    if config.norm_topk:
        # 1e-20 is DeepSeek's guard against a sum of zero; it changes no other sum in float32.
        weights = weights / (np.sum(weights, axis=-1, keepdims=True) + scores.dtype.type(1e-20))
    return ids, (weights * scores.dtype.type(config.expert_scale)).astype(logits.dtype, copy=False)


def routing_margin(logits: Floats, bias: Floats | None, config: RoutingConfig) -> Floats:
    """How far each token is from choosing other experts: last chosen minus first refused selection score. -> [T].

    Two implementations whose router scores differ by less than half of this choose alike; tests draw prompts by it.
    With groups the margin between the last chosen and first refused group counts too. All experts used: inf.
    """
    scores = gate_scores(logits, config.gating)
    selection = scores if bias is None else scores + bias
    margin = np.full(selection.shape[0], np.inf, selection.dtype)
    if 1 <= config.n_group_used < config.n_group:
        group_score = np.sort(group_scores(selection, config), axis=-1)[:, ::-1]
        margin = np.minimum(margin, group_score[:, config.n_group_used - 1] - group_score[:, config.n_group_used])
    selection = np.where(_allowed_experts(selection, config), selection, -np.inf)
    if config.n_expert_used < selection.shape[1]:
        ordered = np.sort(selection, axis=-1)[:, ::-1]
        margin = np.minimum(margin, ordered[:, config.n_expert_used - 1] - ordered[:, config.n_expert_used])
    return margin
