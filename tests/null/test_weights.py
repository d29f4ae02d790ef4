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

from model.block_formats import codebook, grid
from model.presets import PRESETS
from model.scratch import rope_tables
from model.tensors import SUPPORTED_TYPES
from model.weight_writes import row_bytes, writes
from model.weights import _split, device_bytes, interleaves, stack_upload
from tests.null.imaginary import INFO
from vkbackend.errors import DeviceError

GLM = PRESETS["glm-4.7-flash"]
DEVICE: Any = SimpleNamespace(info=SimpleNamespace(name="Imaginary iGPU"))


class Words:
    """What ``writes`` needs of a buffer: memory full of other bytes, through windows of at most ``piece`` bytes."""

    def __init__(self, nbytes: int, piece: int) -> None:
        self.bytes = np.full(-(-nbytes // 4) * 4, 0xEE, np.uint8)
        self.piece = piece

    @contextmanager
    def window(self, offset: int, nbytes: int) -> Iterator[np.ndarray]:
        assert nbytes <= self.piece
        yield self.bytes[offset : offset + nbytes]

    def upload(self, array: np.ndarray, offset: int = 0) -> None:
        self.bytes[offset : offset + array.size] = array.reshape(-1)


def written(nbytes: int, piece: int, source: np.ndarray, kind: Q, columns: int) -> bytes:
    """The buffer's bytes after the ``writes`` of ``source`` [..., rows, bytes of a row]."""
    buffer: Any = Words(nbytes, piece)
    for write in reversed(list(writes(buffer, source, kind, columns))):  # threads may take any order
        write()
    return bytes(buffer.bytes)


# Bytes of each piece of a block, in the order of the interleaved layout: Q6_K's scales, then by half its low and high
# pieces as load_unit reads them; others as in the file, but for a scale before them.
PIECES = {
    Q.Q4_0: [2],
    Q.Q8_0: [2, 18],
    Q.Q4_K: range(0, 144, 16),
    Q.Q5_K: range(0, 176, 16),
    Q.Q6_K: [192, 0, 128, 16, 144, 32, 48, 64, 160, 80, 176, 96, 112],
}


@pytest.mark.parametrize("kind", PIECES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("piece", [8 * 3 * 210, 2**24])
@pytest.mark.parametrize("fused", [False, True])
def test_interleaved_rows_are_scales_then_pieces_of_eight_rows(kind: Q, blocks: int, piece: int, fused: bool) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    rng, shape = np.random.default_rng(blocks), (2, 24, blocks * size)
    source = halves_of_a_fused_tensor(rng, *shape) if fused else rng.integers(0, 256, shape, np.uint8)
    rows = source.reshape(48, blocks, size)
    expected = b""
    for group in range(6):
        for b in range(blocks):
            eight = [rows[8 * group + r, b].tobytes() for r in range(8)]
            if kind in SCALE_AT:
                at, width = SCALE_AT[kind]
                expected += b"".join(row[at : at + width] for row in eight)
            expected += b"".join(row[at : at + 16] for at in PIECES[kind] for row in eight)
    buffer: Any = Words(source.size, piece)
    for write in writes(buffer, source, kind, blocks * block, interleaved=True):
        write()
    assert bytes(buffer.bytes) == expected


def test_narrow_subgroups_get_rows_interleaved_by_eight() -> None:
    narrow, wide = replace(INFO, subgroup_size=8), replace(INFO, subgroup_size=32)
    assert interleaves(narrow, Q.Q6_K, 24)
    assert not interleaves(narrow, Q.Q6_K, 25)
    assert not interleaves(narrow, Q.Q5_0, 24)  # 20 bytes a block beside its scale are no whole pieces
    assert not interleaves(wide, Q.Q6_K, 24)
    # The least that Vulkan promises: texels that cover 1 MiB, where bindings of storage buffers cover 128.
    assert not interleaves(replace(narrow, max_texels=2**16, max_storage_buffer_range=2**27), Q.Q6_K, 24)
    assert interleaves(replace(narrow, max_texels=2**23, max_storage_buffer_range=2**27), Q.Q6_K, 24)


def halves_of_a_fused_tensor(rng: np.random.Generator, matrices: int, rows: int, row: int) -> np.ndarray:
    """The second half of each matrix's rows: [matrices, rows, row] whose matrices do not lie together."""
    fused = rng.integers(0, 256, (matrices, 2 * rows, row), np.uint8)
    return fused[:, rows:]


def every_other_row(rng: np.random.Generator, matrices: int, rows: int, row: int) -> np.ndarray:
    """[matrices, rows, row] of which no two rows lie together."""
    return rng.integers(0, 256, (matrices, rows, 2, row), np.uint8)[:, :, 1]


# Where a block's scale stands and its bytes (ggml-common.h); the rest of the block is its payload.
SCALE_AT = {
    Q.Q4_0: (0, 2),
    Q.Q5_0: (0, 2),
    Q.Q8_0: (0, 2),
    Q.Q3_K: (108, 2),
    Q.Q6_K: (208, 2),
    Q.IQ4_NL: (0, 2),
    Q.MXFP4: (0, 1),
    Q.IQ1_S: (0, 2),
    Q.IQ2_XXS: (0, 2),
    Q.IQ2_XS: (0, 2),
    Q.IQ2_S: (0, 2),
    Q.IQ3_XXS: (0, 2),
    Q.IQ3_S: (0, 2),
    Q.TQ1_0: (52, 2),
    Q.TQ2_0: (64, 2),
}


@pytest.mark.parametrize("kind", SCALE_AT, ids=lambda kind: kind.name)
@pytest.mark.parametrize("blocks", [1, 2, 7, 64])
@pytest.mark.parametrize("piece", [500, 2**24])
def test_repacked_formats_are_the_codebook_then_all_payloads_then_all_scales(kind: Q, blocks: int, piece: int) -> None:
    size = GGML_QUANT_SIZES[kind][1]
    source = np.random.default_rng(blocks).integers(0, 256, (1, blocks * size), np.uint8)
    payloads, scales = bytearray(), bytearray()
    for b in range(blocks):
        block = source[0, b * size : (b + 1) * size].tobytes()
        at, width = SCALE_AT[kind]
        payloads += block[:at] + block[at + width :]
        scales += block[at : at + width]
    expected = codebook(kind).tobytes() + bytes(payloads + scales)
    found = written(len(expected), piece, source, kind, blocks * GGML_QUANT_SIZES[kind][0])
    assert found[: len(expected)] == expected
    assert found[len(expected) :] == b"\xee" * (-len(expected) % 4)  # nothing past the last scale


@pytest.mark.parametrize("kind", SUPPORTED_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("strided", [halves_of_a_fused_tensor, every_other_row])
@pytest.mark.parametrize("piece", [1100, 2**24])
def test_a_strided_source_is_written_as_its_copy(kind: Q, strided: Any, piece: int) -> None:
    columns = 256 if GGML_QUANT_SIZES[kind][0] != 1 else 100
    width = columns // GGML_QUANT_SIZES[kind][0] * GGML_QUANT_SIZES[kind][1]
    source = strided(np.random.default_rng(5), 3, 5, width)
    assert not source.flags.c_contiguous
    nbytes = device_bytes(kind, (3, 5, columns))
    assert written(nbytes, piece, source, kind, columns) == written(nbytes, piece, source.copy(), kind, columns)


def test_source_that_must_be_copied_to_view_as_rows_is_refused() -> None:
    columns_of_a_wider_tensor = np.zeros((3, 5, 68), np.uint8)[:, :, :34].reshape(15, 34)[:, ::2]
    with pytest.raises(ValueError):
        stack_upload(DEVICE, "w", Q.Q8_0, (3, 5, 16), columns_of_a_wider_tensor)


# Entries of each codebook and weights an entry (ggml-common.h); bytes a weight on the device.
CODEBOOKS = {
    Q.IQ1_S: (2048, 8, 1 / 4),
    Q.IQ1_M: (2048, 8, 1 / 4),
    Q.IQ2_XXS: (256, 8, 1),
    Q.IQ2_XS: (512, 8, 1),
    Q.IQ2_S: (1024, 8, 1),
    Q.IQ3_XXS: (256, 4, 1),
    Q.IQ3_S: (512, 4, 1),
}


@pytest.mark.parametrize("kind", CODEBOOKS, ids=lambda kind: kind.name)
def test_codebooks_hold_every_entry_in_signed_fields(kind: Q) -> None:
    entries, weights, width = CODEBOOKS[kind]
    assert grid(kind).shape == (entries, weights)
    book = codebook(kind)
    assert book.dtype == np.uint8 and book.size == entries * weights * width and book.size % 4 == 0
    bits = int(8 * width)
    for entry in range(0, entries, 37):
        first = int(entry * weights * width)
        number = int.from_bytes(book[first : first + int(weights * width)].tobytes(), "little")
        fields = [number >> (bits * i) & ((1 << bits) - 1) for i in range(weights)]
        signed = [f - (1 << bits) if f >> (bits - 1) else f for f in fields]
        assert signed == grid(kind)[entry].tolist()


def test_other_types_have_no_codebook() -> None:
    assert {kind for kind in SUPPORTED_TYPES if codebook(kind).size} == set(CODEBOOKS) & set(SUPPORTED_TYPES)


@pytest.mark.parametrize(("kind", "size"), [(Q.F32, 4), (Q.F16, 2), (Q.BF16, 2)], ids=["F32", "F16", "BF16"])
@pytest.mark.parametrize("columns", [1, 24, 31, 32, 33, 100])
@pytest.mark.parametrize("piece", [512, 2**24])
def test_plain_rows_are_padded_with_zeros(kind: Q, size: int, columns: int, piece: int) -> None:
    rows = 3
    source = np.random.default_rng(columns).integers(1, 256, (rows, columns * size), np.uint8)
    padded = -(-columns // 32) * 32 * size
    assert row_bytes(kind, columns) == padded
    found = written(rows * padded, piece, source, kind, columns)
    for row in range(rows):
        line = found[row * padded : (row + 1) * padded]
        assert line[: columns * size] == source[row].tobytes()
        assert not any(line[columns * size :])


@pytest.mark.parametrize("kind", SUPPORTED_TYPES, ids=lambda kind: kind.name)
def test_whole_units_take_the_files_bytes(kind: Q) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    assert row_bytes(kind, 512) == 512 // block * size
    assert device_bytes(kind, (7, 5, 512)) == codebook(kind).size + 35 * 512 // block * size
    assert device_bytes(Q.Q5_0, (1, 32)) == 24  # 22, in whole words


def test_split_covers_everything_once_within_the_limit() -> None:
    for total, unit, limit in ((64, 100, 6400), (64, 100, 6399), (17, 100, 1000), (1000, 3, 100), (8, 100, 800)):
        ranges = _split(total, unit, limit, "w", DEVICE)
        assert [a for a, _ in ranges] == [0, *(b for _, b in ranges[:-1])] and ranges[-1][1] == total
        assert all((b - a) * unit <= limit for a, b in ranges)
        assert len(ranges) == 1 or total * unit > limit
    # Every part carries a codebook of 50 bytes.
    assert _split(72, 100, 3100, "w", DEVICE, step=8) == [(0, 24), (24, 48), (48, 72)]
    assert _split(64, 100, 6450, "w", DEVICE, 50) == [(0, 64)]
    assert _split(64, 100, 6449, "w", DEVICE, 50) == [(0, 63), (63, 64)]
    assert _split(4, 100, 150, "w", DEVICE, 50) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_slice_that_no_binding_holds_is_refused() -> None:
    with pytest.raises(DeviceError) as caught:
        _split(64, 100, 99, "blk.1.ffn_up_exps.weight", DEVICE)
    assert str(caught.value) == (
        "tensor blk.1.ffn_up_exps.weight has slices of 100 bytes; Imaginary iGPU binds at most 99: use another --device"
    )
    with pytest.raises(DeviceError) as caught:
        _split(4, 100, 149, "w", DEVICE, 50)
    assert str(caught.value) == (
        "tensor w has slices of 150 bytes; Imaginary iGPU binds at most 149: use another --device"
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
