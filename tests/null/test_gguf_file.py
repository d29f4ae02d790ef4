"""GGUF reading: values against gguf-py's own reader, every kind of damage as one exact line."""

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from hypothesis import given, settings
from hypothesis import strategies as st

from model.gguf_file import GGUFFile, dequantize
from model.random_blocks import RANDOM_TYPES, random_blocks
from tests.null.gguf_bytes import header, key, tensor
from vkbackend.errors import InputError

AGAIN = "download or copy it again"


def sample_file(path: Path) -> Path:
    """One key of every type, one tensor of every type that random_blocks makes, in shapes of 1 to 4 dimensions."""
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_uint8("n.u8", 200)
    writer.add_int8("n.i8", -100)
    writer.add_uint16("n.u16", 60_000)
    writer.add_int16("n.i16", -30_000)
    writer.add_uint32("n.u32", 4_000_000_000)
    writer.add_int32("n.i32", -2_000_000_000)
    writer.add_uint64("n.u64", 2**63 + 5)
    writer.add_int64("n.i64", -(2**62))
    writer.add_float32("n.f32", 0.1)
    writer.add_float64("n.f64", 0.1)
    writer.add_bool("n.bool", True)
    writer.add_string("text", "na\u00efve \U0001f600 text")
    writer.add_array("words", ["", "\u0120a", "x" * 300])
    writer.add_array("ints", [-1, 2, 3])
    writer.add_array("floats", [0.5, -1.5])
    rng = np.random.default_rng(0)
    for index, kind in enumerate(RANDOM_TYPES):
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        shape = (2, 3, 5, 2 * block)[3 - index % 4 :]
        data = random_blocks(kind, int(np.prod(shape)) // block, rng, 1.0)
        byte_shape = (*shape[:-1], shape[-1] // block * n_bytes)
        writer.add_tensor(f"t.{kind.name}", data.reshape(byte_shape), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_file(tmp_path_factory.mktemp("gguf") / "sample.gguf")


def message(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        GGUFFile.open(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_keys_are_those_of_gguf_py(sample: Path) -> None:
    ours, theirs = GGUFFile.open(sample).kv, gguf.GGUFReader(sample)
    names = [name for name in theirs.fields if not name.startswith("GGUF.")]
    assert list(ours) == names
    for name in names:
        assert ours[name] == theirs.fields[name].contents(), name
    assert ours["words"] == ["", "\u0120a", "x" * 300] and ours["n.u64"] == 2**63 + 5 and ours["n.bool"] is True
    assert ours.get("absent") is None and "absent" not in ours


def test_tensors_are_those_of_gguf_py(sample: Path) -> None:
    ours = GGUFFile.open(sample).tensors
    theirs = gguf.GGUFReader(sample).tensors
    assert list(ours) == [t.name for t in theirs]
    for t in theirs:
        info = ours[t.name]
        assert (info.type, info.shape, info.nbytes) == (t.tensor_type, tuple(t.shape.tolist()[::-1]), t.n_bytes)
        np.testing.assert_array_equal(info.data, t.data.view(np.uint8).reshape(-1))
        expected = gguf.quants.dequantize(t.data, t.tensor_type)
        np.testing.assert_array_equal(dequantize(info), expected.reshape(info.shape))
        assert dequantize(info).dtype == np.float32


def test_data_stays_in_the_map(sample: Path) -> None:
    info = next(iter(GGUFFile.open(sample).tensors.values()))
    assert not info.data.flags.writeable and info.data.base is not None


def test_large_vocabulary_is_not_decoded_on_opening(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "deepseek2")
    writer.add_token_list([f"token{i}" for i in range(20_000)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    kv = GGUFFile.open(tmp_path / "v.gguf").kv
    assert kv._values.get("tokenizer.ggml.tokens") is None  # type: ignore[attr-defined]
    assert kv["tokenizer.ggml.tokens"][19_999] == "token19999"
    assert kv["tokenizer.ggml.tokens"] is kv["tokenizer.ggml.tokens"]


def test_absent_file(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    with pytest.raises(InputError) as caught:
        GGUFFile.open(path)
    assert str(caught.value) == (
        f"{path}: cannot be read (No such file or directory); expected a GGUF file; check the path"
    )


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        GGUFFile.open(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read (Is a directory); expected a GGUF file; check the path"


def test_what_is_no_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # opening it would wait for a writer
    for path in (fifo, Path("/dev/zero")):
        with pytest.raises(InputError) as caught:
            GGUFFile.open(path)
        assert str(caught.value) == f"{path}: is not a regular file; expected a GGUF file; check the path"


def test_damaged_headers(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    assert message(path, b"") == f"{path}: the file is empty; expected a GGUF file; {AGAIN}"
    assert message(path, b"PK\x03\x04" + bytes(60)) == (
        f"{path}: not a GGUF file: starts with b'PK\\x03\\x04', expected b'GGUF'; "
        "convert the model with llama.cpp's convert_hf_to_gguf.py"
    )
    assert message(path, b"GGUF" + struct.pack(">I", 3)) == (
        f"{path}: big-endian GGUF, expected little-endian; convert it with gguf-py's gguf-convert-endian"
    )
    assert message(path, header(version=1)) == (
        f"{path}: GGUF version 1, expected 2 or 3; convert the model again with a current llama.cpp"
    )
    assert message(path, b"GGUF\x03") == f"{path}: truncated: the file ends at byte 5, inside the header; {AGAIN}"
    assert message(path, header(n_kv=2)) == (
        f"{path}: truncated: the file ends at byte 24, inside metadata key 1 of 2; {AGAIN}"
    )


def test_damaged_keys(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    assert message(path, header(n_kv=1) + key("a.b", 4, b"\1")) == (
        f"{path}: truncated: the file ends at byte 40, inside key a.b; {AGAIN}"
    )
    huge = struct.pack("<IQ", 8, 2**60)
    assert message(path, header(n_kv=1) + key("tokens", 9, huge)) == (
        f"{path}: truncated: the file ends at byte 54, inside key tokens; {AGAIN}"
    )
    assert message(path, header(n_kv=1) + key("tokens", 9, struct.pack("<IQ", 8, 1) + struct.pack("<Q", 2**63))) == (
        f"{path}: truncated: the file ends at byte 62, inside key tokens; {AGAIN}"
    )
    assert message(path, header(n_kv=1) + key("k", 13, b"")) == (
        f"{path}: key k has value type 13, expected 0 to 12; the file is damaged: {AGAIN}"
    )
    assert message(path, header(n_kv=1) + key("k", 9, struct.pack("<IQ", 9, 1))) == (
        f"{path}: key k is an array of arrays, expected one of scalars or strings; convert the model again"
    )
    assert message(path, header(n_kv=2) + 2 * key("k", 0, b"\1")) == (
        f"{path}: key k appears twice, expected once; convert the model again"
    )
    assert message(path, header(n_kv=1) + key("general.alignment", 4, struct.pack("<I", 48))) == (
        f"{path}: key general.alignment is 48, expected a power of two below 2^32; convert the model again"
    )


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(header(n_kv=1) + key("k", 8, struct.pack("<Q", 2) + b"\xff\xfe"))
    kv = GGUFFile.open(path).kv
    with pytest.raises(InputError) as caught:
        kv["k"]
    assert str(caught.value) == f"{path}: key k: bytes that are no text, expected UTF-8; the file is damaged: {AGAIN}"


def test_damaged_tensor_tables(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    data = bytes(4096)
    assert message(path, header(n_tensors=1) + tensor("w", (64, 2), 0, 0)) == (
        f"{path}: truncated: tensor w ends at byte 608, the file has 65; {AGAIN}"
    )
    two = tensor("a", (32,), 0, 0) + tensor("b", (1024,), 12, 128)  # b: 4 blocks of 144 bytes
    assert message(path, (header(n_tensors=2) + two + data)[:799]) == (
        f"{path}: truncated: tensor b ends at byte 800, the file has 799; {AGAIN}"
    )
    assert message(path, header(n_tensors=1) + tensor("w", (100,), 12, 0) + data) == (
        f"{path}: tensor w has shape [100], expected non-zero sizes and rows of a multiple of 256 for Q4_K; "
        f"the file is damaged: {AGAIN}"
    )
    assert message(path, header(n_tensors=1) + tensor("w", (4, 0), 0, 0) + data) == (
        f"{path}: tensor w has shape [0, 4], expected non-zero sizes and rows of a multiple of 1 for F32; "
        f"the file is damaged: {AGAIN}"
    )
    assert message(path, header(n_tensors=1) + tensor("w", (1,) * 5, 0, 0) + data) == (
        f"{path}: tensor w has 5 dimensions, expected 1 to 4; the file is damaged: {AGAIN}"
    )
    assert message(path, header(n_tensors=1) + tensor("w", (8,), 999, 0) + data) == (
        f"{path}: tensor w has type number 999, expected one that gguf-py knows; "
        "requantise the file with llama-quantize"
    )
    assert message(path, header(n_tensors=1) + tensor("w", (8,), 0, 4) + data) == (
        f"{path}: tensor w starts at offset 4, expected a multiple of 32; the file is damaged: {AGAIN}"
    )
    assert message(path, header(n_tensors=2) + 2 * tensor("w", (8,), 0, 0) + data) == (
        f"{path}: tensor w appears twice, expected once; convert the model again"
    )
    assert message(path, header(n_tensors=3) + tensor("w", (8,), 0, 0)) == (
        f"{path}: truncated: the file ends at byte 57, inside tensor 2 of 3 in the tensor table; {AGAIN}"
    )


def test_type_that_cannot_be_dequantised(tmp_path: Path) -> None:
    path = tmp_path / "i32.gguf"
    path.write_bytes(header(n_tensors=1) + tensor("w", (8,), int(Q.I32), 0) + bytes(4096))
    with pytest.raises(InputError) as caught:
        dequantize(GGUFFile.open(path).tensors["w"])
    assert str(caught.value) == (
        "tensor w: type I32 cannot be dequantised; expected a floating-point or quantised weight type; "
        "requantise the file"
    )


def test_every_truncation_is_an_input_error(tmp_path: Path, sample: Path) -> None:
    content = sample.read_bytes()
    path = tmp_path / "cut.gguf"
    last = max(GGUFFile.open(sample).tensors.values(), key=lambda t: t.data.ctypes.data)
    end = len(content) - (-last.nbytes % 32)  # what follows is padding
    for length in [*range(0, 2000, 7), end - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            GGUFFile.open(path)
    path.write_bytes(content[:end])
    GGUFFile.open(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_damage_escapes_the_error_family(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "sample-for-damage.gguf"
    if not path.exists():
        sample_file(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, 2000))] = data.draw(st.integers(0, 255))
    damaged = path.with_suffix(".damaged")
    damaged.write_bytes(content)
    try:
        opened = GGUFFile.open(damaged)
        for name in opened.kv:
            opened.kv[name]
    except InputError as error:
        assert str(error).startswith(str(damaged))
