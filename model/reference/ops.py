"""The pure operations of the forward pass, each the oracle of one kernel.

Shape letters used here and in every file of this package:
T tokens of the step, n tokens in the cache (the step's own included), D n_embd, H heads, R kv_lora, N qk_nope,
P qk_rope, V v_head, E routed experts, K experts used per token, F width of a feed-forward.

Every function keeps the floating-point type of its first argument (float32 in use, float64 to measure rounding) and
writes to none of its arguments.
"""

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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


def rope_frequencies(n_rope: int, theta: float) -> NDArray[np.float64]:
    """Radians per position of each adjacent pair: ``theta^(-2i/P)``, i = 0..P/2-1. -> [P/2]."""
    return theta ** (-np.arange(0, n_rope, 2, dtype=np.float64) / n_rope)


def yarn_frequencies(
    n_rope: int, theta: float, factor: float, n_ctx_orig: int, beta_fast: float = 32.0, beta_slow: float = 1.0
) -> NDArray[np.float64]:
    """YaRN (arXiv 2309.00071, "NTK by parts"): low frequencies divided by ``factor``, high ones kept. -> [P/2].

    A pair that turns more than ``beta_fast`` times within ``n_ctx_orig`` positions is kept, fewer than ``beta_slow``
    times is interpolated, a linear ramp between; the ramp's ends are floored and ceiled, as DeepSeek's code and
    llama.cpp do.
    """

    def pair_turning(turns: float) -> float:
        return n_rope * math.log(n_ctx_orig / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(0, math.floor(pair_turning(beta_fast)))
    high = min(n_rope - 1, math.ceil(pair_turning(beta_slow)))
    ramp = np.clip((np.arange(n_rope // 2) - low) / max(0.001, high - low), 0.0, 1.0)
    kept = rope_frequencies(n_rope, theta)
    return kept / factor * ramp + kept * (1 - ramp)


def rope(x: Floats, positions: Ints, frequencies: NDArray[np.float64]) -> Floats:
    """Rotate adjacent pairs (x[2i], x[2i+1]) by ``positions * frequencies[i]``, GGUF deepseek2's convention.

    x [T, ..., P], positions [T], frequencies [P/2] -> [T, ..., P]. Angles are float64 and only their cosine and sine
    are rounded: a float32 angle is off by 0.01 rad at position 200,000.
    """
    angle = np.asarray(positions, np.float64)[:, None] * frequencies
    angle = angle.reshape(angle.shape[0], *([1] * (x.ndim - 2)), angle.shape[1])
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


def gate_scores(logits: Floats, gating: str) -> Floats:
    """Router probabilities, each expert by itself ("sigmoid") or over all experts ("softmax"). [T, E] -> [T, E]."""
    return sigmoid(logits) if gating == "sigmoid" else softmax(logits)


def _allowed_experts(selection: Floats, n_group: int, n_group_used: int) -> NDArray[np.bool_]:
    """Group-limited selection: only the experts of the ``n_group_used`` best groups. [T, E] -> bool [T, E].

    A group is E / n_group neighbouring experts; its score is the sum of its two best selection scores (DeepSeek-V3).
    """
    n_tokens, n_expert = selection.shape
    if n_group <= 1:
        return np.ones((n_tokens, n_expert), bool)
    groups = selection.reshape(n_tokens, n_group, n_expert // n_group)
    group_score = np.sort(groups, axis=-1)[..., -2:].sum(axis=-1)
    best = np.argsort(-group_score, axis=-1, kind="stable")[:, :n_group_used]
    allowed = np.zeros((n_tokens, n_group), bool)
    np.put_along_axis(allowed, best, True, axis=-1)
    return np.repeat(allowed, n_expert // n_group, axis=-1)


def route(logits: Floats, bias: Floats | None, config: RoutingConfig) -> tuple[Ints, Floats]:
    """Choose K experts a token. logits [T, E], bias [E] or None -> (ids [T, K] int64, weights [T, K]), best first.

    The bias (``exp_probs_b``) only selects: weights come from the unbiased scores, are divided by their sum where the
    config says ``norm_topk``, and are then multiplied by ``expert_scale``. Ties go to the lower expert id.
    """
    scores = gate_scores(logits, config.gating)
    selection = scores if bias is None else scores + bias
    selection = np.where(_allowed_experts(selection, config.n_group, config.n_group_used), selection, -np.inf)
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
        groups = selection.reshape(selection.shape[0], config.n_group, -1)
        group_score = np.sort(np.sort(groups, axis=-1)[..., -2:].sum(axis=-1), axis=-1)[:, ::-1]
        margin = np.minimum(margin, group_score[:, config.n_group_used - 1] - group_score[:, config.n_group_used])
    selection = np.where(_allowed_experts(selection, config.n_group, config.n_group_used), selection, -np.inf)
    if config.n_expert_used < selection.shape[1]:
        ordered = np.sort(selection, axis=-1)[:, ::-1]
        margin = np.minimum(margin, ordered[:, config.n_expert_used - 1] - ordered[:, config.n_expert_used])
    return margin
