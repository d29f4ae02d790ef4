"""Weights on the device: each tensor's plan (keep, repack, pad, split) and its one upload from the memory map.

A tensor is a stack of ``matrices`` (experts, heads; 1 for a plain matrix) of ``rows`` by ``columns``. Formats whose
blocks are no whole number of 32-bit words are repacked: all payloads, then all scales. A format's codebook stands
before its blocks. Plain rows are padded to units of 32 columns. Devices with narrow subgroups get pieces of eight rows
side by side where a format has pieces (shaders/include/weights.glsl). What exceeds one binding is split, between
matrices where there are several, else between rows; each part has its own codebook.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from model.block_formats import IN_PIECES, PIECE_ORDER, PLAIN, SCALE, codebook, payload_bytes
from model.gguf_file import drop_pages
from model.layout import UNIT, whole_units
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.errors import DeviceError
from vkbackend.memory import Use, buffer_limit
from vkbackend.physical import DeviceInfo

Q = GGMLQuantizationType
# Subgroups of fewer lanes are narrow: a lane then takes rows of its own (matvec_rows.comp). lavapipe's have 8.
NARROW_SUBGROUP = 16
INTERLEAVED_ROWS = 8


@dataclass(frozen=True)
class Shard:
    """Matrices (or rows of a single matrix) ``first`` to ``end`` of a tensor, in one buffer."""

    buffer: Buffer
    first: int
    end: int
    scale_base: int  # word where the separate scales begin


@dataclass(frozen=True)
class Weight:
    """A tensor on the device; ``units`` is the number of 32-column units in a row."""

    name: str
    kind: GGMLQuantizationType
    matrices: int
    rows: int
    columns: int
    shards: tuple[Shard, ...]
    stacked: bool  # shards are ranges of matrices; False: of the single matrix's rows
    interleaved: bool = False

    @property
    def units(self) -> int:
        """Units of 32 columns in a row, the last one padded with zeros where needed."""
        return -(-self.columns // UNIT)

    @property
    def allocated(self) -> int:
        """Bytes that its buffers take of the device's memory."""
        return sum(s.buffer.allocated for s in self.shards)

    def free(self) -> None:
        """Give the memory back."""
        for shard in self.shards:
            shard.buffer.free()


def row_bytes(kind: GGMLQuantizationType, columns: int) -> int:
    """Bytes of a row on the device, payload and scales, with plain types padded to whole units."""
    block, size = GGML_QUANT_SIZES[kind]
    padded = whole_units(columns) if kind in PLAIN else columns
    return padded // block * size


