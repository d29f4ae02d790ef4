"""Encoders to GGUF block formats.

gguf-py encodes F32, F16, BF16, Q8_0 and the older 32-element formats but not the K-quants; Q4_K and Q6_K are here, with
the layouts and the search ggml uses (ggml/src/ggml-quants.c: make_qkx2_quants, make_qx_quants), vectorised over blocks.
Letters: B blocks of 256 values, S sub-blocks (8 of 32 in Q4_K, 16 of 16 in Q6_K).
"""

from __future__ import annotations

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from gguf.quants import QuantError
from gguf.quants import quantize as _gguf_quantize
from numpy.typing import NDArray

from vkbackend.errors import InputError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

QK_K = 256
CHUNK_BLOCKS = 4096  # blocks encoded at once: 4 MiB of float32 per temporary
LARGEST_F16 = 65504.0


def quantize(array: np.ndarray, kind: Q) -> Bytes:
    """Encode ``array`` [..., row] as ``kind``: uint8 of [..., bytes per row].

    Raises InputError for values that are not finite or (F16) too large, rows that are not whole blocks, and types
    without an encoder.
    """
    values = np.ascontiguousarray(array, dtype=np.float32)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    row = values.shape[-1]
    if row % block:
        raise InputError(
            f"rows of {row} cannot be stored as {kind.name}, expected a multiple of {block}; use another type"
        )
    limit = LARGEST_F16 if kind is Q.F16 else np.inf
    peak = float(np.abs(values).max(initial=0.0))
    if not peak <= limit or np.isinf(peak):
        raise InputError(
            f"values up to {peak} cannot be stored as {kind.name}, expected finite ones within range; rescale"
        )
    if kind in _ENCODERS:
        encoder = _ENCODERS[kind]
        blocks = values.reshape(-1, QK_K)
        parts = [encoder(blocks[i : i + CHUNK_BLOCKS]) for i in range(0, len(blocks), CHUNK_BLOCKS)]
        encoded = np.concatenate(parts) if parts else np.empty((0, block_bytes), np.uint8)
    elif kind is Q.F16:
        encoded = values.astype("<f2")
    else:
        try:
            encoded = _gguf_quantize(values, kind)
        except (NotImplementedError, QuantError):
            raise InputError(
                f"type {kind.name} has no encoder, expected one of {_encodable()}; use one of them"
            ) from None
    return encoded.view(np.uint8).reshape(*values.shape[:-1], row // block * block_bytes)


def _encodable() -> str:
    return ", ".join(t.name for t in (Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q6_K))


def _round(x: Floats) -> Floats:
    return np.rint(x, dtype=np.float32)


def _inverse(x: Floats) -> Floats:
    return np.divide(1, x, out=np.zeros_like(x), where=x != 0)


def _as_f16(x: np.ndarray) -> tuple[Bytes, Floats]:
    """The little-endian bytes of ``x`` [B] as f16 -> [B, 2], and the values a reader gets back."""
    half = x.astype("<f2")
    return half.view(np.uint8).reshape(len(x), 2), half.astype(np.float32)


def _search_scale_min(x: Floats, levels: int) -> tuple[Floats, Floats]:
    """Scale and min so that ``scale * q - min`` with q in 0..levels approximates ``x`` [B, S, 32] -> two of [B, S].

    Weighted least squares for 21 trial roundings, the best kept, as make_qkx2_quants: weights rms + |x|, min >= 0.
    """
    weight = np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + np.abs(x)
    low = np.minimum(x.min(axis=-1), 0)
    span = x.max(axis=-1) - low
    sum_w, sum_x = weight.sum(axis=-1), (weight * x).sum(axis=-1)
    best_scale, best_min = span / np.float32(levels), low
    best_error = np.full(span.shape, np.inf, np.float32)
    inverse_span = _inverse(span)
    for step in np.linspace(-1, 1, 21, dtype=np.float32):
        q = np.clip(_round((x - low[..., None]) * ((levels + step) * inverse_span)[..., None]), 0, levels)
        wq = weight * q
        sum_q, sum_q2, sum_xq = wq.sum(axis=-1), (wq * q).sum(axis=-1), (wq * x).sum(axis=-1)
        determinant = sum_w * sum_q2 - sum_q * sum_q
        inverse = _inverse(np.maximum(determinant, 0))
        scale = (sum_w * sum_xq - sum_x * sum_q) * inverse
        minimum = (sum_q2 * sum_x - sum_q * sum_xq) * inverse
        positive = minimum > 0
        scale = np.where(positive, sum_xq * _inverse(sum_q2), scale)
        minimum = np.where(positive, 0, minimum)
        residual = scale[..., None] * q + minimum[..., None] - x
        error = (weight * residual * residual).sum(axis=-1)
        better = (error < best_error) & (determinant > 0)
        best_scale, best_min = np.where(better, scale, best_scale), np.where(better, minimum, best_min)
        best_error = np.where(better, error, best_error)
    return best_scale, -best_min


def _encode_q4_k(blocks: Floats) -> Bytes:
    """[B, 256] -> [B, 144]: f16 d, f16 dmin, 8 six-bit (scale, min) pairs in 12 bytes, 256 four-bit quants."""
    n = len(blocks)
    x = blocks.reshape(n, 8, 32)
    scale, minimum = _search_scale_min(x, 15)
    d_bytes, d = _as_f16(scale.max(axis=-1) / 63)
    dmin_bytes, dmin = _as_f16(minimum.max(axis=-1) / 63)
    sc = np.clip(_round(scale * _inverse(d)[:, None]), 0, 63).astype(np.uint8)
    m = np.clip(_round(minimum * _inverse(dmin)[:, None]), 0, 63).astype(np.uint8)
    step, offset = d[:, None] * sc, dmin[:, None] * m
    q = np.clip(_round((x + offset[..., None]) * _inverse(step)[..., None]), 0, 15).astype(np.uint8)
    packed = q.reshape(n, 4, 2, 32)
    quants = (packed[:, :, 0] | packed[:, :, 1] << 4).reshape(n, 128)
    return np.concatenate([d_bytes, dmin_bytes, pack_scales(sc, m), quants], axis=-1)


def pack_scales(sc: Bytes, m: Bytes) -> Bytes:
    """Two [B, 8] of six-bit numbers -> [B, 12] as ggml's get_scale_min_k4 reads them."""
    low = sc[:, :4] | (sc[:, 4:] >> 4) << 6
    mid = m[:, :4] | (m[:, 4:] >> 4) << 6
    high = (sc[:, 4:] & 15) | (m[:, 4:] & 15) << 4
    return np.concatenate([low, mid, high], axis=-1)


def _search_scale(x: Floats, levels: int) -> Floats:
    """Scale so that ``scale * q`` with q in -levels..levels-1 approximates ``x`` [B, S, 16] -> [B, S].

    19 trial roundings, weights x^2, as make_qx_quants; signed so that the largest value falls on -levels.
    """
    weight = x * x
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=-1)[..., None], axis=-1)
    inverse_peak = _inverse(peak)
    best = np.zeros(x.shape[:-1], np.float32)
    best_gain = np.zeros(x.shape[:-1], np.float32)
    for step in np.arange(-9, 10, dtype=np.float32) * np.float32(0.1):
        q = np.clip(_round(x * (-(levels + step) * inverse_peak)), -levels, levels - 1)
        wq = weight * q
        sum_xq, sum_q2 = (wq * x).sum(axis=-1), (wq * q).sum(axis=-1)
        scale = sum_xq * _inverse(sum_q2)
        gain = scale * sum_xq  # how much of sum(w x^2) this scale explains
        better = gain > best_gain
        best, best_gain = np.where(better, scale, best), np.where(better, gain, best_gain)
    return best


