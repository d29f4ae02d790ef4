"""Weights on the device: each tensor's plan (keep, repack, pad, split) and its one upload from the memory map.

A tensor is a stack of ``matrices`` (experts, heads; 1 for a plain matrix) of ``rows`` by ``columns``, laid out as
``weight_writes.py`` has it; devices with narrow subgroups get pieces of eight rows side by side where a format has
pieces. What exceeds one binding is split, between matrices where there are several, else between rows; each part has
its own codebook.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from model.block_formats import IN_PIECES, PLAIN, codebook, payload_bytes
from model.layout import UNIT, whole_units
from model.weight_writes import INTERLEAVED_ROWS, Stacks, row_bytes, writes
from model.writers import Writers
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.errors import DeviceError
from vkbackend.memory import Use, buffer_limit
from vkbackend.physical import DeviceInfo

Q = GGMLQuantizationType
# Subgroups of fewer lanes are narrow: a lane then takes rows of its own (matvec_rows.comp). lavapipe's have 8.
NARROW_SUBGROUP = 16


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


def _matrices(source: Stacks, first: int, end: int) -> list[NDArray[np.uint8]]:
    """Matrices ``first`` to ``end`` of stacks that follow each other."""
    found, at = [], 0
    for stack in source:
        part = stack[max(0, first - at) : max(0, end - at)]
        found += [part] if len(part) else []
        at += len(stack)
    return found


def stack_upload(
    device: Device,
    name: str,
    kind: GGMLQuantizationType,
    shape: tuple[int, ...],
    data: NDArray[np.uint8] | Stacks,
    writers: Writers | None = None,
) -> Weight:
    """Put a tensor of ``shape``, [matrices,] rows, columns, on the device.

    ``data`` holds its bytes as in the file and views as [matrices, rows, bytes of a row]: flat, or of that shape and
    then strided at will but for each row's bytes, such as one half of a fused tensor; or several such stacks, one after
    the other. It is never copied whole. What was already allocated is freed when a later part fails. With
    ``writers`` the tensor is complete when these are done.

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
                for write in writes(buffer, part, kind, columns, interleaved):
                    if writers is not None and buffer.mapped:
                        writers.add(write)
                    else:  # a staging buffer serves one write after the other
                        write()
    except BaseException:
        if writers is not None:
            writers.stop()
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
