"""Weights on the device: each tensor's plan (keep, repack, pad, split) and its one upload from the memory map.

A tensor is a stack of ``matrices`` (experts, heads; 1 for a plain matrix) of ``rows`` by ``columns``. Formats whose
blocks are no whole number of 32-bit words are repacked: all payloads, then all f16 scales. Rows are padded to units of
32 columns. What exceeds one binding is split, between matrices where there are several, else between rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from model.gguf_file import TensorInfo, drop_pages
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.errors import DeviceError
from vkbackend.memory import Use, buffer_limit

Q = GGMLQuantizationType
UNIT = 32  # columns

# Byte ranges of a block's payload and of its separate f16 scale; formats not listed are kept as in the file.
_REPACKED = {
    Q.Q8_0: (slice(2, 34), slice(0, 2)),
    Q.Q5_0: (slice(2, 22), slice(0, 2)),
    Q.Q6_K: (slice(0, 208), slice(208, 210)),
}
_PLAIN = {Q.F32: 4, Q.F16: 2}  # bytes an element


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
    padded = -(-columns // UNIT) * UNIT if kind in _PLAIN else columns
    return padded // block * size


def device_bytes(kind: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor takes on the device, in whole words."""
    n_bytes = int(np.prod(shape[:-1], dtype=np.int64)) * row_bytes(kind, shape[-1])
    return -(-n_bytes // 4) * 4


def _split(total: int, unit_bytes: int, limit: int, name: str, device: Device) -> list[tuple[int, int]]:
    """Ranges of at most ``limit`` bytes."""
    if total * unit_bytes <= limit:
        return [(0, total)]
    each = limit // unit_bytes
    if each == 0:
        raise DeviceError(
            f"tensor {name} has slices of {unit_bytes} bytes; {device.info.name} binds at most {limit}: "
            "use another --device"
        )
    return [(a, min(a + each, total)) for a in range(0, total, each)]


def _write(buffer: Buffer, source: NDArray[np.uint8], kind: GGMLQuantizationType, columns: int) -> None:
    """Put a shard's bytes, in the device's layout, into its buffer: piece by piece, the map's pages dropped behind."""
    if kind in _REPACKED:
        _write_apart(buffer, source, kind)
        return
    block, size = GGML_QUANT_SIZES[kind]
    width, padded = columns // block * size, row_bytes(kind, columns)
    if width == padded:
        for start in range(0, source.size, buffer.piece):
            part = source[start : start + buffer.piece]
            buffer.upload(part, start)
            drop_pages(part)
        return
    rows, each = source.size // width, max(1, buffer.piece // padded)
    for first in range(0, rows, each):
        count = min(each, rows - first)
        part = source[first * width : (first + count) * width]
        with buffer.window(first * padded, count * padded) as target:
            lines = target.reshape(count, padded)
            lines[:, :width] = part.reshape(count, width)
            lines[:, width:] = 0
        drop_pages(part)


def _write_apart(buffer: Buffer, source: NDArray[np.uint8], kind: GGMLQuantizationType) -> None:
    """All payloads, then all scales. Whole fields are copied at once: a structured view moves payloads of 20 to 208
    bytes, not single bytes."""
    payload, scale = _REPACKED[kind]
    size, length = GGML_QUANT_SIZES[kind][1], payload.stop - payload.start
    blocks = source.size // size
    each = max(2, buffer.piece // size // 2 * 2)  # even, so that scales of 2 bytes begin on whole words
    fields: Any = np.dtype(
        {
            "names": ["payload", "scale"],
            "formats": [f"V{length}", "V2"],
            "offsets": [payload.start, scale.start],
            "itemsize": size,
        }
    )
    for first in range(0, blocks, each):
        count = min(each, blocks - first)
        part = source[first * size : (first + count) * size]
        with buffer.window(first * length, count * length) as target:
            target.view(f"V{length}")[:] = part.view(fields)["payload"]
        with buffer.window(blocks * length + 2 * first, 2 * count) as target:
            target.view("V2")[:] = part.view(fields)["scale"]
        drop_pages(part)


def upload(device: Device, info: TensorInfo) -> Weight:
    """Put one tensor on the device; the pages of its memory map are dropped as they are read.

    Raises:
        DeviceError: one matrix row or expert exceeds a storage buffer binding.
    """
    return stack_upload(device, info.name, info.type, info.shape, info.data)


def stack_upload(
    device: Device, name: str, kind: GGMLQuantizationType, shape: tuple[int, ...], data: NDArray[np.uint8]
) -> Weight:
    """Put ``data`` (the bytes of a tensor of ``shape``, [matrices,] rows, columns) on the device.

    What was already allocated is freed when a later part fails.
    """
    matrices = shape[0] if len(shape) == 3 else 1
    rows, columns = shape[-2:]
    block, size = GGML_QUANT_SIZES[kind]
    source_row, device_row = columns // block * size, row_bytes(kind, columns)
    stacked = matrices > 1
    rows_each = rows if stacked else 1
    shards: list[Shard] = []
    try:
        for first, end in _split(
            matrices if stacked else rows, rows_each * device_row, buffer_limit(device), name, device
        ):
            n_rows = (end - first) * rows_each
            part = data[first * rows_each * source_row : end * rows_each * source_row]
            payload = _REPACKED[kind][0] if kind in _REPACKED else slice(0, 0)
            scale_base = n_rows * (columns // block) * (payload.stop - payload.start) // 4
            buffer = Buffer(device, n_rows * device_row, f"{name}[{first}:{end}]", use=Use.WEIGHTS, zeroed=False)
            shards.append(Shard(buffer, first, end, scale_base))
            _write(buffer, part, kind, columns)
    except BaseException:
        _free(shards)
        raise
    return Weight(name, kind, matrices, rows, columns, tuple(shards), stacked)


def _free(shards: list[Shard]) -> None:
    for shard in shards:
        shard.buffer.free()


def allocate_f16(device: Device, name: str, matrices: int, rows: int, columns: int, widest: int = 0) -> Weight:
    """A zeroed stack of F16 matrices on the device: a cache that linear kernels can read as weights.

    ``columns`` must be a multiple of 32 and is stored without padding. ``widest`` is the elements of the largest matrix
    of the stacks that must be split alike (0: this one alone).
    """
    elements = rows * columns
    shards: list[Shard] = []
    try:
        for first, end in _split(matrices, max(widest, elements) * 2, buffer_limit(device), name, device):
            nbytes = (end - first) * elements * 2
            shards.append(Shard(Buffer(device, nbytes, f"{name}[{first}:{end}]", use=Use.CACHE), first, end, 0))
    except BaseException:
        _free(shards)
        raise
    return Weight(name, Q.F16, matrices, rows, columns, tuple(shards), stacked=True)


def upload_vector(device: Device, name: str, values: NDArray[np.float32]) -> Buffer:
    """A norm, bias or table in f32."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    return Buffer(device, flat.nbytes, name, use=Use.WEIGHTS, initial=flat.view(np.uint32))
