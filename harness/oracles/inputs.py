"""What products read: f32 inputs as they are, or quantised to 8 bits before, and what rounding may do to either."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.oracles.case import UNTOUCHED, Case, Draft, Expected, Target, U, anything
from model.layout import UNIT
from model.linear import View
from model.quantized_inputs import BLOCK_WORDS, quantized, quantized_words
from vkbackend.buffer import Buffer

Doubles = NDArray[np.float64]
LEAST = 2.0**-100  # largest magnitude of a block below which shaders/quantize_inputs.comp makes it zero
# Its 127 / magnitude, 2.5 units in the last place by the Vulkan specification, and the product with it.
QUANT_ERROR = 127 * 6 * U


def largest_error(weight: NDArray[np.floating], x: NDArray[np.floating]) -> Doubles:
    """What rounding may do to a product of ``weight`` [..., rows, K] and ``x`` [..., K] in f32. -> [...].

    Quants and minima are multiplied and summed apart in some forms. Formats without a minimum have |d q| = |w|; of the
    others random_blocks puts m in the middle of 0 to d q, so that |d q| + |m| is at most 3 times the largest weight. A
    sum of K terms by fours rounds at most K / 4 + 3 times; decoding and joining the two sums take at most 5 more.
    """
    return _error(weight, x, weight.shape[-1] / 4 + 8)


def _error(weight: NDArray[np.floating], x: NDArray[np.floating], roundings: float) -> Doubles:
    peak = 3 * np.abs(weight).max()
    error: Doubles = U * roundings * peak * np.abs(x).sum(axis=-1, dtype=np.float64)
    return error


def quantize(x: NDArray[np.floating]) -> Doubles:
    """``x`` [..., K] as a product by integer dot products reads it: d * q with d = max |x| / 127 of 32 columns."""
    blocks = x.reshape(*x.shape[:-1], -1, UNIT).astype(np.float64)
    d = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    found: Doubles = np.rint(np.divide(blocks, d, out=np.zeros_like(blocks), where=d > 0)) * d
    return found.reshape(x.shape)


@dataclass(frozen=True)
class Floats:
    """Inputs as they are."""

    def drawn(self, rng: np.random.Generator, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors in place of ``x`` [..., K] that the kernel is judged by; any will do."""
        return x

    def seen(self, x: Doubles) -> Doubles:
        """What is multiplied."""
        return x

    def error(self, weight: NDArray[np.floating], seen: Doubles) -> Doubles:
        return largest_error(weight, seen)

    def workspace(self, draft: Draft, elements: int) -> dict[Buffer, Expected]:
        """Nothing is kept of so many elements of inputs."""
        return {}


