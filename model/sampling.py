"""Choosing the next token from logits, on the host."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vkbackend.errors import DeviceError, InputError


@dataclass(frozen=True)
class SamplingParams:
    """How to choose. ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch their filter off.

    ``seed`` None draws a fresh one. Raises InputError naming the first value that is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

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


def distribution(logits: NDArray[np.floating], params: SamplingParams) -> NDArray[np.float64]:
    """The probabilities that ``params`` gives each token. logits [n_vocab] -> float64 [n_vocab], summing to 1.

    llama.cpp's order: top-k, top-p and min-p act on the untempered probabilities, then the temperature on what is left,
    so a high temperature never lets in a token that the filters refused. Each filter keeps at least the best token;
    equal logits rank by id, lowest first. Raises DeviceError on NaN or +inf logits: the device computed garbage.
    """
    x = np.asarray(logits, np.float64)
    broken = np.flatnonzero(np.isnan(x) | (x == np.inf))
    if broken.size or not np.any(np.isfinite(x)):
        where = int(broken[0]) if broken.size else 0
        raise DeviceError(
            f"logit of token {where} is {x[where]}, expected a finite number: the device's results are unusable; "
            "check the file's hash, or choose another --device"
        )
    out = np.zeros_like(x)
    if params.temperature == 0:
        out[np.argmax(x)] = 1.0
        return out
    order = _ranked(x, params.top_k or x.size)
    kept = np.exp(x[order] - x[order[0]])  # the best token has 1
    kept /= kept.sum()
    if params.top_p < 1:
        # The smallest set whose probability reaches top_p: a token stays if those before it fall short.
        before = np.concatenate(([0.0], np.cumsum(kept)[:-1]))
        kept = kept[before < params.top_p]
    kept = kept[kept >= params.min_p * kept[0]]
    order = order[: kept.size]
    # Taken from the logits again: powers of small probabilities would underflow.
    tempered = np.exp((x[order] - x[order[0]]) / params.temperature)
    out[order] = tempered / tempered.sum()
    return out


def _ranked(x: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Ids of the ``count`` largest entries, best first, ties by id. Sorts only those that reach the last place."""
    if count >= x.size:
        return np.argsort(-x, kind="stable")
    candidates = np.flatnonzero(x >= np.partition(x, x.size - count)[x.size - count])
    return candidates[np.argsort(-x[candidates], kind="stable")][:count]


class Sampler:
    """Draws tokens by ``params``; one seeded generator for the whole text, so a seed repeats a text."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._random = np.random.default_rng(params.seed)

    def __call__(self, logits: NDArray[np.floating]) -> int:
        """The next token. logits [n_vocab]. Raises DeviceError as ``distribution`` does."""
        p = distribution(logits, self.params)
        if self.params.temperature == 0:
            return int(np.argmax(p))
        possible = np.flatnonzero(p)
        return int(self._random.choice(possible, p=p[possible]))
