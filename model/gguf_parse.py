"""Reading one GGUF file: header, metadata and tensor table over a read-only memory map, every count checked first.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3 (alike but for the number: version 3
added big-endian files), little-endian. ``gguf.GGUFReader`` makes one NumPy view per array element (seconds for a
150,000-token vocabulary) and reports a truncated file as an index error, so the few dozen lines of parsing are here;
types and block sizes are the ``gguf`` package's.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from vkbackend.errors import InputError, quoted, shown

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NAME = 64  # bytes of a tensor's name, by the format
MAX_KEY = 2**16 - 1  # bytes of a key, by the format
# What a hostile file could make a reader hold. The largest files known have 60 keys, 50,000 tensors, 1,300,000 entries
# in their vocabularies' arrays and 20 MB of metadata.
MAX_KEYS = 2**16
MAX_TENSORS = 2**17
MAX_ENTRIES = 2**21
MAX_METADATA = 2**27  # bytes

AGAIN = "the file is damaged: download or copy it again"

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
    """The key-value section as plain Python values; each is decoded when first asked for and then kept.

    Text that is not UTF-8 is an InputError at that moment.
    """

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


def parse(path: Path) -> tuple[Metadata, dict[str, TensorInfo]]:
    """Map ``path`` and read its tables; tensor bytes stay on disk until touched.

    Raises InputError when the file is absent, no GGUF, of another version or byte order, truncated, or inconsistent.
    """
    return _Parser(path, _map(path)).parse()


def _map(path: Path) -> mmap.mmap:
    try:
        # Asked first: opening a FIFO waits for a writer, and opening a device may have effects.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path}: is not a regular file; expected a GGUF file; check the path")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise InputError(f"{path}: the file is empty; expected a GGUF file; download or copy it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); expected a GGUF file; check the path") from error


class _Row(NamedTuple):
    """One entry of the tensor table as the file has it, ``shape`` in NumPy order."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


