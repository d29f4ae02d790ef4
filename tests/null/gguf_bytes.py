"""GGUF files byte by byte, so that a test can write what no writer would; and a model split over several files."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gguf import GGUFValueType as V

from model.gguf_file import GGUFFile
from model.gguf_shards import part_name

# A metadata value: its type number and its bytes.
Value = tuple[int, bytes]

FORMATS = {V.UINT8: "B", V.INT8: "b", V.BOOL: "B", V.UINT16: "H", V.INT16: "h", V.UINT32: "I", V.INT32: "i"}
FORMATS |= {V.FLOAT32: "f", V.UINT64: "Q", V.INT64: "q", V.FLOAT64: "d"}


def header(version: int = 3, n_tensors: int = 0, n_kv: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_kv)


def text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def tensor(name: str | bytes, ne: Sequence[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)


def number(kind: V, value: float) -> Value:
    return kind, struct.pack("<" + FORMATS[kind], value)


def u16(value: int) -> Value:
    return number(V.UINT16, value)


def u32(value: int) -> Value:
    return number(V.UINT32, value)


def string(value: str | bytes) -> Value:
    return V.STRING, text(value)


def strings(values: Sequence[str | bytes]) -> Value:
    return V.ARRAY, struct.pack("<IQ", V.STRING, len(values)) + b"".join(map(text, values))


def numbers(kind: V, values: Sequence[float]) -> Value:
    return V.ARRAY, struct.pack(f"<IQ{len(values)}{FORMATS[kind]}", kind, len(values), *values)


class Row(NamedTuple):
    """An entry of the tensor table; ``ne`` has the innermost size first, as the file does."""

    name: bytes
    ne: tuple[int, ...]
    kind: int
    offset: int


@dataclass
class Raw:
    """A file taken apart: any piece can be changed before it is put together again.

    ``more`` are keys after ``keys``, such as one of them again. Counts None: as many as there are.
    """

    keys: dict[str | bytes, Value] = field(default_factory=dict)
    tensors: list[Row] = field(default_factory=list)
    data: bytes = b""
    version: int = 3
    alignment: int = 32
    more: list[tuple[str | bytes, Value]] = field(default_factory=list)
    n_keys: int | None = None
    n_tensors: int | None = None

    @classmethod
    def read(cls, content: bytes) -> Raw:
        """Take a good file apart, without the program's reader."""
        version, n_tensors, n_keys = struct.unpack_from("<IQQ", content, 4)
        pos, keys, rows = 24, {}, []
        for _ in range(n_keys):
            name, pos = _text(content, pos)
            (kind,) = struct.unpack_from("<I", content, pos)
            end = _value_end(content, pos + 4, kind)
            keys[name.decode()], pos = (kind, content[pos + 4 : end]), end
        for _ in range(n_tensors):
            name, pos = _text(content, pos)
            (n_dims,) = struct.unpack_from("<I", content, pos)
            *ne, kind, offset = struct.unpack_from(f"<{n_dims}QIQ", content, pos + 4)
            rows.append(Row(name, tuple(ne), kind, offset))
            pos += 16 + 8 * n_dims
        alignment = struct.unpack("<I", keys["general.alignment"][1])[0] if "general.alignment" in keys else 32
        return cls(dict(keys), rows, content[-(-pos // alignment) * alignment :], version, alignment)

    def with_keys(self, changes: Mapping[str, Value | None]) -> Raw:
        """With keys replaced, added or (None) left out."""
        keys = {name: value for name, value in (self.keys | dict(changes)).items() if value is not None}
        return Raw(keys, self.tensors, self.data, self.version, self.alignment)

    def build(self) -> bytes:
        keys = [*self.keys.items(), *self.more]
        n_keys = len(keys) if self.n_keys is None else self.n_keys
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        head = header(self.version, n_tensors, n_keys)
        head += b"".join(key(name, *value) for name, value in keys)
        head += b"".join(tensor(*row) for row in self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data


def _text(content: bytes, pos: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", content, pos)
    return content[pos + 8 : pos + 8 + length], pos + 8 + length


def _value_end(content: bytes, pos: int, kind: int) -> int:
    if kind == V.STRING:
        return _text(content, pos)[1]
    if kind != V.ARRAY:
        return pos + struct.calcsize(FORMATS[V(kind)])
    item, count = struct.unpack_from("<IQ", content, pos)
    pos += 12
    if item != V.STRING:
        return pos + count * struct.calcsize(FORMATS[V(item)])
    for _ in range(count):
        pos = _text(content, pos)[1]
    return pos


def split(path: Path, folder: Path, counts: Sequence[int], alignments: Sequence[int] | None = None) -> list[Path]:
    """Write the model at ``path`` as parts holding ``counts`` tensors each, as gguf-split does, and return their paths.

    The first part has all keys, the others the split keys alone; ``alignments`` gives each part its own.
    """
    model = GGUFFile.open(path)
    infos = list(model.tensors.values())
    assert sum(counts) == len(infos)
    paths, first = [], 0
    for index, count in enumerate(counts):
        raw = Raw() if index else Raw(Raw.read(path.read_bytes()).keys)
        raw.keys |= {"split.no": u16(index), "split.count": u16(len(counts))}
        raw.keys["split.tensors.count"] = number(V.INT32, len(infos))
        if alignments:
            raw.alignment = alignments[index]
            raw.keys["general.alignment"] = u32(raw.alignment)
        for info in infos[first : first + count]:
            raw.tensors.append(Row(info.name.encode(), info.shape[::-1], info.type, len(raw.data)))
            raw.data += info.data.tobytes()
            raw.data += bytes(-len(raw.data) % raw.alignment)
        paths.append(folder / part_name(path.stem, index, len(counts)))
        paths[-1].write_bytes(raw.build())
        first += count
    return paths
