"""How weights are laid out for the device, against plain loops over the file's blocks; and the rope tables."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q

from model.config import PRESETS
from model.scratch import rope_tables
from model.tensors import SUPPORTED_TYPES
from model.weights import _split, _write, device_bytes, row_bytes
from vkbackend.errors import DeviceError

GLM = PRESETS["glm-4.7-flash"]
DEVICE: Any = SimpleNamespace(info=SimpleNamespace(name="Imaginary iGPU"))


class Words:
    """What ``_write`` needs of a buffer: memory full of other bytes, reached through windows of at most ``piece``."""

    def __init__(self, nbytes: int, piece: int) -> None:
        self.bytes = np.full(-(-nbytes // 4) * 4, 0xEE, np.uint8)
        self.piece = piece

    @contextmanager
    def window(self, offset: int, nbytes: int) -> Iterator[np.ndarray]:
        assert nbytes <= self.piece
        yield self.bytes[offset : offset + nbytes]

    def upload(self, array: np.ndarray, offset: int) -> None:
        with self.window(offset, array.size) as target:
            target[:] = array


def written(nbytes: int, piece: int, source: np.ndarray, kind: Q, columns: int) -> bytes:
    """The buffer's bytes after ``_write``."""
    buffer: Any = Words(nbytes, piece)
    _write(buffer, source, kind, columns)
    return bytes(buffer.bytes)


# Where a block's f16 scale stands (ggml-common.h); the rest of the block is its payload.
SCALE_AT = {Q.Q8_0: 0, Q.Q5_0: 0, Q.Q6_K: 208}


@pytest.mark.parametrize("kind", SCALE_AT, ids=lambda kind: kind.name)
@pytest.mark.parametrize("blocks", [1, 2, 7, 64])
@pytest.mark.parametrize("piece", [500, 2**24])
def test_repacked_formats_are_all_payloads_then_all_scales(kind: Q, blocks: int, piece: int) -> None:
    size = GGML_QUANT_SIZES[kind][1]
    source = np.random.default_rng(blocks).integers(0, 256, blocks * size, np.uint8)
    payloads, scales = bytearray(), bytearray()
    for b in range(blocks):
        block = source[b * size : (b + 1) * size].tobytes()
        at = SCALE_AT[kind]
        payloads += block[:at] + block[at + 2 :]
        scales += block[at : at + 2]
    expected = bytes(payloads + scales)
    found = written(len(expected), piece, source, kind, blocks * GGML_QUANT_SIZES[kind][0])
    assert found[: len(expected)] == expected
    assert found[len(expected) :] == b"\xee" * (-len(expected) % 4)  # nothing past the last scale


@pytest.mark.parametrize(("kind", "size"), [(Q.F32, 4), (Q.F16, 2)], ids=["F32", "F16"])
@pytest.mark.parametrize("columns", [1, 24, 31, 32, 33, 100])
@pytest.mark.parametrize("piece", [512, 2**24])
def test_plain_rows_are_padded_with_zeros(kind: Q, size: int, columns: int, piece: int) -> None:
    rows = 3
    source = np.random.default_rng(columns).integers(1, 256, rows * columns * size, np.uint8)
    padded = -(-columns // 32) * 32 * size
    assert row_bytes(kind, columns) == padded
    found = written(rows * padded, piece, source, kind, columns)
    for row in range(rows):
        line = found[row * padded : (row + 1) * padded]
        assert line[: columns * size] == source[row * columns * size : (row + 1) * columns * size].tobytes()
        assert not any(line[columns * size :])


@pytest.mark.parametrize("kind", SUPPORTED_TYPES, ids=lambda kind: kind.name)
def test_whole_units_take_the_files_bytes(kind: Q) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    assert row_bytes(kind, 512) == 512 // block * size
    assert device_bytes(kind, (7, 5, 512)) == 35 * 512 // block * size
    assert device_bytes(Q.Q5_0, (1, 32)) == 24  # 22, in whole words


def test_split_covers_everything_once_within_the_limit() -> None:
    for total, unit, limit in ((64, 100, 6400), (64, 100, 6399), (17, 100, 1000), (1000, 3, 100), (8, 100, 800)):
        ranges = _split(total, unit, limit, "w", DEVICE)
        assert [a for a, _ in ranges] == [0, *(b for _, b in ranges[:-1])] and ranges[-1][1] == total
        assert all((b - a) * unit <= limit for a, b in ranges)
        assert len(ranges) == 1 or total * unit > limit


def test_slice_that_no_binding_holds_is_refused() -> None:
    with pytest.raises(DeviceError) as caught:
        _split(64, 100, 99, "blk.1.ffn_up_exps.weight", DEVICE)
    assert str(caught.value) == (
        "tensor blk.1.ffn_up_exps.weight has slices of 100 bytes; Imaginary iGPU binds at most 99: use another --device"
    )


@pytest.mark.parametrize(("rope", "theta"), [(64, 1e6), (8, 1e4)])
def test_rope_tables_give_every_position_of_the_longest_context(rope: int, theta: float) -> None:
    """The kernels' sum of two table angles, in f32, against the exact angle, at all positions up to 202,751.

    Four factors are rounded once (2^-24 each), two products and a sum again: under 6 roundings of numbers of at most 1.
    """
    n_ctx = GLM.n_ctx_train
    assert n_ctx == 202_752
    table, n_high = rope_tables(replace(GLM, qk_rope=rope, rope_theta=theta), n_ctx)
    assert table.shape == (n_high + 256, rope // 2, 2) and table.dtype == np.float32
    assert n_ctx - 1 < 256 * n_high
    position = np.arange(n_ctx)
    for pair in range(rope // 2):
        high, low = table[position >> 8, pair], table[n_high + (position & 255), pair]
        angle = position * theta ** (-2 * pair / rope)
        cos = high[:, 0] * low[:, 0] - high[:, 1] * low[:, 1]
        sin = high[:, 1] * low[:, 0] + high[:, 0] * low[:, 1]
        assert np.abs(cos - np.cos(angle)).max() <= 6 * 2.0**-24
        assert np.abs(sin - np.sin(angle)).max() <= 6 * 2.0**-24