class _Parser:
    """One pass over the header. ``pos`` is the read position; every read is checked against the file's length."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.bytes = np.frombuffer(buffer, dtype=np.uint8)
        self.pos = 0
        self.entries = 0  # of all arrays so far
        self.reading = "the header"  # what a truncation interrupts

    def parse(self) -> tuple[Metadata, dict[str, TensorInfo]]:
        tensor_count, kv_count = self._header()
        kv = Metadata(self._metadata(kv_count))
        alignment = self._alignment(kv)
        rows = [self._tensor_row(index, tensor_count) for index in range(tensor_count)]
        return kv, self._tensors(rows, alignment)

    def _header(self) -> tuple[int, int]:
        found = bytes(self.buffer[:4])
        if found != MAGIC:
            raise InputError(
                f"{self.path}: not a GGUF file: starts with {found!r}, expected {MAGIC!r}; "
                "convert the model with llama.cpp's convert_hf_to_gguf.py"
            )
        self.pos = 4
        version = self._scalar(_U32)
        if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *SUPPORTED_VERSIONS):
            raise InputError(
                f"{self.path}: big-endian GGUF, expected little-endian; convert it with gguf-py's gguf-convert-endian"
            )
        if version not in SUPPORTED_VERSIONS:
            raise InputError(
                f"{self.path}: GGUF version {version}, expected {' or '.join(map(str, SUPPORTED_VERSIONS))}; "
                "convert the model again with a current llama.cpp"
            )
        counts = self._scalar(_U64), self._scalar(_U64)
        for count, limit, what in zip(counts, (MAX_TENSORS, MAX_KEYS), ("tensors", "metadata keys"), strict=True):
            if count > limit:
                raise InputError(f"{self.path}: claims {count} {what}, expected at most {limit}; {AGAIN}")
        return counts

    def _metadata(self, count: int) -> dict[str, Callable[[], Any]]:
        decoders: dict[str, Callable[[], Any]] = {}
        for index in range(count):
            self.reading = f"metadata key {index + 1} of {count}"
            key = self._name(MAX_KEY)
            self.reading = f"key {shown(key)}"
            if key in decoders:
                raise InputError(f"{self.path}: {self.reading} appears twice, expected once; convert the model again")
            decoders[key] = self._value()
            if self.pos > MAX_METADATA:
                raise InputError(
                    f"{self.path}: {self.reading} ends at byte {self.pos}, expected all keys within {MAX_METADATA}; "
                    f"{AGAIN}"
                )
        return decoders

    def _value(self) -> Callable[[], Any]:
        """Skip over one value and return what decodes it later."""
        where, kind = self.reading, self._value_type()
        start = self.pos
        if kind == GGUFValueType.STRING:
            self._skip_strings(1)
            return lambda: self._decode_strings(where, start, 1)[0]
        if kind == GGUFValueType.ARRAY:
            return self._array(where)
        self._advance(_SCALARS[kind].size)
        return lambda: _SCALARS[kind].unpack_from(self.buffer, start)[0]

    def _array(self, where: str) -> Callable[[], Any]:
        item, count = self._value_type(), self._scalar(_U64)
        start = self.pos
        if item == GGUFValueType.ARRAY:
            raise InputError(
                f"{self.path}: {where} is an array of arrays, expected one of scalars or strings; "
                "convert the model again"
            )
        layout = _U64 if item == GGUFValueType.STRING else _SCALARS[item]  # a string's length, at the least
        self._require(count * layout.size)
        self.entries += count
        if self.entries > MAX_ENTRIES:
            raise InputError(
                f"{self.path}: {where} has {count} entries, expected at most {MAX_ENTRIES} in all arrays; {AGAIN}"
            )
        if item == GGUFValueType.STRING:
            self._skip_strings(count)
            return lambda: self._decode_strings(where, start, count)
        self._advance(count * layout.size)
        return lambda: [value for (value,) in layout.iter_unpack(self.buffer[start : start + count * layout.size])]

    def _value_type(self) -> GGUFValueType:
        number = self._scalar(_U32)
        try:
            return GGUFValueType(number)
        except ValueError:
            raise InputError(
                f"{self.path}: {self.reading} has value type {number}, expected 0 to {max(GGUFValueType)}; {AGAIN}"
            ) from None

    def _alignment(self, kv: Metadata) -> int:
        alignment = kv.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment < 2**32 or alignment & (alignment - 1):
            raise InputError(
                f"{self.path}: key general.alignment is {quoted(alignment)}, expected a power of two below 2^32; "
                f"convert the model again"
            )
        return alignment

    def _tensor_row(self, index: int, count: int) -> _Row:
        self.reading = f"tensor {index + 1} of {count} in the tensor table"
        name = self._name(MAX_NAME)
        self.reading = f"the table entry of tensor {shown(name)}"
        n_dims = self._scalar(_U32)
        if not 1 <= n_dims <= MAX_DIMS:
            raise InputError(
                f"{self.path}: tensor {shown(name)} has {n_dims} dimensions, expected 1 to {MAX_DIMS}; {AGAIN}"
            )
        ne = tuple(self._scalar(_U64) for _ in range(n_dims))
        return _Row(name, ne[::-1], self._scalar(_U32), self._scalar(_U64))

    def _tensors(self, rows: list[_Row], alignment: int) -> dict[str, TensorInfo]:
        base = -(-self.pos // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        ranges: list[tuple[int, int, str]] = []
        for name, shape, type_number, offset in rows:
            where = f"{self.path}: tensor {shown(name)}"
            if name in tensors:
                raise InputError(f"{where} appears twice, expected once; convert the model again")
            kind = _tensor_type(where, type_number)
            nbytes = _tensor_bytes(where, kind, shape)
            if offset % alignment:
                raise InputError(f"{where} starts at offset {offset}, expected a multiple of {alignment}; {AGAIN}")
            start = base + offset
            if start + nbytes > self.size:
                raise InputError(
                    f"{self.path}: truncated: tensor {shown(name)} ends at byte {start + nbytes}, "
                    f"the file has {self.size}; download or copy it again"
                )
            ranges.append((start, start + nbytes, name))
            tensors[name] = TensorInfo(name, kind, shape, nbytes, self.bytes[start : start + nbytes])
        for (_, end, name), (start, _, other) in pairwise(sorted(ranges)):
            if start < end:
                raise InputError(
                    f"{self.path}: tensor {shown(other)} starts at byte {start}, expected it after tensor "
                    f"{shown(name)}, which ends at byte {end}; {AGAIN}"
                )
        return tensors

    def _scalar(self, layout: struct.Struct) -> Any:
        start = self.pos
        self._advance(layout.size)
        return layout.unpack_from(self.buffer, start)[0]

    def _name(self, limit: int) -> str:
        """A key or a tensor's name."""
        start = self.pos
        self._skip_strings(1)
        n_bytes = self.pos - start - _U64.size
        if not 1 <= n_bytes <= limit:
            raise InputError(
                f"{self.path}: {self.reading} has a name of {n_bytes} bytes, expected 1 to {limit}; {AGAIN}"
            )
        return self._decode_strings(self.reading, start, 1)[0]

    def _advance(self, n_bytes: int) -> None:
        self._require(n_bytes)
        self.pos += n_bytes

    def _require(self, n_bytes: int) -> None:
        if n_bytes > self.size - self.pos:
            raise self._truncated()

    def _skip_strings(self, count: int) -> None:
        """Move past ``count`` strings; the one loop that runs once per vocabulary entry, so it is kept tight."""
        pos, buffer, read = self.pos, self.buffer, _U64.unpack_from
        try:
            for _ in range(count):
                pos += 8 + read(buffer, pos)[0]
        except (struct.error, OverflowError):
            raise self._truncated() from None
        if pos > self.size:
            raise self._truncated()
        self.pos = pos

    def _decode_strings(self, where: str, pos: int, count: int) -> list[str]:
        values, buffer, read = [], self.buffer, _U64.unpack_from
        try:
            for _ in range(count):
                start = pos + 8
                pos = start + read(buffer, pos)[0]
                values.append(buffer[start:pos].decode())
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: {where}: bytes that are no text, expected UTF-8; {AGAIN}") from None
        return values

    def _truncated(self) -> InputError:
        return InputError(
            f"{self.path}: truncated: the file ends at byte {self.size}, inside {self.reading}; "
            "download or copy it again"
        )


def _tensor_type(where: str, number: int) -> GGMLQuantizationType:
    if number in GGML_QUANT_SIZES:
        return GGMLQuantizationType(number)
    raise InputError(
        f"{where} has type number {number}, expected one that gguf-py knows; requantise the file with llama-quantize"
    )


def _tensor_bytes(where: str, kind: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block:
        raise InputError(
            f"{where} has shape {list(shape)}, expected non-zero sizes and rows of a multiple of {block} for "
            f"{kind.name}; {AGAIN}"
        )
    if prod(shape) >= 2**63:
        raise InputError(f"{where} has shape {list(shape)}, expected fewer than 2^63 elements; {AGAIN}")
    return prod(shape) // block * block_bytes
