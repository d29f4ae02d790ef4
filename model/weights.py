"""Weights on the device: each tensor's plan (keep, repack, pad, split) and its one upload from the memory map.

A tensor is a stack of ``matrices`` (experts, heads; 1 for a plain matrix) of ``rows`` by ``columns``. Formats whose
blocks are no whole number of 32-bit words are repacked: all payloads, then all f16 scales. Rows are padded to units of
32 columns. What exceeds one binding is split, between matrices where there are several, else between rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from model.gguf_file import TensorInfo, drop_pages
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.errors import DeviceError

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
    def nbytes(self) -> int:
        """Bytes of all its buffers."""
        return sum(s.buffer.nbytes for s in self.shards)

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


def _pack_into(words: NDArray[np.uint32], source: NDArray[np.uint8], kind: GGMLQuantizationType, columns: int) -> None:
    """Write a shard's bytes in the device's layout into ``words``."""
    target = words.view(np.uint8)
    if kind in _REPACKED:
        payload, scale = _REPACKED[kind]
        size = GGML_QUANT_SIZES[kind][1]
        blocks = source.size // size
        # Whole fields are copied at once: a structured view moves payloads of 20 to 208 bytes, not single bytes.
        length, scale_length = payload.stop - payload.start, 2
        fields: Any = np.dtype(
            {
                "names": ["payload", "scale"],
                "formats": [f"V{length}", "V2"],
                "offsets": [payload.start, scale.start],
                "itemsize": size,
            }
        )
        view = source.view(fields)
        target[: blocks * length].view(f"V{length}")[:] = view["payload"]
        target[blocks * length : blocks * (length + scale_length)].view("V2")[:] = view["scale"]
        return
    width = _PLAIN[kind] * columns
    padded = row_bytes(kind, columns)
    target[: source.size // width * padded].reshape(-1, padded)[:, :width] = source.reshape(-1, width)


def upload(device: Device, info: TensorInfo) -> Weight:
    """Put one tensor on the device; its pages of the memory map are dropped afterwards.

    Raises:
        DeviceError: one matrix row or expert exceeds a storage buffer binding.
    """
    return stack_upload(device, info.name, info.type, info.shape, info.data, lambda: drop_pages(info))


def stack_upload(
    device: Device,
    name: str,
    kind: GGMLQuantizationType,
    shape: tuple[int, ...],
    data: NDArray[np.uint8],
    done: Callable[[], None] = lambda: None,
) -> Weight:
    """Put ``data`` (the bytes of a tensor of ``shape``, [matrices,] rows, columns) on the device."""
    matrices = shape[0] if len(shape) == 3 else 1
    rows, columns = shape[-2:]
    block, size = GGML_QUANT_SIZES[kind]
    source_row, device_row = columns // block * size, row_bytes(kind, columns)
    limit = device.info.max_storage_buffer_range
    stacked = matrices > 1
    rows_each = rows if stacked else 1
    shards = []
    for first, end in _split(matrices if stacked else rows, rows_each * device_row, limit, name, device):
        n_rows = (end - first) * rows_each
        part = data[first * rows_each * source_row : end * rows_each * source_row]
        label = f"{name}[{first}:{end}]"
        if kind not in _REPACKED and source_row == device_row and source_row % 4 == 0:
            shards.append(Shard(Buffer(device, part.size, label, initial=part.view(np.uint32)), first, end, 0))
            continue
        payload = _REPACKED[kind][0] if kind in _REPACKED else slice(0, 0)
        scale_base = n_rows * (columns // block) * (payload.stop - payload.start) // 4
        buffer = Buffer(device, n_rows * device_row, label)
        buffer.fill(partial(_pack_into, source=part, kind=kind, columns=columns))
        shards.append(Shard(buffer, first, end, scale_base))
    done()
    return Weight(name, kind, matrices, rows, columns, tuple(shards), stacked)


def allocate_f16(device: Device, name: str, matrices: int, rows: int, columns: int, widest: int = 0) -> Weight:
    """A zeroed stack of F16 matrices on the device: a cache that linear kernels can read as weights.

    ``columns`` must be a multiple of 32 and is stored without padding. ``widest`` is the elements of the largest matrix
    of the stacks that must be split alike (0: this one alone).
    """
    limit, elements = device.info.max_storage_buffer_range, rows * columns
    shards = []
    for first, end in _split(matrices, max(widest, elements) * 2, limit, name, device):
        shards.append(Shard(Buffer(device, (end - first) * elements * 2, f"{name}[{first}:{end}]"), first, end, 0))
    return Weight(name, Q.F16, matrices, rows, columns, tuple(shards), stacked=True)


def upload_vector(device: Device, name: str, values: NDArray[np.float32]) -> Buffer:
    """A norm, bias or table in f32."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    return Buffer(device, flat.nbytes, name, initial=flat.view(np.uint32))
