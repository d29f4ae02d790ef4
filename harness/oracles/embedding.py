"""Rows of the embedding: dequantisation and nothing else, so every format's decoder is held to gguf-py's bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize
from numpy.typing import NDArray

from harness.oracles.case import CANARY, Case, Draft, Expected, Target
from model import kernels
from model.block_formats import PLAIN, codebook
from model.kernels import weight_kind
from model.weights import stack_upload
from vkbackend.physical import DeviceInfo

# Halves a scale may be: zeros of both signs, the smallest and the largest subnormal, the smallest normal, the largest,
# the infinities and NaNs of both signs.
EXTREME = np.array(
    [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x8400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFC01], np.uint16
).view(np.float16)
EXTREME_PLAIN: dict[Q, NDArray[np.generic]] = {
    Q.F32: np.array([0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0xFF800001], np.uint32),
    Q.F16: EXTREME.view(np.uint16),
    Q.BF16: np.array([0, 0x8000, 1, 0x807F, 0x80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0xFF81], np.uint16),
}
# Where a block keeps its halves (ggml-common.h); IQ1_M's is spread over four nibbles.
SCALES_AT = {
    **dict.fromkeys((Q.Q4_0, Q.Q5_0, Q.Q8_0, Q.IQ4_NL, Q.IQ4_XS), (0,)),
    **dict.fromkeys((Q.Q4_1, Q.Q5_1, Q.Q4_K, Q.Q5_K), (0, 2)),
    **dict.fromkeys((Q.IQ1_S, Q.IQ2_XXS, Q.IQ2_XS, Q.IQ2_S, Q.IQ3_XXS, Q.IQ3_S), (0,)),
    Q.Q2_K: (80, 82),
    Q.Q3_K: (108,),
    Q.Q6_K: (208,),
    Q.TQ1_0: (52,),
    Q.TQ2_0: (64,),
}
# Scales that are bytes: how many begin a block, and their extremes: MXFP4's smallest and largest powers of two; NVFP4's
# zeros, smallest and largest subnormal, smallest normal, largest, the byte that would be a NaN and stands for zero, and
# some of these with the top bit, which says nothing.
BYTE_SCALES = {
    Q.MXFP4: (1, np.array([0, 1, 2, 3, 252, 253, 254, 255], np.uint8)),
    Q.NVFP4: (4, np.array([0x00, 0x80, 0x01, 0x07, 0x87, 0x08, 0x7E, 0xFE, 0x7F, 0xFF], np.uint8)),
}


def _any_scales(rng: np.random.Generator, count: int) -> NDArray[np.float16]:
    """Halves of many magnitudes, a third of them extreme: f16 [count]."""
    scales = (rng.standard_normal(count) * 10.0 ** rng.integers(-3, 3, count)).astype(np.float16)
    extreme = rng.random(count) < 1 / 3
    scales[extreme] = rng.choice(EXTREME, extreme.sum())
    return scales


def any_blocks(rng: np.random.Generator, kind: Q, rows: int, columns: int) -> NDArray[np.uint8]:
    """Rows of blocks of random bytes, in which a third of the scales are extreme: u8 [rows, bytes of a row]."""
    block, size = GGML_QUANT_SIZES[kind]
    n_blocks = rows * columns // block
    blocks = rng.integers(0, 256, (n_blocks, size), np.uint8)
    for at in SCALES_AT.get(kind, ()):
        blocks[:, at : at + 2] = _any_scales(rng, n_blocks)[:, None].view(np.uint8)
    if kind is Q.IQ1_M:
        nibbles = _any_scales(rng, n_blocks).view(np.uint16)[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15
        blocks[:, 49::2] = blocks[:, 49::2] & 15 | nibbles.astype(np.uint8) << 4
    if kind in BYTE_SCALES:
        width, bytes_ = BYTE_SCALES[kind]
        extreme = rng.random((n_blocks, width)) < 1 / 3
        blocks[:, :width][extreme] = rng.choice(bytes_, extreme.sum())
    if kind in EXTREME_PLAIN:
        extreme = rng.random(n_blocks) < 1 / 3
        blocks[extreme] = rng.choice(EXTREME_PLAIN[kind], extreme.sum())[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def rows_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    kind: Q,
    rows: int,
    columns: int,
    ids: NDArray[np.integer],
    *,
    n_tokens: int | None = None,
    shards: int = 1,
    across: int | None = None,
) -> Case:
    """Rows ``ids`` of a table [rows, columns] over at least ``shards`` buffers; only the first ``n_tokens`` are asked.
    ``across`` tokens, all unless given, lie along the grid's first axis.

    Bit for bit, but for what a NaN carries. Why no format needs more room: see shaders/include/unit.glsl. Vulkan lets
    a device take subnormal numbers for zero. F32 and BF16 are passed on as bits, and f16 scales are normal numbers in
    f32; only MXFP4's two smallest scales, 2^-128 and 2^-127, are subnormal, and its weights then at most
    12 * 2^-127.
    """
    count = len(ids) if n_tokens is None else n_tokens
    draft = Draft(info, f"{rows} x {columns}, {count} of {len(ids)} tokens, {shards} buffers")
    data = any_blocks(rng, kind, rows, columns)
    book = codebook(kind).size
    owner = draft.device if shards == 1 else draft.limited(book + -(-rows // shards) * data.nbytes // rows // 4 * 4 + 4)
    weight = stack_upload(owner, "embedding", kind, (rows, columns), data.reshape(-1))
    if len(weight.shards) < shards:
        raise ValueError(f"{len(weight.shards)} buffers hold the table; expected {shards}")
    out = draft.canary(len(ids), columns)
    params = draft.params(0, count, ids)
    along = across or len(ids)
    grid = along, -(-len(ids) // along), 1
    for shard in weight.shards:
        push = {"units": weight.units, "scale_base": shard.scale_base, "width": columns}
        push |= {"row_first": shard.first, "row_end": shard.end, "across": along}
        buffers = {"weights": shard.buffer, "x": out, "params": params}
        draft.launch(kernels.for_format(kernels.EMBED, kind, weight.interleaved), buffers, grid, push=push)
    with np.errstate(all="ignore"):  # gguf-py multiplies infinities and zeros without a word
        values = np.asarray(dequantize(data, kind)).reshape(rows, columns).astype(np.float32)
    expected = np.full((len(ids), columns), CANARY)
    expected[:count] = values[ids[:count]]
    flushed = (expected != 0) & (np.abs(expected) <= 12 * 2.0**-127) if kind is Q.MXFP4 else None
    return draft.case({out: Expected(expected, axes=("token", "column"), or_zero=flushed)})


def cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Every row of a table once, rows that repeat, a chunk that is not full, a table in several buffers."""
    kind = weight_kind(target.kernel)
    block = GGML_QUANT_SIZES[kind][0]
    wide = 256 * int(rng.integers(2, 6))
    rows = target.fitting_rows(37)
    yield rows_case(target.info, rng, kind, rows, wide, rng.permutation(rows), across=16)
    yield rows_case(target.info, rng, kind, target.fitting_rows(1), max(block, 32), np.zeros(1, np.int64))
    yield rows_case(target.info, rng, kind, target.fitting_rows(9), 256, np.array([8, 0, 3, 3, 1]), n_tokens=3)
    rows = target.fitting_rows(45)
    yield rows_case(target.info, rng, kind, rows, 256, np.arange(rows), shards=3)
    for columns in (4, 24, 100) if kind in PLAIN else ():
        yield rows_case(target.info, rng, kind, 9, columns, np.array([8, 0, 3, 3]))
