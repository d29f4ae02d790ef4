"""Random blocks of GGUF formats, for synthetic files: raw random bytes in which only the scales are written."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from gguf import quants as gguf_quants

from model.block_formats import PLAIN, SCALE, grid
from model.quantize import Bytes, Floats, pack_scales, quantize
from model.tensors import SUPPORTED_TYPES
from vkbackend.errors import InputError

RANDOM_TYPES = SUPPORTED_TYPES
# Number of quant levels, of types whose quants are all the numbers of a range.
_LEVELS = {
    Q.Q2_K: 4,
    **dict.fromkeys((Q.Q4_0, Q.Q4_1, Q.Q4_K), 16),
    **dict.fromkeys((Q.Q5_0, Q.Q5_1, Q.Q5_K), 32),
    Q.Q6_K: 64,
    Q.Q8_0: 256,
}
# The scales of types that keep them in bytes: for each byte its value, as far as the values rise.
_BYTE_SCALES = {
    Q.MXFP4: lambda: gguf_quants.MXFP4.e8m0_to_fp32_half(np.arange(256, dtype=np.uint8)),
    Q.NVFP4: lambda: gguf_quants.NVFP4.ue4m3_to_fp32(np.arange(127, dtype=np.uint8)),
}


def random_blocks(kind: Q, n_blocks: int, rng: np.random.Generator, scale: float) -> Bytes:
    """``n_blocks`` valid blocks of ``kind`` (single values for F32, F16, BF16): uint8 [n_blocks, block bytes].

    Values have a mean of about 0 and a standard deviation of about ``scale``, and are near uniform where the format's
    quants are. Quants are raw random bytes and only the scale fields are written, so this runs at the generator's
    speed. InputError for a type not in RANDOM_TYPES.
    """
    if kind in PLAIN:
        values = (rng.random(n_blocks, np.float32) - np.float32(0.5)) * np.float32(math.sqrt(12) * scale)
        return quantize(values, kind).reshape(n_blocks, -1)
    if kind not in _spreads():
        names = ", ".join(t.name for t in RANDOM_TYPES if t in PLAIN or t in _spreads())
        raise InputError(f"type {kind.name} has no random generator, expected one of {names}; use one of them")
    block_bytes = GGML_QUANT_SIZES[kind][1]
    n_words = -(-n_blocks * block_bytes // 8)
    noise = rng.integers(0, 2**64, n_words, np.uint64).view(np.uint8)  # four times the speed of rng.bytes
    blocks = noise[: n_blocks * block_bytes].reshape(n_blocks, block_bytes)
    jitter = np.float32(0.75) + np.float32(0.5) * rng.random(n_blocks, np.float32)  # rms sqrt(1 + 1/48)
    step = scale / _spreads()[kind]
    d = jitter * np.float32(step / math.sqrt(1 + 1 / 48))
    if kind is Q.MXFP4:
        blocks[:, 0] = _byte_scales(kind, step, 2 * jitter - np.float32(1.5))
    elif kind is Q.NVFP4:
        blocks[:, :4] = _byte_scales(kind, step, rng.random((n_blocks, 4), np.float32))
    elif kind in (Q.Q2_K, Q.Q4_1, Q.Q5_1, Q.Q4_K, Q.Q5_K):
        _put_scale_and_minimum(blocks, kind, d)
    elif kind is Q.Q6_K:
        noise = blocks[:, 192:208]
        magnitude = (noise & np.uint8(63) | np.uint8(64)).view(np.int8)
        blocks[:, 192:208] = np.where(noise & 128, -magnitude, magnitude).view(np.uint8)  # quants centre on -0.5
        _put_f16(blocks, 208, d / _rms(np.arange(64, 128)))
    elif kind is Q.Q8_0:
        _put_f16(blocks, 0, d)  # ggml's d is never negative here
    else:
        # Of either sign, as ggml's d = max/-8 or max/-16 is, which brings the mean to 0 where the quants' is not.
        d = np.where(blocks[:, 0] & 1, -d, d)
        if kind is Q.TQ2_0:
            blocks[:, :64] ^= (blocks[:, :64] & blocks[:, :64] >> 1 & 0x55) << 1  # 3 is no ternary digit: now it is 1
        if kind is Q.IQ1_M:
            _put_in_top_nibbles(blocks, d)
        else:
            _put_f16(blocks, SCALE.get(kind, slice(0, 2)).start, d)
    return blocks


@cache
def _spreads() -> dict[Q, float]:
    """The root mean square of a value whose d is 1, over all that the rest of its block may be; for types with a
    minimum, and those whose inner scale is chosen, the standard deviation of a quant."""
    six_bits = _rms(np.arange(-32, 32))
    odd_to_15, odd_to_31 = _rms(np.arange(1, 16, 2)), _rms(np.arange(1, 32, 2))
    nonlinear = _rms(np.array(gguf_quants.IQ4_NL.kvalues))
    return {
        **{kind: math.sqrt((levels**2 - 1) / 12) for kind, levels in _LEVELS.items()},
        Q.Q3_K: six_bits * _rms(np.arange(-4, 4)),
        Q.IQ4_NL: nonlinear,
        Q.IQ4_XS: six_bits * nonlinear,
        **dict.fromkeys(_BYTE_SCALES, _rms(np.array(gguf_quants.MXFP4.kvalues))),
        **{kind: odd_to_15 * math.hypot(_rms(grid(kind)), 1 / 8) for kind in (Q.IQ1_S, Q.IQ1_M)},
        **{kind: odd_to_31 / 8 * _rms(grid(kind)) for kind in (Q.IQ2_XXS, Q.IQ2_XS, Q.IQ2_S)},
        Q.IQ3_XXS: odd_to_31 / 4 * _rms(grid(Q.IQ3_XXS)),
        Q.IQ3_S: odd_to_31 * _rms(grid(Q.IQ3_S)),
        Q.TQ1_0: math.sqrt(171 / 256),  # digits 0, 1 and 2 begin 86, 85 and 85 of the 256 bytes
        Q.TQ2_0: math.sqrt(1 / 2),
    }


def _put_scale_and_minimum(blocks: Bytes, kind: Q, d: Floats) -> None:
    """Minima so that every sub-block's values centre on 0."""
    middle = np.float32((_LEVELS[kind] - 1) / 2)
    if kind in (Q.Q4_1, Q.Q5_1):
        _put_f16(blocks, 0, d)
        _put_f16(blocks, 2, d * -middle)
    elif kind is Q.Q2_K:
        scales = blocks[:, :16] & np.uint8(7) | np.uint8(8)
        blocks[:, :16] = scales | scales << 4
        d /= _rms(np.arange(8, 16))
        _put_f16(blocks, 80, d)
        _put_f16(blocks, 82, d * middle)
    else:
        scales = blocks[:, 4:12] & np.uint8(31) | np.uint8(32)
        d /= _rms(np.arange(32, 64))
        _put_f16(blocks, 0, d)
        _put_f16(blocks, 2, d * middle)
        blocks[:, 4:16] = pack_scales(scales, scales)


def _byte_scales(kind: Q, d: float, chance: Floats) -> Bytes:
    """The byte of one of the two scales about ``d`` for each of ``chance``, uniform over 0 to 1: so many of each that
    their mean square is ``d``'s, since MXFP4's lie apart by a factor of two."""
    scales = _BYTE_SCALES[kind]()
    below = int(np.clip(np.searchsorted(scales, d, "right") - 1, 0, len(scales) - 2))
    low, high = (float(scale) ** 2 for scale in scales[below : below + 2])
    return (below + (chance < (d**2 - low) / (high - low))).astype(np.uint8)


def _put_in_top_nibbles(blocks: Bytes, d: Floats) -> None:
    """IQ1_M keeps the four nibbles of d, lowest first, in the tops of its four half words of scales."""
    nibbles = d.astype("<f2").view(np.uint16)[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15
    blocks[:, 49::2] = blocks[:, 49::2] & 15 | nibbles.astype(np.uint8) << 4


def _rms(numbers: np.ndarray) -> float:
    return math.sqrt(np.mean(numbers.astype(np.float64) ** 2))


def _put_f16(blocks: Bytes, offset: int, values: Floats) -> None:
    blocks[:, offset : offset + 2] = values.astype("<f2")[:, None].view(np.uint8)
