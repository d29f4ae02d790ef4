"""GGUF files byte by byte, so that a test can write what no writer would; and a model split over several files."""

import struct
from collections.abc import Sequence
from math import prod
from pathlib import Path

from gguf import GGML_QUANT_SIZES
from gguf import GGUFValueType as V

from model.gguf_file import GGUFFile
from model.gguf_shards import part_name

# Pieces of one metadata value: its type number and its bytes.
Value = tuple[int, bytes]


def header(version: int = 3, n_tensors: int = 0, n_kv: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_kv)


def text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def u16(value: int) -> Value:
    return V.UINT16, struct.pack("<H", value)


def u32(value: int) -> Value:
    return V.UINT32, struct.pack("<I", value)


def string(value: str | bytes) -> Value:
    return V.STRING, text(value)


def strings(values: Sequence[str | bytes]) -> Value:
    return V.ARRAY, struct.pack("<IQ", V.STRING, len(values)) + b"".join(map(text, values))


def tensor(name: str | bytes, ne: Sequence[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)


def file(
    keys: Sequence[tuple[str | bytes, Value]] = (), tensors: Sequence[bytes] = (), data: bytes = b"", version: int = 3
) -> bytes:
    """A whole file: ``tensors`` are table entries that ``tensor`` made, ``data`` what follows on a multiple of 32."""
    head = header(version, len(tensors), len(keys)) + b"".join(key(name, *value) for name, value in keys)
    head += b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def raw_keys(content: bytes) -> list[tuple[str, Value]]:
    """Keys of a good file with their values' bytes, read without the program's reader."""
    (count,) = struct.unpack_from("<Q", content, 16)
    pos, keys = 24, []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", content, pos)
        name = content[pos + 8 : pos + 8 + length].decode()
        pos += 8 + length
        (kind,) = struct.unpack_from("<I", content, pos)
        end = _value_end(content, pos + 4, kind)
        keys.append((name, (kind, content[pos + 4 : end])))
        pos = end
    return keys


def _value_end(content: bytes, pos: int, kind: int) -> int:
    sizes = {V.UINT8: 1, V.INT8: 1, V.BOOL: 1, V.UINT16: 2, V.INT16: 2, V.UINT32: 4, V.INT32: 4, V.FLOAT32: 4}
    if kind == V.ARRAY:
        item, count = struct.unpack_from("<IQ", content, pos)
        pos += 12
        if item != V.STRING:
            return pos + count * sizes.get(V(item), 8)
        for _ in range(count):
            pos = _value_end(content, pos, V.STRING)
        return pos
    if kind == V.STRING:
        return pos + 8 + struct.unpack_from("<Q", content, pos)[0]
    return pos + sizes.get(V(kind), 8)


def split(path: Path, folder: Path, counts: Sequence[int], alignments: Sequence[int] | None = None) -> list[Path]:
    """Write the model at ``path`` as parts holding ``counts`` tensors each, as gguf-split does, and return their paths.

    The first part has all keys, the others the split keys alone; ``alignments`` gives each part its own.
    """
    model = GGUFFile.open(path)
    infos = list(model.tensors.values())
    assert sum(counts) == len(infos)
    paths, first = [], 0
    for index, count in enumerate(counts):
        keys = raw_keys(path.read_bytes()) if index == 0 else []
        keys += [("split.no", u16(index)), ("split.count", u16(len(counts)))]
        keys += [("split.tensors.count", (V.INT32, struct.pack("<i", len(infos))))]
        alignment = alignments[index] if alignments else 32
        if alignments:
            keys = [pair for pair in keys if pair[0] != "general.alignment"] + [("general.alignment", u32(alignment))]
        table, data = [], b""
        for info in infos[first : first + count]:
            data += bytes(-len(data) % alignment)
            table.append(tensor(info.name, info.shape[::-1], info.type, len(data)))
            block, n_bytes = GGML_QUANT_SIZES[info.type]
            assert info.nbytes == prod(info.shape) // block * n_bytes
            data += info.data.tobytes()
        head = header(3, count, len(keys)) + b"".join(key(name, *value) for name, value in keys) + b"".join(table)
        part = folder / part_name(path.stem, index, len(counts))
        part.write_bytes(head + bytes(-len(head) % alignment) + data + bytes(-len(data) % alignment))
        paths.append(part)
        first += count
    return paths
