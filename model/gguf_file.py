"""GGUF container: header, metadata and tensor table over one read-only memory map.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
``gguf.GGUFReader`` makes one NumPy view per array element (seconds for a 150,000-token vocabulary) and reports a
truncated file as an index error, so the few dozen lines of parsing are here; types, block sizes and dequantisation
are the ``gguf`` package's.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize as _dequantize_bytes

from vkbackend.errors import InputError

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4  # GGML_MAX_DIMS

_SCALARS: dict[GGUFValueType, struct.Struct] = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}
_U32 = _SCALARS[GGUFValueType.UINT32]
_U64 = _SCALARS[GGUFValueType.UINT64]


@dataclass(frozen=True, eq=False)
class TensorInfo:
    """One tensor: ``shape`` in NumPy order (GGUF's ``ne`` reversed), ``data`` its bytes in the map (uint8, 1-D)."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    nbytes: int
    data: np.ndarray = field(repr=False)


class Metadata(Mapping[str, Any]):
    """The key-value section as plain Python values; each is decoded when first asked for and then kept."""

    def __init__(self, decoders: dict[str, Callable[[], Any]]) -> None:
        self._decoders = decoders
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            self._values[key] = self._decoders[key]()
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoders)

    def __len__(self) -> int:
        return len(self._decoders)

    def __contains__(self, key: object) -> bool:
        return key in self._decoders


@dataclass(frozen=True, eq=False)
class GGUFFile:
    """An opened GGUF. The map lives as long as this object or any array taken from it."""

    path: Path
    kv: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Map ``path`` and read its tables; tensor bytes stay on disk until touched.

        Raises InputError when the file is absent, not a GGUF, of another version or byte order, one part of several,
        truncated, or inconsistent; the message names the key or tensor.
        """
        path = Path(path)
        parser = _Parser(path, _map(path))
        kv, tensors = parser.parse()
        return cls(path, kv, MappingProxyType(tensors))


def dequantize(info: TensorInfo) -> np.ndarray:
    """The tensor's values as float32 of ``info.shape`` (by ``gguf.quants``). InputError for types it cannot decode."""
    row_bytes = info.nbytes // max(1, prod(info.shape[:-1]))
    try:
        values = _dequantize_bytes(info.data.reshape(-1, row_bytes), info.type)
    except NotImplementedError:
        raise InputError(
            f"tensor {info.name}: type {info.type.name} cannot be dequantised; expected a floating-point or quantised "
            "weight type; requantise the file"
        ) from None
    return values.reshape(info.shape)


def drop_pages(data: np.ndarray) -> None:
    """Let go of the resident pages of a memory map that lie wholly under ``data``; they are read again if touched."""
    base: Any = data
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if not isinstance(base, mmap.mmap):
        return  # an array in memory, as tests make them
    start = data.__array_interface__["data"][0] - np.frombuffer(base, np.uint8).__array_interface__["data"][0]
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        base.madvise(mmap.MADV_DONTNEED, first, last - first)


def _map(path: Path) -> mmap.mmap:
    try:
        # Asked first: opening a FIFO waits for a writer, and opening a device may have effects.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path}: is not a regular file; expected a GGUF file; check the path")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); expected a GGUF file; check the path"
        ) from error
    except ValueError as error:  # what mmap raises for zero bytes
        raise InputError(f"{path}: the file is empty; expected a GGUF file; download or copy it again") from error


