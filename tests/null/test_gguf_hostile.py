"""Files made to break a reader: every known class of attack ends in one exact line, before anything is allocated."""

import os
import struct
import tracemalloc
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
from gguf import GGUFValueType as V

from harness import cli
from model.gguf_file import GGUFFile
from model.gguf_parse import MAX_ENTRIES, MAX_METADATA
from tests.null.gguf_bytes import Raw, Row, Value, header, key, number, numbers, string, strings, tensor, text, u32
from vkbackend.errors import InputError, printable, quoted, shown

AGAIN = "download or copy it again"
DAMAGED = f"the file is damaged: {AGAIN}"
F32, Q4_K = 0, 12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def message(path: Path, content: bytes | Raw, size: int = 0, key: str = "") -> str:
    """The error on opening ``content``, grown to ``size`` bytes with a hole, or on asking for ``key`` of it.

    A megabyte is all that opening may take of Python's memory.
    """
    path.write_bytes(content.build() if isinstance(content, Raw) else content)
    if size:
        os.truncate(path, size)
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            GGUFFile.open(path).kv[key]
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ") and str(caught.value).isprintable()
    return str(caught.value).removeprefix(f"{path}: ")


def with_tensors(*rows: Row, data: int = 4096) -> Raw:
    return Raw(tensors=list(rows), data=bytes(data))


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_read_alike(path: Path, version: int) -> None:
    raw = Raw({"a": u32(7), "b": strings(["x", "y"])}, [Row(b"w", (8, 2), F32, 0)], bytes(range(64)), version=version)
    path.write_bytes(raw.build())
    opened = GGUFFile.open(path)
    assert dict(opened.kv) == {"a": 7, "b": ["x", "y"]}
    assert opened.tensors["w"].shape == (2, 8) and opened.tensors["w"].data.tobytes() == bytes(range(64))


@pytest.mark.parametrize("version", [0, 1, 4, 0xFFFF, 0x30000, 2**32 - 1])
def test_other_versions(path: Path, version: int) -> None:
    assert message(path, header(version)) == (
        f"GGUF version {version}, expected 2 or 3; convert the model again with a current llama.cpp"
    )


@pytest.mark.parametrize("version", [1, 2, 3])
def test_big_endian(path: Path, version: int) -> None:
    assert message(path, b"GGUF" + struct.pack(">IQQ", version, 1, 1)) == (
        "big-endian GGUF, expected little-endian; convert it with gguf-py's gguf-convert-endian"
    )


def test_counts_beyond_any_file(path: Path) -> None:
    for count in (2**17 + 1, 2**32, 2**63, 2**64 - 1):
        assert message(path, header(n_tensors=count), size=2**40) == (
            f"claims {count} tensors, expected at most 131072; {DAMAGED}"
        )
        assert message(path, header(n_kv=count), size=2**40) == (
            f"claims {count} metadata keys, expected at most 65536; {DAMAGED}"
        )


def test_counts_beyond_this_file(path: Path) -> None:
    assert message(path, header(n_tensors=2**17)) == (
        f"truncated: the file ends at byte 24, inside tensor 1 of 131072 in the tensor table; {AGAIN}"
    )
    assert message(path, header(n_kv=2**16)) == (
        f"truncated: the file ends at byte 24, inside metadata key 1 of 65536; {AGAIN}"
    )
    # A hole reads as zeros: names of no bytes.
    assert message(path, header(n_kv=2**16), size=2**40) == (
        f"metadata key 1 of 65536 has a name of 0 bytes, expected 1 to 65535; {DAMAGED}"
    )
    assert message(path, header(n_tensors=2**17), size=2**40) == (
        f"tensor 1 of 131072 in the tensor table has a name of 0 bytes, expected 1 to 64; {DAMAGED}"
    )


# Lengths whose sum with the position, or whose product with an element's size, wraps around in 64 bits.
@pytest.mark.parametrize("length", [2**64 - 1, 2**64 - 8, 2**64 - 40, 2**63, 2**63 - 1, 2**61, 2**32, 100])
def test_lengths_that_overflow(path: Path, length: int) -> None:
    start = header(n_kv=1)
    cut = f"truncated: the file ends at byte {{}}, inside {{}}; {AGAIN}"
    assert message(path, start + struct.pack("<Q", length) + bytes(40)) == cut.format(72, "metadata key 1 of 1")
    assert message(path, start + key("k", V.STRING, struct.pack("<Q", length) + bytes(40))) == cut.format(85, "key k")
    for item in (V.UINT64, V.FLOAT64, V.INT8, V.STRING):
        array = key("k", V.ARRAY, struct.pack("<IQ", item, length) + bytes(40))
        assert message(path, start + array) == cut.format(89, "key k")
    second = struct.pack("<IQ", V.STRING, 3) + text("") + struct.pack("<Q", length) + bytes(40)
    assert message(path, start + key("k", V.ARRAY, second)) == cut.format(105, "key k")
    name = header(n_tensors=1) + struct.pack("<Q", length) + bytes(40)
    assert message(path, name) == cut.format(72, "tensor 1 of 1 in the tensor table")


