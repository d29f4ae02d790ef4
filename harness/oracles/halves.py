"""What rounding may do to products in halves (shaders/include/halves_product.glsl)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as Q
from numpy.typing import NDArray

from harness.oracles.inputs import Doubles, Floats
from harness.oracles.latent_rows import F16_SMALLEST, F16_STEP
from model import kernels
from model.block_formats import PLAIN

_MINIMA = {Q.Q4_1, Q.Q5_1, Q.Q2_K, Q.Q4_K, Q.Q5_K}  # formats with w = d q - m, m not 0
_QUANT = 128  # no quant is larger
_CHAIN = 16  # products that matmul_halves.comp sums in one half


def halves_error(kernel: str, kind: Q, weight: NDArray[np.floating], x: NDArray[np.floating]) -> Doubles:
    """Of a product of ``weight`` [..., rows, K] and ``x`` [..., T, K] by that ``kernel``'s file. -> [..., T, rows].

    Vulkan lets a device round to either neighbour ("Precision of core SPIR-V instructions"): F16_STEP of the result.
    Of weights d, m, d q and the difference are rounded, where random_blocks puts m in the middle of 0 to d q, so that
    |d q| + |m| is at most 3 times the largest weight; of plain types the weight alone. What a half is too small for is
    off by F16_SMALLEST, of numbers that are 1 to 2 at most in the first unit. A sum in a half rounds once a product,
    but not at zeros; a matrix's sums are f32, which may be cut off, 2^-23 a product.
    """
    w, v = np.abs(weight.astype(np.float64)), np.abs(x.astype(np.float64))
    largest, loudest = w.max(axis=-1, keepdims=True), v.max(axis=-1, keepdims=True)
    if kind in PLAIN:
        off = F16_STEP * w + F16_SMALLEST * largest
    elif kind in _MINIMA:
        off = F16_STEP * (2 * 3 * w.max() + w) + _QUANT * F16_SMALLEST * largest
    else:
        off = F16_STEP * 2 * w + _QUANT * F16_SMALLEST * largest
    off_v = F16_STEP * v + F16_SMALLEST * loudest

    def product(a: Doubles, b: Doubles) -> Doubles:
        made: Doubles = b @ np.swapaxes(a, -1, -2)
        return made

    most = product(w + off, v + off_v)
    error = most - product(w, v) + w.shape[-1] * 2.0**-23 * most
    if kernel == kernels.MATMUL_HALVES.file:
        floor = w.shape[-1] * F16_SMALLEST * product(largest, loudest)
        error += _roundings(v) * F16_STEP * most + floor
    return error


def _roundings(x: Doubles) -> int:
    """Products of two numbers in a sum of a unit's even, or odd, columns: a unit is two runs of 16 columns."""
    columns = -(-x.shape[-1] // 16) * 16
    padded = np.zeros((*x.shape[:-1], columns))
    padded[..., : x.shape[-1]] = x
    filled = (padded.reshape(-1, columns // 16, 8, 2) != 0).sum(axis=2).max()
    return min(_CHAIN, 2 * int(filled))


def _sparse(rng: np.random.Generator, x: NDArray[np.float32]) -> NDArray[np.float32]:
    runs = x.reshape(*x.shape[:-1], -1, 16)
    kept = rng.integers(0, 16, (*runs.shape[:-1], 1)) == np.arange(16)
    return np.where(kept, runs, np.float32(0)).reshape(x.shape)


def _far_from_one(rng: np.random.Generator, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x * (np.float32(10) ** rng.integers(-12, 13, (*x.shape[:-1], 1)).astype(np.float32))


def _growing(rng: np.random.Generator, x: NDArray[np.float32]) -> NDArray[np.float32]:
    grown = x.copy()
    grown[::2, ..., : x.shape[-1] // 2] *= np.float32(1e-7)
    grown[1::2, ..., : x.shape[-1] // 2] = 0
    return grown


# Inputs [tokens, ..., columns], columns whole units, made of random ones.
INPUTS = {
    # All but one number in each run of 16 made zero: sums in halves round so little that a wrong column shows.
    "sparse": _sparse,
    # Tokens that no half could hold as they are, one beside the other.
    "far from one": _far_from_one,
    # What a token begins with, zero or nothing but small, says nothing of what follows.
    "growing": _growing,
}


@dataclass(frozen=True)
class Halves(Floats):
    """Inputs of a product in halves by the ``kernel`` of that file with weights of ``kind``; ``made``, of INPUTS, of
    the random ones."""

    kernel: str
    kind: Q
    made: str = ""

    def drawn(self, rng: np.random.Generator, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return INPUTS[self.made](rng, x) if self.made else x

    def error(self, weight: NDArray[np.floating], seen: Doubles) -> Doubles:
        """Of any row."""
        worst: Doubles = halves_error(self.kernel, self.kind, weight, np.atleast_2d(seen)).max(axis=-1)
        return worst.reshape(seen.shape[:-1])
