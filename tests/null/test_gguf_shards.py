"""Models split over several files: the whole file's tensors, and one exact line for every bad set of parts."""

import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType as V

from harness.metadata import model_file
from harness.options import embedded_model_path
from model.config import ModelConfig
from model.gguf_file import GGUFFile, drop_pages
from model.gguf_shards import part_name
from tests.null.gguf_bytes import Raw, Row, Value, number, numbers, split, string, u16, u32
from vkbackend.errors import InputError

AGAIN = "split the model again with llama-gguf-split"
WHOLE = embedded_model_path()


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        GGUFFile.open(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def part(
    folder: Path,
    index: int,
    count: int,
    names: tuple[str, ...] = (),
    total: int = 2,
    name: str = "",
    keys: dict[str, Value | None] | None = None,
) -> Path:
    """One part with tensors ``names``; ``keys`` replace the split keys or (None) leave them out."""
    split_keys = {"split.no": u16(index), "split.count": u16(count), "split.tensors.count": u32(total)}
    path = folder / (name or part_name("m", index, count))
    table = [Row(n.encode(), (8,), 0, 32 * i) for i, n in enumerate(names)]
    path.write_bytes(Raw(dict(split_keys), table, bytes(32 * len(names))).with_keys(keys or {}).build())
    return path


@pytest.mark.parametrize("cuts", [(1, 0.5), (2, 0.1, 0.2), (0, 0.9), (5, 0.3, 0.3, 0.2)])
def test_parts_hold_what_the_whole_file_holds(tmp_path: Path, cuts: tuple[float, ...]) -> None:
    whole = GGUFFile.open(WHOLE)
    n = len(whole.tensors)
    counts = [int(c * n) if c < 1 else int(c) for c in cuts]  # a first part with a few tensors, or none at all
    paths = split(WHOLE, tmp_path, [*counts, n - sum(counts)], [32, 64, 32, 4096, 128][: len(counts) + 1])
    parts = GGUFFile.open(paths[0])
    assert parts.path == paths[0] and parts.paths == tuple(paths)
    assert list(parts.tensors) == list(whole.tensors)
    for name, info in whole.tensors.items():
        found = parts.tensors[name]
        assert (found.name, found.type, found.shape, found.nbytes) == (name, info.type, info.shape, info.nbytes)
        np.testing.assert_array_equal(found.data, info.data)
        drop_pages(found.data)
        np.testing.assert_array_equal(found.data, info.data)
    assert ModelConfig.from_gguf(parts) == ModelConfig.from_gguf(whole)
    assert parts.kv["tokenizer.ggml.tokens"] == whole.kv["tokenizer.ggml.tokens"]


def test_parts_that_gguf_py_wrote(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "deepseek2", split_max_tensors=3)
    expected = {f"t{i}": np.full((i + 1, 5), i, np.float32) for i in range(8)}
    for name, values in expected.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = GGUFFile.open(tmp_path / "m-00001-of-00003.gguf")
    assert len(parts.paths) == 3 and list(parts.tensors) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(parts.tensors[name].data.view(np.float32).reshape(values.shape), values)


def test_links_with_the_parts_names_are_followed(tmp_path: Path) -> None:
    """As download caches keep them: links named by the convention, files named by their content."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for index, name in enumerate("ab"):
        (tmp_path / part_name("m", index, 2)).symlink_to(part(blobs, index, 2, (name,), name=f"blob-{name}"))
    assert list(GGUFFile.open(tmp_path / part_name("m", 0, 2)).tensors) == ["a", "b"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_file_may_say_that_it_is_not_split(tmp_path: Path, count: int) -> None:
    path = part(tmp_path, 0, count, ("a",), name="single.gguf")
    assert GGUFFile.open(path).paths == (path,)


def test_a_part_that_is_not_the_first(tmp_path: Path) -> None:
    part(tmp_path, 0, 3, ("a",))
    later = part(tmp_path, 1, 3, ("b",))
    assert message(later) == (
        f"{later}: is part 2 of 3, expected the first, which holds the model's keys; "
        f"open {tmp_path}/m-00001-of-00003.gguf"
    )


@pytest.mark.parametrize("name", ["m.gguf", "m-00001-of-00004.gguf", "m-1-of-3.gguf", "-00001-of-00003.gguf", "m"])
def test_a_name_outside_the_convention(tmp_path: Path, name: str) -> None:
    path = part(tmp_path, 0, 3, ("a",), name=name)
    assert message(path) == (
        f"{path}: is part 1 of 3, expected a name that ends in -00001-of-00003.gguf, by which the other parts are "
        "found; give every part the name it was published under"
    )


def test_missing_parts(tmp_path: Path) -> None:
    first = part(tmp_path, 0, 3, ("a",))
    part(tmp_path, 1, 3, ("b",))
    missing = tmp_path / "m-00003-of-00003.gguf"
    assert message(first) == (
        f"{missing}: is missing, expected part 3 of 3; download or copy all parts into one folder"
    )
    missing.symlink_to(missing)
    assert message(first) == (
        f"{missing}: cannot be read (Too many levels of symbolic links); expected a GGUF file; check the path"
    )
    missing.unlink()
    missing.symlink_to("nowhere")
    assert message(first) == (
        f"{missing}: cannot be read (No such file or directory); expected a GGUF file; check the path"
    )
    missing.unlink()
    missing.mkdir()
    assert message(first) == f"{missing}: cannot be read (Is a directory); expected a GGUF file; check the path"
    missing.rmdir()
    os.mkfifo(missing)
    assert message(first) == f"{missing}: is not a regular file; expected a GGUF file; check the path"
    missing.unlink()
    missing.write_bytes(b"")
    assert message(first) == f"{missing}: the file is empty; expected a GGUF file; download or copy it again"


def test_parts_that_lead_back(tmp_path: Path) -> None:
    """A part that is the first one again, by link or by copy, is caught by its number."""
    first = part(tmp_path, 0, 2, ("a",), total=1)
    second = tmp_path / "m-00002-of-00002.gguf"
    expected = f"{second}: key split.no is 0, expected 1 in part 2 of 2; {AGAIN}"
    second.symlink_to(first)
    assert message(first) == expected
    second.unlink()
    second.hardlink_to(first)
    assert message(first) == expected
    second.unlink()
    shutil.copy(first, second)
    assert message(first) == expected


def test_parts_of_different_sets(tmp_path: Path) -> None:
    first = part(tmp_path, 0, 2, ("a",))
    second = part(tmp_path, 1, 3, ("b",), name="m-00002-of-00002.gguf")
    assert message(first) == f"{second}: key split.count is 3, expected 2 in part 2 of 2; {AGAIN}"


@pytest.mark.parametrize(
    ("key", "value", "found", "most"),
    [
        ("split.count", string("2"), "'2'", 65535),
        ("split.count", u32(65536), "65536", 65535),
        ("split.count", number(V.INT32, -1), "-1", 65535),
        ("split.count", number(V.BOOL, 1), "True", 65535),
        ("split.count", number(V.FLOAT32, 2), "2.0", 65535),
        ("split.count", numbers(V.UINT32, []), "an array of 0", 65535),
        ("split.no", u16(2), "2", 1),
        ("split.no", number(V.INT8, -1), "-1", 1),
        ("split.tensors.count", number(V.INT32, -1), "-1", 131072),
        ("split.tensors.count", u32(2**32 - 1), "4294967295", 131072),
    ],
)
def test_split_keys_of_the_first_part(tmp_path: Path, key: str, value: Value, found: str, most: int) -> None:
    path = part(tmp_path, 0, 2, ("a",), keys={key: value})
    assert message(path) == f"{path}: key {key} is {found}, expected a number from 0 to {most}; {AGAIN}"


@pytest.mark.parametrize(("key", "most"), [("split.no", 1), ("split.tensors.count", 131072)])
def test_split_keys_that_the_first_part_lacks(tmp_path: Path, key: str, most: int) -> None:
    path = part(tmp_path, 0, 2, ("a",), keys={key: None})
    assert message(path) == f"{path}: key {key} is missing, expected a number from 0 to {most}; {AGAIN}"


@pytest.mark.parametrize("key", ["split.no", "split.count"])
def test_split_keys_that_a_later_part_lacks(tmp_path: Path, key: str) -> None:
    first = part(tmp_path, 0, 2, ("a",))
    later = part(tmp_path, 1, 2, ("b",), keys={key: None})
    assert message(first) == f"{later}: key {key} is missing, expected a number from 0 to 65535; {AGAIN}"


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    first = part(tmp_path, 0, 2, ("a", "b"), total=3)
    second = part(tmp_path, 1, 2, ("c", "b"), total=3)
    assert message(first) == f"{second}: tensor b is in an earlier part too, expected once; {AGAIN}"


def test_a_tensor_count_that_disagrees(tmp_path: Path) -> None:
    for index, names in enumerate(("a", "bc", "d")):
        part(tmp_path, index, 3, tuple(names), total=9 if index == 0 else 4)
    first = tmp_path / "m-00001-of-00003.gguf"
    expected = f"{first}: key split.tensors.count is 9, expected the number of tensors in all parts, of which there are"
    assert message(first) == f"{expected} 4; {AGAIN}"
    part(tmp_path, 0, 3, ("a",), total=2)
    assert message(first) == f"{expected} more; {AGAIN}".replace("is 9", "is 2")


def test_a_later_part_that_is_cut_off(tmp_path: Path) -> None:
    first = part(tmp_path, 0, 2, ("a",))
    second = part(tmp_path, 1, 2, ("b",))
    size = second.stat().st_size
    second.write_bytes(second.read_bytes()[:-1])
    assert message(first) == (
        f"{second}: truncated: tensor b ends at byte {size}, the file has {size - 1}; download or copy it again"
    )


def test_the_record_covers_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [part(tmp_path, 0, 2, ("a",)), part(tmp_path, 1, 2, ("b",))]
    record = model_file(*GGUFFile.open(paths[0]).paths)
    assert record["file"] == "m-00001-of-00002.gguf" and record["sha256_covers"] == "whole files, 2 parts"
    assert record["file_bytes"] == sum(p.stat().st_size for p in paths)
    content = bytearray(paths[1].read_bytes())
    content[-1] ^= 1
    paths[1].write_bytes(content)
    assert model_file(*paths)["sha256"] != record["sha256"]
    monkeypatch.setattr("harness.metadata._HASHED_WHOLE", 100)
    monkeypatch.setattr("harness.metadata._HASHED_ENDS", 60)
    ends = model_file(*paths)
    assert ends["sha256_covers"] == "first and last 16 MiB of each, 2 parts"
    content[70] ^= 1  # in the middle, which is not hashed
    paths[1].write_bytes(content)
    assert model_file(*paths) == ends
    content[-1] ^= 1
    paths[1].write_bytes(content)
    assert model_file(*paths)["sha256"] != ends["sha256"]
