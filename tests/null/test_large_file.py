"""A file of 25 GB, sparse on disk, is inspected without being read: its pages would show in the process's memory."""

from pathlib import Path

from model.gguf_file import GGUFFile
from model.layout import total_parameters
from tools.measure_open import CONFIG, N_MERGES, inspect, tensor_table, write_sparse

MOST_RESIDENT = 200e6  # bytes


def test_a_large_file_is_inspected_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    assert write_sparse(path) == path.stat().st_size > 20e9
    assert path.stat().st_blocks * 512 < 100e6  # else this folder's file system has no sparse files, and no room either
    opened = GGUFFile.open(path)
    assert {name: (t.type, t.shape) for name, t in opened.tensors.items()} == tensor_table()
    assert len(opened.kv["tokenizer.ggml.merges"]) == N_MERGES
    _, peak, record = inspect(path)
    assert record["parameters"]["total"] == total_parameters(CONFIG)  # type: ignore[index]
    assert 20e6 < peak < MOST_RESIDENT  # the interpreter and NumPy alone take more than the lower bound
