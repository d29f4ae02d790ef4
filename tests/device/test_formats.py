"""Every weight format's decoder in GLSL against gguf-py's: the embedding kernel is dequantisation and nothing else."""

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize
from helpers import CANARY, FORMATS, U, canary, fetch, launch, limited, params

from model import kernels
from model.weights import Weight, stack_upload
from vkbackend.buffer import Buffer
from vkbackend.device import Device

# Halves a scale may be: zeros of both signs, the smallest and a larger subnormal, the smallest normal, the largest.
EXTREME = np.array([0.0, -0.0, 6e-8, -3e-5, 6.104e-5, 1.0, -1.5, 65504.0, -65504.0], np.float16)
SCALES_AT = {Q.Q8_0: (0,), Q.Q5_0: (0,), Q.Q4_K: (0, 2), Q.Q6_K: (208,)}


def blocks_with_any_scale(rng: np.random.Generator, kind: Q, rows: int, columns: int) -> np.ndarray:
    """Rows of blocks in which every field is random and a third of the scales are extreme: u8 [rows, bytes]."""
    block, size = GGML_QUANT_SIZES[kind]
    n_blocks = rows * columns // block
    if kind is Q.F32:
        # Any exponent but those of subnormals, infinities and NaN: a device may flush the first.
        bits = rng.integers(1 << 23, 0x7F800000, n_blocks, np.uint32) | rng.integers(0, 2, n_blocks, np.uint32) << 31
        return bits.view(np.uint8).reshape(rows, -1)
    if kind is Q.F16:
        halves = rng.integers(0, 0x7C00, n_blocks, np.uint16) | rng.integers(0, 2, n_blocks, np.uint16) << 15
        return halves.astype(np.uint16).view(np.uint8).reshape(rows, -1)
    blocks = rng.integers(0, 256, (n_blocks, size), np.uint8)
    for at in SCALES_AT[kind]:
        scales = (rng.standard_normal(n_blocks) * 10.0 ** rng.integers(-3, 3, n_blocks)).astype(np.float16)
        extreme = rng.random(n_blocks) < 1 / 3
        scales[extreme] = rng.choice(EXTREME, extreme.sum())
        blocks[:, at : at + 2] = scales[:, None].view(np.uint8)
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


def largest_error(kind: Q, rows: np.ndarray, columns: int) -> np.ndarray:
    """How far two right decoders may differ, for each element.

    d * scale has at most 11 + 8 bits and is exact in f32, and so is every term of the other formats. In Q6_K its
    product with a six-bit quant needs 25 bits: w = d * scale * q - 32 * d * scale rounds the first term, up to
    63 * |d * scale|, where gguf-py rounds d * scale * (q - 32).
    """
    if kind is not Q.Q6_K:
        return np.zeros((len(rows), columns))
    blocks = rows.reshape(-1, 210)
    step = np.abs(blocks[:, 208:].copy().view(np.float16).astype(np.float64) * blocks[:, 192:208].view(np.int8))
    return np.repeat(step * (63 + 32) * U, 16, axis=1).reshape(len(rows), columns)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [256, 1280])
def test_decoder_equals_gguf_py_on_any_block(device: Device, kind: Q, columns: int) -> None:
    rng = np.random.default_rng(columns)
    rows = blocks_with_any_scale(rng, kind, 37, columns)
    weight = stack_upload(device, "embedding", kind, (37, columns), rows.reshape(-1))
    order = rng.permutation(37)
    found = embed(device, weight, order, columns).astype(np.float64)
    expected = dequantize(rows, kind).reshape(37, columns)[order].astype(np.float64)
    assert (np.abs(found - expected) <= largest_error(kind, rows, columns)[order]).all()


@pytest.mark.parametrize("kind", [Q.F32, Q.F16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [4, 24, 100])
def test_rows_that_are_no_whole_units(device: Device, kind: Q, columns: int) -> None:
    rows = blocks_with_any_scale(np.random.default_rng(columns), kind, 9, columns)
    weight = stack_upload(device, "embedding", kind, (9, columns), rows.reshape(-1))
    order = np.array([8, 0, 3, 3])
    np.testing.assert_array_equal(embed(device, weight, order, columns), dequantize(rows, kind)[order])


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_table_split_over_buffers(device: Device, kind: Q) -> None:
    rows = blocks_with_any_scale(np.random.default_rng(3), kind, 45, 256)
    weight = stack_upload(limited(device, rows.nbytes // 12 * 4), "embedding", kind, (45, 256), rows.reshape(-1))
    assert len(weight.shards) >= 3
    assert [s.first for s in weight.shards[1:]] == [s.end for s in weight.shards[:-1]]
    found = embed(device, weight, np.arange(45), 256).astype(np.float64)
    expected = dequantize(rows, kind).reshape(45, 256)
    assert (np.abs(found - expected) <= largest_error(kind, rows, 256)).all()


def test_tokens_past_the_chunks_count_are_left_alone(device: Device) -> None:
    rows = blocks_with_any_scale(np.random.default_rng(4), Q.Q8_0, 5, 64)
    weight = stack_upload(device, "embedding", Q.Q8_0, (5, 64), rows.reshape(-1))
    found = embed(device, weight, np.array([4, 2, 1]), 64, n_tokens=2)
    np.testing.assert_array_equal(found[:2], dequantize(rows, Q.Q8_0)[[4, 2]])
    assert (found[2] == CANARY).all()
