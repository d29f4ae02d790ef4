"""Every weight format's decoder in GLSL equals gguf-py's: the embedding kernel is dequantisation and nothing else."""

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize
from helpers import CANARY, FORMATS, canary, fetch, launch, limited, params

from model import kernels
from model.block_formats import PLAIN, codebook
from model.weights import Weight, stack_upload
from vkbackend.buffer import Buffer
from vkbackend.device import Device

# Halves a scale may be: zeros of both signs, the smallest and the largest subnormal, the smallest normal, the largest,
# the infinities and NaNs of both signs.
EXTREME = np.array(
    [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x8400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFC01], np.uint16
).view(np.float16)
EXTREME_PLAIN = {
    Q.F32: np.array([0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0xFF800001], np.uint32),
    Q.F16: EXTREME.view(np.uint16),
    Q.BF16: np.array([0, 0x8000, 1, 0x807F, 0x80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0xFF81], np.uint16),
}
# Where a block keeps its halves (ggml-common.h); MXFP4's scale is any byte, IQ1_M's half is spread over four nibbles.
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


def any_scales(rng: np.random.Generator, count: int) -> np.ndarray:
    """Halves of many magnitudes, a third of them extreme: f16 [count]."""
    scales = (rng.standard_normal(count) * 10.0 ** rng.integers(-3, 3, count)).astype(np.float16)
    extreme = rng.random(count) < 1 / 3
    scales[extreme] = rng.choice(EXTREME, extreme.sum())
    return scales


def any_blocks(rng: np.random.Generator, kind: Q, rows: int, columns: int) -> np.ndarray:
    """Rows of blocks of random bytes, in which a third of the scales are extreme: u8 [rows, bytes of a row]."""
    block, size = GGML_QUANT_SIZES[kind]
    n_blocks = rows * columns // block
    blocks = rng.integers(0, 256, (n_blocks, size), np.uint8)
    for at in SCALES_AT.get(kind, ()):
        blocks[:, at : at + 2] = any_scales(rng, n_blocks)[:, None].view(np.uint8)
    if kind is Q.IQ1_M:
        nibbles = any_scales(rng, n_blocks).view(np.uint16)[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15
        blocks[:, 49::2] = blocks[:, 49::2] & 15 | nibbles.astype(np.uint8) << 4
    if kind is Q.MXFP4:
        extreme = rng.random(n_blocks) < 1 / 3
        blocks[extreme, 0] = rng.choice(np.array([0, 1, 2, 3, 252, 253, 254, 255], np.uint8), extreme.sum())
    if kind in EXTREME_PLAIN:
        extreme = rng.random(n_blocks) < 1 / 3
        blocks[extreme] = rng.choice(EXTREME_PLAIN[kind], extreme.sum())[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def embed(device: Device, weight: Weight, tokens: np.ndarray, width: int, n_tokens: int | None = None) -> np.ndarray:
    """Rows ``tokens`` of ``weight``; only the first ``n_tokens`` of them are asked for. -> f32 [tokens, width]."""
    out: Buffer = canary(device, len(tokens), width)
    values = params(device, 0, len(tokens) if n_tokens is None else n_tokens, tokens)
    for shard in weight.shards:
        push = {
            "units": weight.units,
            "scale_base": shard.scale_base,
            "row_first": shard.first,
            "row_end": shard.end,
            "width": width,
        }
        buffers = {"weights": shard.buffer, "x": out, "params": values}
        launch(device, kernels.for_format(kernels.EMBED, weight.kind), buffers, (len(tokens), 1, 1), push=push)
    return fetch(out, len(tokens), width)


def values_of(rows: np.ndarray, kind: Q) -> np.ndarray:
    """What gguf-py reads: f32 [rows, columns]. It multiplies infinities and zeros without a word."""
    with np.errstate(all="ignore"):
        return np.asarray(dequantize(rows, kind)).reshape(len(rows), -1)


def assert_same(kind: Q, found: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit, but for what a NaN carries. Why no format needs more room: see shaders/include/unit.glsl.

    Vulkan lets a device take subnormal numbers for zero. F32 and BF16 are passed on as bits, and f16 scales are normal
    numbers in f32; only MXFP4's two smallest scales, 2^-128 and 2^-127, are subnormal, and its weights then at most
    12 * 2^-127.
    """
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    flushed = (found == 0) & (expected != 0) & (np.abs(expected) <= 12 * 2.0**-127)
    free = nan | flushed if kind is Q.MXFP4 else nan
    np.testing.assert_array_equal(np.where(free, 0, found.view(np.uint32)), np.where(free, 0, expected.view(np.uint32)))


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [256, 1280])
def test_decoder_equals_gguf_py_on_any_block(device: Device, kind: Q, columns: int) -> None:
    rng = np.random.default_rng(columns)
    rows = any_blocks(rng, kind, 37, columns)
    weight = stack_upload(device, "embedding", kind, (37, columns), rows.reshape(-1))
    order = rng.permutation(37)
    assert_same(kind, embed(device, weight, order, columns), values_of(rows, kind)[order])


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [4, 24, 100])
def test_rows_that_are_no_whole_units(device: Device, kind: Q, columns: int) -> None:
    rows = any_blocks(np.random.default_rng(columns), kind, 9, columns)
    weight = stack_upload(device, "embedding", kind, (9, columns), rows.reshape(-1))
    order = np.array([8, 0, 3, 3])
    assert_same(kind, embed(device, weight, order, columns), values_of(rows, kind)[order])


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_table_split_over_buffers(device: Device, kind: Q) -> None:
    rows = any_blocks(np.random.default_rng(3), kind, 45, 256)
    limit = codebook(kind).size + rows.nbytes // 12 * 4
    weight = stack_upload(limited(device, limit), "embedding", kind, (45, 256), rows.reshape(-1))
    assert len(weight.shards) >= 3
    assert [s.first for s in weight.shards[1:]] == [s.end for s in weight.shards[:-1]]
    assert_same(kind, embed(device, weight, np.arange(45), 256), values_of(rows, kind))


def test_tokens_past_the_chunks_count_are_left_alone(device: Device) -> None:
    rows = any_blocks(np.random.default_rng(4), Q.Q8_0, 5, 64)
    weight = stack_upload(device, "embedding", Q.Q8_0, (5, 64), rows.reshape(-1))
    found = embed(device, weight, np.array([4, 2, 1]), 64, n_tokens=2)
    assert_same(Q.Q8_0, found[:2], values_of(rows, Q.Q8_0)[[4, 2]])
    assert (found[2] == CANARY).all()