def device_bytes(kind: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor takes in one buffer, in whole words; each further buffer of a split adds a codebook."""
    n_bytes = int(np.prod(shape[:-1], dtype=np.int64)) * row_bytes(kind, shape[-1])
    return codebook(kind).size + -(-n_bytes // 4) * 4


def interleaves(info: DeviceInfo, kind: GGMLQuantizationType, rows: int) -> bool:
    """Whether a device gets matrices of ``rows`` of ``kind`` with the pieces of eight rows side by side."""
    return reads_texels(info) and kind in IN_PIECES and rows % INTERLEAVED_ROWS == 0


def reads_texels(info: DeviceInfo) -> bool:
    """Whether a device's lanes load 16 bytes best as a texel: narrow subgroups, and buffers that fit as texels whole
    (results/performance-log.md has why)."""
    return info.subgroup_size < NARROW_SUBGROUP and info.whole_texel_buffers


def _split(
    total: int, unit_bytes: int, limit: int, name: str, device: Device, fixed_bytes: int = 0, step: int = 1
) -> list[tuple[int, int]]:
    """Ranges of at most ``limit`` bytes, of which ``fixed_bytes`` are spent on what every part carries. But for the
    last one they have a multiple of ``step`` items."""
    if fixed_bytes + total * unit_bytes <= limit:
        return [(0, total)]
    each = (limit - fixed_bytes) // unit_bytes // step * step
    if each <= 0:
        raise DeviceError(
            f"tensor {name} has slices of {fixed_bytes + step * unit_bytes} bytes; "
            f"{device.info.name} binds at most {limit}: use another --device"
        )
    return [(a, min(a + each, total)) for a in range(0, total, each)]


def _runs(source: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The parts of ``source`` [..., bytes] that lie together in memory, in order."""
    if source.flags.c_contiguous:
        return [source.reshape(-1)]
    return [run for part in source for run in _runs(part)]


Stacks = Sequence[NDArray[np.uint8]]  # [matrices, rows, bytes of a row] each, one after the other


def _pieces(source: Stacks, item: int, each: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The items of ``item`` bytes in ``source``, at most ``each`` at a time: the first one's index and [n, item].

    Nothing is copied, and the memory map's pages are dropped behind.
    """
    done = 0
    for run in chain.from_iterable(map(_runs, source)):
        items = run.reshape(-1, item)
        for start in range(0, len(items), each):
            part = items[start : start + each]
            yield done + start, part
            drop_pages(part)
        done += len(items)


def _write(buffer: Buffer, source: Stacks, kind: GGMLQuantizationType, columns: int, interleaved: bool = False) -> None:
    """Put ``source``, in the device's layout, into a shard's buffer."""
    book, size = codebook(kind), GGML_QUANT_SIZES[kind][1]
    buffer.upload(book)
    width, padded = source[0].shape[-1], row_bytes(kind, columns)
    if interleaved:
        _write_interleaved(buffer, source, kind)
    elif kind in SCALE:
        _write_apart(buffer, source, kind, book.size)
    elif width == padded:
        for first, part in _pieces(source, size, buffer.piece // size):
            buffer.upload(part, book.size + first * size)
    else:
        for first, part in _pieces(source, width, max(1, buffer.piece // padded)):
            with buffer.window(first * padded, len(part) * padded) as target:
                lines = target.reshape(len(part), padded)
                lines[:, :width] = part
                lines[:, width:] = 0


def _write_apart(buffer: Buffer, source: Stacks, kind: GGMLQuantizationType, start: int) -> None:
    """From byte ``start`` all payloads, then all scales. Whole fields are copied at once: a structured view moves
    payloads of 16 to 208 bytes, not single bytes."""
    payload, scale, size = payload_bytes(kind), SCALE[kind], GGML_QUANT_SIZES[kind][1]
    length, width = payload.stop - payload.start, scale.stop - scale.start
    scales = start + sum(stack.size for stack in source) // size * length
    fields: Any = np.dtype(
        {
            "names": ["payload", "scale"],
            "formats": [f"V{length}", f"V{width}"],
            "offsets": [payload.start, scale.start],
            "itemsize": size,
        }
    )
    for first, part in _pieces(source, size, buffer.piece // size):
        blocks = part.reshape(-1).view(fields)
        with buffer.window(start + first * length, len(part) * length) as target:
            target.view(f"V{length}")[:] = blocks["payload"]
        with buffer.window(scales + first * width, len(part) * width) as target:
            target.view(f"V{width}")[:] = blocks["scale"]


def _write_interleaved(buffer: Buffer, source: Stacks, kind: GGMLQuantizationType) -> None:
    """By eight rows and block: their scales, where kept apart, then all rows' pieces in their order."""
    size, payload = GGML_QUANT_SIZES[kind][1], payload_bytes(kind)
    width = source[0].shape[-1]
    blocks, group = width // size, INTERLEAVED_ROWS * width
    texel = np.dtype(np.complex128)  # 16 bytes that are moved as they are; NumPy moves a void of that size slower
    apart = int(kind in SCALE)
    for first, part in _pieces(source, group, max(1, buffer.piece // group)):
        rows = part.reshape(len(part), INTERLEAVED_ROWS, blocks, size)
        payloads = np.ascontiguousarray(rows[..., payload]) if apart else rows
        pieces = payloads.view(texel).transpose(0, 2, 3, 1)  # [groups, blocks, pieces, rows]
        with buffer.window(first * group, part.size) as target:
            texels = target.view(texel).reshape(len(part), blocks, -1)
            if apart:
                scales = texels[..., :1].view(np.uint16)  # [groups, blocks, rows]
                scales[:] = np.ascontiguousarray(rows[..., SCALE[kind]]).view(np.uint16)[..., 0].swapaxes(1, 2)
            order = PIECE_ORDER.get(kind, range(pieces.shape[2]))
            for place, index in enumerate(order):
                at = apart + place * INTERLEAVED_ROWS
                texels[..., at : at + INTERLEAVED_ROWS] = pieces[:, :, index]


def _matrices(source: Stacks, first: int, end: int) -> list[NDArray[np.uint8]]:
    """Matrices ``first`` to ``end`` of stacks that follow each other."""
    found, at = [], 0
    for stack in source:
        part = stack[max(0, first - at) : max(0, end - at)]
        found += [part] if len(part) else []
        at += len(stack)
    return found


def stack_upload(
    device: Device, name: str, kind: GGMLQuantizationType, shape: tuple[int, ...], data: NDArray[np.uint8] | Stacks
) -> Weight:
    """Put a tensor of ``shape``, [matrices,] rows, columns, on the device.

    ``data`` holds its bytes as in the file and views as [matrices, rows, bytes of a row]: flat, or of that shape and
    then strided at will but for each row's bytes, such as one half of a fused tensor; or several such stacks, one after
    the other. It is never copied whole. What was already allocated is freed when a later part fails.

    Raises:
        DeviceError: one matrix row or expert exceeds a storage buffer binding.
        ValueError: ``data`` does not view so.
    """
    matrices = shape[0] if len(shape) == 3 else 1
    rows, columns = shape[-2:]
    block, size = GGML_QUANT_SIZES[kind]
    given = [data] if isinstance(data, np.ndarray) else data
    source = [stack.reshape(-1, rows, columns // block * size, copy=False) for stack in given]
    if sum(map(len, source)) != matrices:
        raise ValueError(f"tensor {name} has {sum(map(len, source))} matrices, expected {matrices}")
    device_row, book = row_bytes(kind, columns), codebook(kind).size
    payload = payload_bytes(kind)
    stacked = matrices > 1
    rows_each = rows if stacked else 1
    interleaved = interleaves(device.info, kind, rows)
    total, limit = (matrices if stacked else rows), buffer_limit(device)
    step = INTERLEAVED_ROWS if interleaved and not stacked else 1
    shards: list[Shard] = []
    try:
        for first, end in _split(total, rows_each * device_row, limit, name, device, book, step):
            n_rows = (end - first) * rows_each
            scale_base = (book + n_rows * (columns // block) * (payload.stop - payload.start)) // 4
            nbytes = book + n_rows * device_row
            buffer = Buffer(device, nbytes, f"{name}[{first}:{end}]", use=Use.WEIGHTS, zeroed=False)
            shards.append(Shard(buffer, first, end, scale_base))
            if device.keeps_data:
                part = _matrices(source, first, end) if stacked else [source[0][:, first:end]]
                _write(buffer, part, kind, columns, interleaved)
    except BaseException:
        _free(shards)
        raise
    return Weight(name, kind, matrices, rows, columns, tuple(shards), stacked, interleaved)


def _free(shards: list[Shard]) -> None:
    for shard in shards:
        shard.buffer.free()


def allocate(
    device: Device, name: str, kind: GGMLQuantizationType, matrices: int, rows: int, columns: int, widest: int = 0
) -> Weight:
    """A zeroed stack of matrices of a plain type on the device: a cache that linear kernels can read as weights.

    Rows are padded to whole units of 32 columns with zeros. ``widest`` is the elements of the largest matrix, padding
    included, of the stacks that must be split alike (0: this one alone).
    """
    elements = rows * whole_units(columns)
    shards: list[Shard] = []
    try:
        each = PLAIN[kind]
        for first, end in _split(matrices, max(widest, elements) * each, buffer_limit(device), name, device):
            nbytes = (end - first) * elements * each
            shards.append(Shard(Buffer(device, nbytes, f"{name}[{first}:{end}]", use=Use.CACHE), first, end, 0))
    except BaseException:
        _free(shards)
        raise
    return Weight(name, kind, matrices, rows, columns, tuple(shards), stacked=True)


def upload_vector(device: Device, name: str, values: NDArray[np.float32]) -> Buffer:
    """A norm, bias or table in f32."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    return Buffer(device, flat.nbytes, name, use=Use.WEIGHTS, initial=flat.view(np.uint32))
