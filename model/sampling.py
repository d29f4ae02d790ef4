"""Choosing the next token from logits, on the host.

The steps and their order are those of llama.cpp's default chain (common/sampling.cpp and ``samplers`` in
common/common.h): logit bias, penalties, top-k, top-p, min-p, temperature, a draw.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vkbackend.errors import DeviceError, InputError


@dataclass(frozen=True)
class SamplingParams:
    """How to choose. ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch their filter off.

    A token among the last ``repeat_last_n`` (0: none, -1: all, the prompt's included) has its logit divided by
    ``repeat_penalty`` where it is positive and multiplied elsewhere, and lowered by ``presence_penalty`` and by
    ``frequency_penalty`` for each time that it is there. ``logit_bias`` is added to the logits of its ids, minus
    infinity forbids them. ``seed`` None draws a fresh one. Raises InputError naming the first value that is out of
    range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature is {self.temperature}: give a number of 0 (greedy) or more")
        if self.top_k < 0:
            raise InputError(f"top-k is {self.top_k}: give a whole number of tokens, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p is {self.top_p}: give a probability above 0 and up to 1 (1 keeps all)")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min-p is {self.min_p}: give a share of the best token's probability, 0 (keeps all) to 1")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed is {self.seed}: give a whole number of 0 or more")
        if not (math.isfinite(self.repeat_penalty) and self.repeat_penalty > 0):
            raise InputError(f"repeat penalty is {self.repeat_penalty}: give a number above 0 (1 changes nothing)")
        if self.repeat_last_n < -1:
            raise InputError(f"repeat last n is {self.repeat_last_n}: give a number of tokens, 0 for none, -1 for all")
        for name in ("presence", "frequency"):
            value = getattr(self, f"{name}_penalty")
            if not math.isfinite(value):
                raise InputError(f"{name} penalty is {value}: give a number (0 changes nothing)")
        for token, bias in self.logit_bias.items():
            if math.isnan(bias) or bias == math.inf:
                raise InputError(f"logit bias of token {token} is {bias}: give a number, or -inf to forbid the token")

    @property
    def penalises(self) -> bool:
        """Whether earlier tokens change the choice."""
        neutral = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty) == (1.0, 0.0, 0.0)
        return self.repeat_last_n != 0 and not neutral

    @property
    def candidates(self) -> int:
        """How many of the likeliest tokens the choice depends on, where it is untouched logits that are drawn from; 0:
        perhaps on all."""
        return self.top_k if self.temperature > 0 and not self.penalises and not self.logit_bias else 0

    @property
    def on_device(self) -> bool:
        """Whether this is the greedy choice among untouched logits, which the device makes."""
        return self.temperature == 0 and not self.penalises and not self.logit_bias


def adjusted(
    logits: NDArray[np.floating], params: SamplingParams, counts: Mapping[int, int], n_tokens: int | None = None
) -> NDArray[np.float64]:
    """Logits after bias and penalties. [n_vocab] -> float64 [n_vocab].

    ``counts``: how often each token is among those that the penalties look at. From ``n_tokens`` on no id has a token
    (a padded vocabulary): those become minus infinity.
    """
    x = np.array(logits, np.float64)
    for token, bias in params.logit_bias.items():
        x[token] += bias
    if params.penalises and counts:
        ids = np.fromiter(counts.keys(), np.int64, len(counts))
        times = np.fromiter(counts.values(), np.int64, len(counts))
        seen = x[ids]
        seen = np.where(seen <= 0, seen * params.repeat_penalty, seen / params.repeat_penalty)
        x[ids] = seen - times * params.frequency_penalty - params.presence_penalty
    if n_tokens is not None:
        x[n_tokens:] = -np.inf
    return x