def test_arrays_beyond_any_vocabulary(path: Path) -> None:
    huge = header(n_kv=1) + key("tokenizer.ggml.tokens", V.ARRAY, struct.pack("<IQ", V.STRING, 2**32))
    assert message(path, huge, size=2**40) == (
        f"key tokenizer.ggml.tokens has {2**32} entries, expected at most 2097152 in all arrays; {DAMAGED}"
    )
    half = struct.pack("<IQ", V.INT8, MAX_ENTRIES // 2 + 1) + bytes(MAX_ENTRIES // 2 + 1)
    assert message(path, header(n_kv=2) + key("a", V.ARRAY, half) + key("b", V.ARRAY, half)) == (
        f"key b has {MAX_ENTRIES // 2 + 1} entries, expected at most 2097152 in all arrays; {DAMAGED}"
    )


def test_text_beyond_any_metadata(path: Path) -> None:
    start = header(n_kv=1) + key("general.name", V.STRING, struct.pack("<Q", 2**33))
    assert message(path, start, size=2**34) == (
        f"key general.name ends at byte {len(start) + 2**33}, expected all keys within {MAX_METADATA}; {DAMAGED}"
    )


@pytest.mark.parametrize("number", [13, 14, 255, 2**31, 2**32 - 1])
def test_value_types_that_do_not_exist(path: Path, number: int) -> None:
    expected = f"key k has value type {number}, expected 0 to 12; {DAMAGED}"
    assert message(path, header(n_kv=1) + key("k", number, bytes(64))) == expected
    assert message(path, header(n_kv=1) + key("k", V.ARRAY, struct.pack("<IQ", number, 1) + bytes(64))) == expected


def test_arrays_of_arrays(path: Path) -> None:
    payload = struct.pack("<IQ", V.ARRAY, 2**20)
    for _ in range(1000):  # a reader that recurses would run out of stack
        payload += struct.pack("<IQ", V.ARRAY, 1)
    assert message(path, header(n_kv=1) + key("k", V.ARRAY, payload)) == (
        "key k is an array of arrays, expected one of scalars or strings; convert the model again"
    )


def test_a_key_twice(path: Path) -> None:
    assert message(path, Raw({"k": u32(1)}, more=[("k", string("x"))])) == (
        "key k appears twice, expected once; convert the model again"
    )


ALIGNMENTS: list[tuple[Value, str]] = [
    *((u32(n), str(n)) for n in (0, 3, 48, 2**31 + 1)),
    (number(V.INT32, -32), "-32"),
    (number(V.UINT64, 2**32), str(2**32)),
    (number(V.UINT64, 2**63), str(2**63)),
    (number(V.BOOL, 1), "True"),
    (number(V.FLOAT32, 32), "32.0"),
    (string("32"), "'32'"),
    (numbers(V.UINT32, [32]), "an array of 1"),
]


@pytest.mark.parametrize(("value", "found"), ALIGNMENTS)
def test_alignments_that_are_no_power_of_two(path: Path, value: Value, found: str) -> None:
    assert message(path, Raw({"general.alignment": value})) == (
        f"key general.alignment is {found}, expected a power of two below 2^32; convert the model again"
    )


def test_an_alignment_larger_than_the_file(path: Path) -> None:
    raw = replace(with_tensors(Row(b"w", (8,), F32, 0)), keys={"general.alignment": u32(2**31)})
    assert message(path, raw) == (
        f"truncated: tensor w ends at byte {2**31 + 32}, the file has {len(raw.build())}; {AGAIN}"
    )


def test_bytes_that_are_no_text(path: Path) -> None:
    expected = f"{{}}: bytes that are no text, expected UTF-8; {DAMAGED}"
    # A stray byte, half a sequence, an overlong NUL, half of a surrogate pair, beyond Unicode.
    for bad in (b"\xff", b"\xe2\x82", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"):
        assert message(path, Raw({bad: u32(1)})) == expected.format("metadata key 1 of 1")
        assert message(path, with_tensors(Row(bad, (8,), F32, 0))) == expected.format(
            "tensor 1 of 1 in the tensor table"
        )
        assert message(path, Raw({"k": string(bad)}), key="k") == expected.format("key k")
        assert message(path, Raw({"k": strings(["a", bad])}), key="k") == expected.format("key k")


def test_names_of_the_wrong_length(path: Path) -> None:
    for length in (0, 65536, 10**6):
        assert message(path, Raw({"k" * length: u32(1)})) == (
            f"metadata key 1 of 1 has a name of {length} bytes, expected 1 to 65535; {DAMAGED}"
        )
    for length in (0, 65, 10**6):
        assert message(path, with_tensors(Row(b"n" * length, (8,), F32, 0))) == (
            f"tensor 1 of 1 in the tensor table has a name of {length} bytes, expected 1 to 64; {DAMAGED}"
        )
    path.write_bytes(replace(with_tensors(Row(b"n" * 64, (8,), F32, 0)), keys={"k" * 65535: u32(1)}).build())
    assert list(GGUFFile.open(path).tensors) == ["n" * 64] and list(GGUFFile.open(path).kv) == ["k" * 65535]


def test_names_that_a_terminal_would_act_on(path: Path) -> None:
    evil, harmless = (
        "\x1b]0;owned\x07\r\n\u202egnp\u2028\x9b2J\x00",
        "\\x1b]0;owned\\x07\\r\\n\\u202egnp\\u2028\\x9b2J\\x00",
    )
    assert message(path, Raw({evil: (13, b"")})) == f"key {harmless} has value type 13, expected 0 to 12; {DAMAGED}"
    assert message(path, with_tensors(Row(evil.encode(), (8,), 999, 0))) == (
        f"tensor {harmless} has type number 999, expected one that gguf-py knows; "
        "requantise the file with llama-quantize"
    )
    long = "k" * 1000
    assert message(path, Raw({long: (13, b"")})) == (
        f"key {'k' * 120}... has value type 13, expected 0 to 12; {DAMAGED}"
    )


def test_what_the_command_prints_is_harmless(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where the path itself is what a terminal would act on."""
    odd = path.with_name("\x1b[31m.gguf")
    odd.write_bytes(Raw({"general.architecture": string("\x1b]0;owned\x07" + "x" * 10**6)}).build())
    assert cli.main(["inspect", str(odd)]) == 2
    assert capfd.readouterr().err == (
        f"latentvk: error: {path.parent}/\\x1b[31m.gguf: key general.architecture is "
        f"'\\x1b]0;owned\\x07{'x' * 110}'..., expected 'deepseek2'; use a GGUF of GLM-4.7-Flash, DeepSeek-V2 or "
        "DeepSeek-V3\n"
    )


def test_how_text_of_a_file_is_shown() -> None:
    assert printable("na\u00efve \U0001f600 \u4e2d\\n") == "na\u00efve \U0001f600 \u4e2d\\n"
    assert printable("\x1b\x7f\x85\u200f\ud800") == "\\x1b\\x7f\\x85\\u200f\\ud800"
    assert shown("x" * 120) == "x" * 120 and shown("x" * 121) == "x" * 120 + "..."
    assert (
        quoted(["a"] * 5) == "an array of 5"
        and quoted(2.5) == "2.5"
        and quoted("\x1b" * 121) == "'" + "\\x1b" * 120 + "'..."
    )


@pytest.mark.parametrize("n_dims", [0, 5, 2**31, 2**32 - 1])
def test_numbers_of_dimensions(path: Path, n_dims: int) -> None:
    table = text("w") + struct.pack("<I", n_dims) + bytes(200)
    assert message(path, header(n_tensors=1) + table) == (
        f"tensor w has {n_dims} dimensions, expected 1 to 4; {DAMAGED}"
    )


@pytest.mark.parametrize(
    "ne",
    [(2**63,), (2**64 - 1,), (2**32, 2**32), (2**16,) * 4, (2**32, 2**31, 2), (2**64 - 32, 2**64 - 1, 2**64 - 1)],
)
def test_sizes_that_overflow(path: Path, ne: tuple[int, ...]) -> None:
    assert prod(ne) >= 2**63
    for start in (0, 2**64 - 4096):
        assert message(path, with_tensors(Row(b"w", ne, F32, start))) == (
            f"tensor w has shape {list(ne[::-1])}, expected fewer than 2^63 elements; {DAMAGED}"
        )


def test_sizes_whose_bytes_overflow(path: Path) -> None:
    assert message(path, with_tensors(Row(b"w", (2**62,), F32, 0))) == (
        f"truncated: tensor w ends at byte {2**64 + 64}, the file has {64 + 4096}; {AGAIN}"
    )


@pytest.mark.parametrize("offset", [4096, 2**32, 2**63, 2**64 - 32])
def test_offsets_beyond_the_file(path: Path, offset: int) -> None:
    assert message(path, with_tensors(Row(b"w", (8,), F32, offset))) == (
        f"truncated: tensor w ends at byte {64 + offset + 32}, the file has {64 + 4096}; {AGAIN}"
    )


@pytest.mark.parametrize("offset", [1, 31, 33, 2**64 - 1])
def test_offsets_off_the_alignment(path: Path, offset: int) -> None:
    assert message(path, with_tensors(Row(b"w", (8,), F32, offset))) == (
        f"tensor w starts at offset {offset}, expected a multiple of 32; {DAMAGED}"
    )


@pytest.mark.parametrize("ne", [(0,), (0, 2**64 - 1), (8, 0), (2**63, 2**63, 0)])
def test_sizes_of_zero(path: Path, ne: tuple[int, ...]) -> None:
    assert message(path, with_tensors(Row(b"w", ne, F32, 0))) == (
        f"tensor w has shape {list(ne[::-1])}, expected non-zero sizes and rows of a multiple of 1 for F32; {DAMAGED}"
    )


@pytest.mark.parametrize("columns", [1, 255, 257, 2**63 + 1])
def test_rows_of_broken_blocks(path: Path, columns: int) -> None:
    assert message(path, with_tensors(Row(b"w", (columns, 2), Q4_K, 0))) == (
        f"tensor w has shape {[2, columns]}, expected non-zero sizes and rows of a multiple of 256 for Q4_K; {DAMAGED}"
    )


# 4, 5, 31 to 33 and 36 to 38 were types once and have no size any more.
@pytest.mark.parametrize("kind", [4, 5, 31, 32, 33, 36, 37, 38, 999, 2**31, 2**32 - 1])
def test_types_of_unknown_size(path: Path, kind: int) -> None:
    assert message(path, with_tensors(Row(b"w", (256,), kind, 0))) == (
        f"tensor w has type number {kind}, expected one that gguf-py knows; requantise the file with llama-quantize"
    )


def test_a_tensor_twice(path: Path) -> None:
    twice = with_tensors(Row(b"w", (8,), F32, 0), Row(b"v", (8,), F32, 32), Row(b"w", (8,), F32, 64))
    assert message(path, twice) == "tensor w appears twice, expected once; convert the model again"


@pytest.mark.parametrize(("size", "offset"), [(8, 0), (64, 0), (8, 64), (64, 96), (8, 96)])
def test_tensors_that_share_bytes(path: Path, size: int, offset: int) -> None:
    """At one place, one inside the other, an end over a beginning; the table's order does not matter."""
    rows = [Row(b"a", (32,), F32, 0), Row(b"b", (size,), F32, offset)]  # a: bytes 0 to 128
    first, second = ("a", "b") if (offset, size) > (0, 32) else ("b", "a")
    base, end = 96, 96 + (128 if first == "a" else 4 * size)  # the header takes 90 bytes
    for order in (rows, rows[::-1]):
        assert message(path, with_tensors(*order)) == (
            f"tensor {second} starts at byte {base + offset}, expected it after tensor {first}, which ends at byte "
            f"{end}; {DAMAGED}"
        )


def test_gaps_and_any_order_are_no_attack(path: Path) -> None:
    rows = [Row(b"a", (8,), F32, 128), Row(b"b", (8,), F32, 0), Row(b"c", (8,), F32, 32)]
    path.write_bytes(with_tensors(*rows).build())
    assert list(GGUFFile.open(path).tensors) == ["a", "b", "c"]


def test_an_absurd_tensor_inside_a_large_file_costs_nothing(path: Path) -> None:
    path.write_bytes(header(n_tensors=1) + tensor("w", (1, 2**20, 2**18), F32, 0))
    os.truncate(path, 2**40 + 96)
    tracemalloc.start()
    info = GGUFFile.open(path).tensors["w"]
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert info.nbytes == 2**40 and info.data.size == 2**40


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    loop = tmp_path / "loop.gguf"
    loop.symlink_to(loop)
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    through = tmp_path / "through.gguf"
    through.symlink_to(fifo)
    empty = tmp_path / "empty.gguf"
    empty.touch()
    expected = {
        loop: "cannot be read (Too many levels of symbolic links); expected a GGUF file; check the path",
        fifo: "is not a regular file; expected a GGUF file; check the path",
        through: "is not a regular file; expected a GGUF file; check the path",
        tmp_path: "cannot be read (Is a directory); expected a GGUF file; check the path",
        empty: "the file is empty; expected a GGUF file; download or copy it again",
        Path("/dev/null"): "is not a regular file; expected a GGUF file; check the path",
        Path("/proc/self/maps"): "the file is empty; expected a GGUF file; download or copy it again",
        tmp_path / "a\0b": "cannot be read (embedded null byte); expected a GGUF file; check the path",
        tmp_path / ("x" * 300): "cannot be read (File name too long); expected a GGUF file; check the path",
    }
    for path, what in expected.items():
        with pytest.raises(InputError) as caught:
            GGUFFile.open(path)
        assert str(caught.value) == f"{path}: {what}"