@dataclass(frozen=True)
class EightBits(Floats):
    """Inputs that the program quantises, drawn so that no rounding moves one to another step."""

    def drawn(self, rng: np.random.Generator, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """At most 0.4 steps from a whole number of them, the largest on it; steps of any size, some blocks all zero."""
        blocks = x.size // UNIT
        steps = rng.integers(-126, 127, (blocks, UNIT)) + rng.uniform(-0.4, 0.4, (blocks, UNIT))
        steps[np.arange(blocks), rng.integers(0, UNIT, blocks)] = rng.choice([-127.0, 127.0], blocks)
        d = 2.0 ** rng.uniform(-10, 3, (blocks, 1)) * (rng.random((blocks, 1)) < 0.9)
        return (d * steps).astype(np.float32).reshape(x.shape)

    def seen(self, x: Doubles) -> Doubles:
        return quantize(x)

    def error(self, weight: NDArray[np.floating], seen: Doubles) -> Doubles:
        """Integer sums are exact. d is rounded twice, a scaled sum of 32 columns at most three times and what a minimum
        takes from it four times; their difference is rounded, and the sum over blocks at each."""
        return _error(weight, seen, weight.shape[-1] / UNIT + 10)

    def workspace(self, draft: Draft, elements: int) -> dict[Buffer, Expected]:
        """Gives the program the workspace that such inputs take; what is in it the products judge."""
        words = quantized_words(elements)
        made = draft.program.workspace = draft.untouched(words, "workspace")
        return {made: anything(words)}


def _decoded(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Of each block its 32 quants, d, the stored sums less d times the sums of those quants, and the last word."""
    blocks = words.reshape(-1, BLOCK_WORDS)
    quants = np.ascontiguousarray(blocks[:, :8]).view(np.int8)
    floats = np.ascontiguousarray(blocks[:, 8:]).view(np.float32)
    sums = quants.reshape(-1, 2, 16).sum(axis=-1, dtype=np.int32).astype(np.float32)
    with np.errstate(all="ignore"):
        apart = floats[:, 1:3] - floats[:, :1] * sums
    return np.concatenate([quants.astype(np.float32), floats[:, :1], apart, floats[:, 3:]], axis=1)


def quantize_case(
    target: Target, rng: np.random.Generator, columns: int, vectors: int, capacity: int, n_tokens: int
) -> Case:
    """``vectors`` of each token, apart from one another: ordinary blocks, and zeros, tiny and huge numbers, infinities
    and NaNs in some."""
    draft = Draft(target.info, f"{vectors} x {columns}, {n_tokens} of {capacity} tokens")
    x_batch = columns + 12
    x_token = vectors * x_batch + 4
    x = (2.0 ** rng.uniform(-20, 20, (capacity, x_token)) * rng.standard_normal((capacity, x_token))).astype(np.float32)
    taken = np.arange(vectors)[:, None] * x_batch + np.arange(columns)
    blocks = x[:, taken].reshape(-1, UNIT)
    special = [0.0, -0.0, LEAST / 2, LEAST, 1e-42, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan]
    for value in special if len(blocks) > 1 else ():
        at = rng.integers(len(blocks))
        blocks[at, rng.integers(UNIT)] = value
        if abs(value) <= LEAST:  # all of the block, for what else is in it decides
            blocks[at] = value
    x[:, taken] = blocks.reshape(capacity, vectors, columns)
    words = quantized_words(capacity * vectors * columns)
    workspace = draft.program.workspace = draft.untouched(words, "workspace")
    view = View(draft.upload(np.concatenate([np.zeros(8, np.float32), x.reshape(-1)])), 8, x_batch, x_token)
    quantized(draft.program, view, columns, vectors, capacity, draft.params(3, n_tokens), "x")

    magnitude = np.abs(blocks).max(axis=1, keepdims=True).astype(np.float64)
    with np.errstate(all="ignore"):
        finite, zero = np.isfinite(magnitude), magnitude < LEAST
        quants = np.where(zero | ~finite, 0, 127 * (blocks / magnitude))
    tolerance = np.zeros((len(blocks), 36))
    tolerance[:, :32] = np.where(zero, 0.0, np.where(finite, 0.5 + QUANT_ERROR, np.inf))
    tolerance[:, 32:33] = np.where(finite & ~zero, 2 * U * magnitude / 127, 0.0)
    tolerance[:, 33:35] = np.where(finite, 0.0, np.inf)
    d = np.where(zero, 0, magnitude / 127)
    expected = np.concatenate([quants, d, np.zeros((len(blocks), 3))], axis=1)
    live = n_tokens * vectors * columns // UNIT
    expected[live:] = _decoded(np.full(words - live * BLOCK_WORDS, UNTOUCHED, np.uint32))
    tolerance[live:] = 0.0
    axes = ("block", "part")
    found = Expected(expected, tolerance=tolerance, axes=axes, decode=lambda w: _decoded(w[:words]), words=words)
    return draft.case({workspace: found})


def quantize_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """One block; several vectors a token; chunks that are not full; more columns than a workgroup has."""
    for columns, vectors, capacity, n_tokens in ((32, 1, 1, 1), (64, 3, 5, 2), (1536, 2, 4, 4)):
        yield quantize_case(target, rng, columns, vectors, capacity, n_tokens)
    drawn = UNIT * int(rng.integers(1, 40)), int(rng.integers(1, 6)), int(rng.integers(2, 9))
    yield quantize_case(target, rng, *drawn, int(rng.integers(1, drawn[2] + 1)))