class _Parser:
    """One pass over the header. ``pos`` is the read position; every read is checked against the file's length."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.bytes = np.frombuffer(buffer, dtype=np.uint8)
        self.pos = 0
        self.reading = "the header"  # what a truncation interrupts

    def parse(self) -> tuple[Metadata, dict[str, TensorInfo]]:
        tensor_count, kv_count = self._header()
        decoders = self._metadata(kv_count)
        kv = Metadata(decoders)
        self._refuse_split(kv)
        rows = [self._tensor_row(index, tensor_count) for index in range(tensor_count)]
        return kv, self._tensors(rows, self._alignment(kv))

    def _header(self) -> tuple[int, int]:
        found = bytes(self.buffer[:4])
        if found != MAGIC:
            raise InputError(
                f"{self.path}: not a GGUF file: starts with {found!r}, expected {MAGIC!r}; "
                "convert the model with llama.cpp's convert_hf_to_gguf.py"
            )
        self.pos = 4
        version = self._scalar(_U32)
        if version & 0xFFFF == 0:
            raise InputError(
                f"{self.path}: big-endian GGUF, expected little-endian; convert it with gguf-py's gguf-convert-endian"
            )
        if version not in SUPPORTED_VERSIONS:
            raise InputError(
                f"{self.path}: GGUF version {version}, expected {' or '.join(map(str, SUPPORTED_VERSIONS))}; "
                "convert the model again with a current llama.cpp"
            )
        return self._scalar(_U64), self._scalar(_U64)

    def _metadata(self, count: int) -> dict[str, Callable[[], Any]]:
        decoders: dict[str, Callable[[], Any]] = {}
        for index in range(count):
            self.reading = f"metadata key {index + 1} of {count}"
            key = self._string()
            self.reading = f"key {key}"
            if key in decoders:
                raise InputError(f"{self.path}: key {key} appears twice, expected once; convert the model again")
            decoders[key] = self._value(key)
        return decoders

    def _value(self, key: str) -> Callable[[], Any]:
        """Skip over one value and return what decodes it later."""
        kind = self._value_type(key)
        start = self.pos
        if kind == GGUFValueType.STRING:
            self._skip_strings(1)
            return lambda: self._decode_strings(key, start, 1)[0]
        if kind == GGUFValueType.ARRAY:
            item, count = self._value_type(key), self._scalar(_U64)
            start = self.pos
            if item == GGUFValueType.STRING:
                self._skip_strings(count)
                return lambda: self._decode_strings(key, start, count)
            if item == GGUFValueType.ARRAY:
                raise InputError(
                    f"{self.path}: key {key} is an array of arrays, expected one of scalars or strings; "
                    "convert the model again"
                )
            layout = _SCALARS[item]
            self._advance(count * layout.size)
            return lambda: [value for (value,) in layout.iter_unpack(self.buffer[start : start + count * layout.size])]
        self._advance(_SCALARS[kind].size)
        return lambda: _SCALARS[kind].unpack_from(self.buffer, start)[0]

    def _value_type(self, key: str) -> GGUFValueType:
        number = self._scalar(_U32)
        try:
            return GGUFValueType(number)
        except ValueError:
            raise InputError(
                f"{self.path}: key {key} has value type {number}, expected 0 to {max(GGUFValueType)}; "
                "the file is damaged: download or copy it again"
            ) from None

    def _refuse_split(self, kv: Metadata) -> None:
        parts = kv.get("split.count", 0)
        if not isinstance(parts, int) or parts > 1:
            raise InputError(
                f"{self.path}: key split.count is {parts!r}, expected a single file; "
                "merge the parts with llama-gguf-split --merge"
            )

    def _alignment(self, kv: Metadata) -> int:
        alignment = kv.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise InputError(
                f"{self.path}: key general.alignment is {alignment!r}, expected a power of two; convert the model again"
            )
        return alignment

    def _tensor_row(self, index: int, count: int) -> tuple[str, tuple[int, ...], int, int]:
        self.reading = f"tensor {index + 1} of {count} in the tensor table"
        name = self._string()
        self.reading = f"the table entry of tensor {name}"
        n_dims = self._scalar(_U32)
        if not 1 <= n_dims <= MAX_DIMS:
            raise InputError(
                f"{self.path}: tensor {name} has {n_dims} dimensions, expected 1 to {MAX_DIMS}; "
                "the file is damaged: download or copy it again"
            )
        ne = tuple(self._scalar(_U64) for _ in range(n_dims))
        return name, ne[::-1], self._scalar(_U32), self._scalar(_U64)

    def _tensors(self, rows: list[tuple[str, tuple[int, ...], int, int]], alignment: int) -> dict[str, TensorInfo]:
        base = -(-self.pos // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, type_number, offset in rows:
            if name in tensors:
                raise InputError(f"{self.path}: tensor {name} appears twice, expected once; convert the model again")
            kind = self._tensor_type(name, type_number)
            nbytes = self._tensor_bytes(name, kind, shape)
            if offset % alignment:
                raise InputError(
                    f"{self.path}: tensor {name} starts at offset {offset}, expected a multiple of {alignment}; "
                    "the file is damaged: download or copy it again"
                )
            start = base + offset
            if start + nbytes > self.size:
                raise InputError(
                    f"{self.path}: truncated: tensor {name} ends at byte {start + nbytes}, the file has {self.size}; "
                    "download or copy it again"
                )
            tensors[name] = TensorInfo(name, kind, shape, nbytes, self.bytes[start : start + nbytes])
        return tensors

    def _tensor_type(self, name: str, number: int) -> GGMLQuantizationType:
        try:
            return GGMLQuantizationType(number)
        except ValueError:
            raise InputError(
                f"{self.path}: tensor {name} has type number {number}, expected one that gguf-py knows; "
                "requantise the file with llama-quantize"
            ) from None

    def _tensor_bytes(self, name: str, kind: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[-1] % block:
            raise InputError(
                f"{self.path}: tensor {name} has shape {list(shape)}, expected non-zero sizes and rows of a "
                f"multiple of {block} for {kind.name}; the file is damaged: download or copy it again"
            )
        return prod(shape) // block * block_bytes

    def _scalar(self, layout: struct.Struct) -> Any:
        start = self.pos
        self._advance(layout.size)
        return layout.unpack_from(self.buffer, start)[0]

    def _string(self) -> str:
        start = self.pos
        self._skip_strings(1)
        return self._decode_strings(self.reading, start, 1)[0]

    def _advance(self, n_bytes: int) -> None:
        if self.pos + n_bytes > self.size:
            raise self._truncated()
        self.pos += n_bytes

    def _skip_strings(self, count: int) -> None:
        """Move past ``count`` strings; the one loop that runs once per vocabulary entry, so it is kept tight."""
        if count * _U64.size > self.size - self.pos:
            raise self._truncated()
        pos, buffer, read = self.pos, self.buffer, _U64.unpack_from
        try:
            for _ in range(count):
                pos += 8 + read(buffer, pos)[0]
        except (struct.error, OverflowError):
            raise self._truncated() from None
        self.pos = pos
        self._advance(0)

    def _decode_strings(self, where: str, pos: int, count: int) -> list[str]:
        values, buffer, read = [], self.buffer, _U64.unpack_from
        try:
            for _ in range(count):
                start = pos + 8
                pos = start + read(buffer, pos)[0]
                values.append(buffer[start:pos].decode())
        except UnicodeDecodeError:
            raise InputError(
                f"{self.path}: {where}: bytes that are no text, expected UTF-8; "
                "the file is damaged: download or copy it again"
            ) from None
        return values

    def _truncated(self) -> InputError:
        return InputError(
            f"{self.path}: truncated: the file ends at byte {self.size}, inside {self.reading}; "
            "download or copy it again"
        )
