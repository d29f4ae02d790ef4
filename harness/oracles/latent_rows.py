"""How a latent cache holds its rows, in NumPy: packed, read back, and how far from exact numbers they may be.

shaders/include/latent_row.glsl describes the layouts; the blocks are gguf-py's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from harness.oracles.case import CANARY, UNTOUCHED, Expected
from model.kernels import cache_kind
from vkbackend.kernel import Kernel

Q = GGMLQuantizationType
Doubles = NDArray[np.float64]
BLOCK = 32
F16_STEP = 2.0**-10  # one unit in the last place: GLSL leaves the rounding of packHalf2x16 to the device
F16_SMALLEST = 2.0**-24  # the step of its subnormal numbers


@dataclass(frozen=True)
class Stored:
    """Rows of a cache of type ``kind``."""

    kind: GGMLQuantizationType

    @classmethod
    def of(cls, kernel: Kernel) -> Stored:
        """The cache that a kernel reads or writes."""
        return cls(cache_kind(kernel))

    @property
    def quantised(self) -> bool:
        return self.kind not in (Q.F16, Q.F32)

    @property
    def dtype(self) -> type[np.floating]:
        """Of a plain cache's numbers."""
        return np.float32 if self.kind is Q.F32 else np.float16

    def words(self, width: int) -> int:
        """u32 words of a row of ``width`` numbers."""
        blocks, size = -(-width // BLOCK), GGML_QUANT_SIZES[self.kind][1]
        return blocks * (size - 2) // 4 + -(-blocks // 2) if self.quantised else width * size // 4

    def pack(self, rows: NDArray[np.floating]) -> NDArray[np.generic]:
        """``rows`` [n, width] as the buffer holds them: [n, width] of ``dtype``, or [n, words] of u32."""
        if not self.quantised:
            return rows.astype(self.dtype)
        padded = _whole_blocks(rows.astype(np.float32))
        n, blocks = len(rows), padded.shape[1] // BLOCK
        data = quantize(padded, self.kind).reshape(n, blocks, -1)
        quants, scales = data[..., 2:], np.zeros((n, -(-blocks // 2) * 2, 2), np.uint8)
        scales[:, :blocks] = data[..., :2]
        if self.kind is Q.Q4_0:  # ggml's low nibbles are a block's first half; a row's nibbles are in order
            nibbles = np.concatenate([quants & 15, quants >> 4], axis=-1)
            quants = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
        return np.ascontiguousarray(np.concatenate([quants.reshape(n, -1), scales.reshape(n, -1)], axis=1)).view("u4")

    def exact(self, rng: np.random.Generator, n: int, width: int) -> NDArray[np.float32]:
        """Whole numbers [n, width] that the cache holds without rounding: as quants of blocks whose d is 1."""
        least, most = (-8, 7) if self.kind is Q.Q4_0 else (-127, 127)
        rows = rng.integers(least, most, (n, width), endpoint=True).astype(np.float32)
        rows[:, ::BLOCK] = least
        return rows

    def unpack(self, words: NDArray[np.uint32], width: int) -> NDArray[np.float32]:
        """What ``pack`` made of rows of ``width`` numbers, f32 [n, width]."""
        if not self.quantised:
            return words.reshape(-1).view(self.dtype).reshape(-1, width).astype(np.float32)
        size, blocks = GGML_QUANT_SIZES[self.kind][1], -(-width // BLOCK)
        bytes_of = words.reshape(-1, self.words(width)).view(np.uint8)
        quants = bytes_of[:, : blocks * (size - 2)].reshape(-1, blocks, size - 2)
        scales = bytes_of[:, blocks * (size - 2) :].reshape(len(bytes_of), -1, 2)[:, :blocks]
        if self.kind is Q.Q4_0:
            nibbles = np.stack([quants & 15, quants >> 4], axis=-1).reshape(-1, blocks, BLOCK)
            quants = nibbles[..., : BLOCK // 2] | nibbles[..., BLOCK // 2 :] << 4
        data = np.concatenate([scales, quants], axis=-1).reshape(len(bytes_of), -1)
        return dequantize(np.ascontiguousarray(data), self.kind)[:, :width].astype(np.float32)

    def rounded(self, rows: NDArray[np.floating]) -> NDArray[np.float32]:
        """``rows`` [n, width] as the cache gives them back."""
        return self.unpack(np.ascontiguousarray(self.pack(rows)).view(np.uint32), rows.shape[1])

    def empty(self, n: int, width: int) -> NDArray[np.generic]:
        """Rows that were not written: CANARY in f32, UNTOUCHED's words in all else."""
        if self.kind is Q.F32:
            return np.full((n, width), CANARY)
        words = np.full((n, self.words(width)), UNTOUCHED, np.uint32)
        return words if self.quantised else words.view(np.float16)

    def error(self, exact: Doubles) -> Doubles | float:
        """How far a stored number may be from ``exact`` [n, width].

        A block's step is d, half a step is lost to a quant, and d's own rounding to f16 (2^-11) to the largest quants.
        Q4_0 has no +8: an element of that size loses up to a step, and which sign -8 stands for is a matter of the last
        place where the two largest elements differ in sign.
        """
        if self.kind is Q.F32:
            return 0.0
        if self.kind is Q.F16:
            return F16_STEP * np.abs(exact) + F16_SMALLEST
        most = 127 if self.kind is Q.Q8_0 else 8
        blocks = _whole_blocks(np.abs(exact)).reshape(len(exact), -1, BLOCK)
        step = blocks.max(axis=-1, keepdims=True) / most
        lost = np.full(blocks.shape, 0.5)
        if self.kind is Q.Q4_0:
            lost = np.maximum(lost, blocks / np.where(step, step, 1) - 7)
        off = step * (lost + most * 2.0**-11) + most * F16_SMALLEST
        return np.asarray(off.reshape(len(exact), -1)[:, : exact.shape[1]])

    def expected(
        self, before: NDArray[np.generic], width: int, at: slice, values: Doubles, error: Doubles, axes: tuple[str, str]
    ) -> Expected:
        """Of a buffer that held ``before`` [n, ...]: rows ``at`` hold ``values``, all others what they held."""
        plain = not self.quantised
        held = before.astype(np.float64) if plain else self.unpack(before.view(np.uint32), width).astype(np.float64)
        tolerance = np.zeros(held.shape)
        held[at], tolerance[at] = values, error
        if plain:
            return Expected(held, self.dtype, tolerance, axes)
        words = before.size
        return Expected(
            held, np.float32, tolerance, axes, decode=lambda found: self.unpack(found[:words], width), words=words
        )


def _whole_blocks(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """``rows`` [n, width] padded with zeros."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % BLOCK)))