def _encode_q6_k(blocks: Floats) -> Bytes:
    """[B, 256] -> [B, 210]: 256 four low bits, 256 two high bits, 16 int8 scales, f16 d. Quants are stored plus 32."""
    n = len(blocks)
    peak = np.abs(blocks).max(axis=-1, keepdims=True)
    x = blocks.reshape(n, 16, 16)
    # Weights are x^2, so sums go as x^4: search on normalised blocks or small weights underflow float32.
    scale = _search_scale((blocks * _inverse(peak)).reshape(n, 16, 16), 32) * peak
    largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=-1)[:, None], axis=-1)[:, 0]
    d_bytes, d = _as_f16(largest / np.float32(-128))
    sc = np.clip(_round(scale * _inverse(d)[:, None]), -128, 127).astype(np.int8)
    step = d[:, None] * sc.astype(np.float32)
    q = (np.clip(_round(x * _inverse(step)[..., None]), -32, 31) + 32).astype(np.uint8).reshape(n, 2, 4, 32)
    low = (q[:, :, :2] & 15 | (q[:, :, 2:] & 15) << 4).reshape(n, 128)
    high = (q >> 4 << np.array([0, 2, 4, 6], np.uint8)[:, None]).sum(axis=2, dtype=np.uint8).reshape(n, 64)
    return np.concatenate([low, high, sc.view(np.uint8), d_bytes], axis=-1)


_ENCODERS = {Q.Q4_K: _encode_q4_k, Q.Q6_K: _encode_q6_k}