def distribution(
    logits: NDArray[np.floating], params: SamplingParams, ids: NDArray[np.integer] | None = None
) -> NDArray[np.float64]:
    """The probabilities that the filters and the temperature give each token; bias and penalties are ``adjusted``'s.

    logits [n_vocab] -> float64 [n_vocab], summing to 1. Top-k, top-p and min-p act on the untempered probabilities,
    then the temperature on what is left, so a high temperature never lets in a token that the filters refused. Each
    filter keeps at least the best token; equal logits rank by id, lowest first. ``ids`` are those of the logits where
    they are not all. Raises DeviceError on NaN or +inf logits: the device computed garbage.
    """
    x = np.asarray(logits, np.float64)
    broken = np.flatnonzero(np.isnan(x) | (x == np.inf))
    if broken.size or not np.any(np.isfinite(x)):
        where = int(broken[0]) if broken.size else 0
        token = where if ids is None or not ids.size else int(ids[where])
        raise DeviceError(
            f"logit of token {token} is {x[where]}, expected a finite number: the device's results are unusable; "
            "check the file's hash, or choose another --device"
        )
    out = np.zeros_like(x)
    if params.temperature == 0:
        out[np.argmax(x)] = 1.0
        return out
    order = _kept(x, params)
    # Taken from the logits again: powers of small probabilities would underflow.
    tempered = np.exp((x[order] - x.max()) / params.temperature)
    out[order] = tempered / tempered.sum()
    return out


def _kept(x: NDArray[np.float64], params: SamplingParams) -> NDArray[np.int64]:
    """Ids that the filters leave."""
    best = x.max()
    if not params.top_k and params.top_p == 1:  # nothing depends on the order
        return np.flatnonzero(np.exp(x - best) >= params.min_p)
    order = _ranked(x, params.top_k or x.size)
    kept = np.exp(x[order] - best)  # the best token has 1
    kept /= kept.sum()
    if params.top_p < 1:
        # The smallest set whose probability reaches top_p: a token stays if those before it fall short.
        before = np.concatenate(([0.0], np.cumsum(kept)[:-1]))
        kept = kept[before < params.top_p]
    return order[: np.count_nonzero(kept >= params.min_p * kept[0])]


def _ranked(x: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Ids of the ``count`` largest entries, best first, ties by id. Sorts only those that reach the last place."""
    if count >= x.size:
        return np.argsort(-x, kind="stable")
    candidates = np.flatnonzero(x >= np.partition(x, x.size - count)[x.size - count])
    return candidates[np.argsort(-x[candidates], kind="stable")][:count]


class Sampler:
    """Draws tokens by ``params``; one seeded generator for the whole text, so a seed repeats a text."""

    def __init__(self, params: SamplingParams, n_tokens: int | None = None) -> None:
        """``n_tokens``: ids from there on have no token and are never chosen.

        Raises InputError when a logit bias is for an id beyond them.
        """
        for token in params.logit_bias:
            if n_tokens is not None and not 0 <= token < n_tokens:
                raise InputError(
                    f"logit bias of token {token}: the vocabulary has no such token; give ids from 0 to {n_tokens - 1}"
                )
        self.params = params
        self._n_tokens = n_tokens
        self._random = np.random.default_rng(params.seed)
        self._recent: deque[int] = deque()
        self._counts: Counter[int] = Counter()

    def accept(self, tokens: Iterable[int]) -> None:
        """Tokens that now stand in the text, the prompt's too: what the penalties look at."""
        if not self.params.penalises:
            return
        for token in tokens:
            self._recent.append(token)
            self._counts[token] += 1
            if len(self._recent) > self.params.repeat_last_n >= 0:
                oldest = self._recent.popleft()
                self._counts[oldest] -= 1
                if not self._counts[oldest]:
                    del self._counts[oldest]

    def __call__(self, logits: NDArray[np.floating]) -> int:
        """The next token, not accepted yet. logits [n_vocab]. Raises DeviceError as ``distribution`` does."""
        p = distribution(adjusted(logits, self.params, self._counts, self._n_tokens), self.params)
        if self.params.temperature == 0:
            return int(np.argmax(p))
        return self._draw(np.arange(p.size), p)

    def among(self, ids: NDArray[np.integer], logits: NDArray[np.floating]) -> int:
        """The token that all logits would have given, from those of ``ids`` [n], ascending, among which are the
        ``params.candidates`` likeliest. Raises DeviceError as ``distribution`` does."""
        return self._draw(ids, distribution(logits, self.params, ids))

    def _draw(self, ids: NDArray[np.integer], p: NDArray[np.float64]) -> int:
        possible = np.flatnonzero(p)
        return int(self._random.choice(ids[possible], p=p[possible]))
