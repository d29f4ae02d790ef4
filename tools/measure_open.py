#!/usr/bin/env python3
"""Measures opening a large file: a sparse GGUF of 25 GB with GLM-4.7-Flash's whole tensor table, MTP layer included,
and a vocabulary of its size, opened and inspected in fresh processes.

Prints each run's wall time, from the start of Python to its end, its processor time, which other work on the machine
does not lengthen, and its peak resident memory, beside the targets: one second and 200 MB. The file takes some 20 MB of
disk. Run it in the project's environment:

    .venv/bin/python tools/measure_open.py [FILE.gguf]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from harness.synth_tokenizer import tokenizer_keys
from model.gguf_write import config_keys
from model.layout import tensor_bytes
from model.mix import mix_types
from model.presets import get_preset
from model.tensors import expected_tensors

CONFIG = get_preset("glm-4.7-flash")
N_MERGES = 318_088  # as many as GLM-4's tokenizer has
RUNS = 5
# The command in a process of its own, which then tells its peak: getrusage's figure would begin with the parent's.
_CHILD = """
import sys
from harness.cli import main
code = main(["inspect", sys.argv[1], "--json", "-"])
from harness.startup import peak_resident_bytes
print(peak_resident_bytes(), file=sys.stderr)
sys.exit(code)
"""


def tensor_table() -> dict[str, tuple[GGMLQuantizationType, tuple[int, ...]]]:
    """Every tensor of the published file, in Q6_K where rows allow it."""
    deeper = replace(CONFIG, n_layer=CONFIG.n_layer + 1, n_nextn=0)  # the MTP layer is built like the others
    shapes, types = expected_tensors(deeper), mix_types(deeper, "q6_k")
    table = {name: (types[name], shape) for name, shape in shapes.items()}
    d = CONFIG.n_embd
    for name, shape in {"eh_proj": (d, 2 * d), "enorm": (d,), "hnorm": (d,), "shared_head_norm": (d,)}.items():
        table[f"blk.{CONFIG.n_layer}.nextn.{name}.weight"] = (GGMLQuantizationType.F32, shape)
    return table


def write_sparse(path: Path) -> int:
    """Write the file, its tensors a hole that reads as zeros, and return its size in bytes."""
    tokenizer = tokenizer_keys(CONFIG.n_vocab)
    merges = tokenizer["tokenizer.ggml.merges"]
    tokenizer["tokenizer.ggml.merges"] = (merges * (N_MERGES // len(merges) + 1))[:N_MERGES]
    writer = GGUFWriter(path, CONFIG.arch)
    for key, value in (config_keys(CONFIG) | tokenizer).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    size = 0
    for name, (kind, shape) in tensor_table().items():
        assert shape[-1] % GGML_QUANT_SIZES[kind][0] == 0
        nbytes = tensor_bytes(shape, kind)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, raw_dtype=kind)
        size += -(-nbytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    total = -(-path.stat().st_size // 32) * 32 + size
    os.truncate(path, total)
    return total


def inspect(path: Path) -> tuple[float, int, dict[str, object]]:
    """Seconds, peak resident bytes and printed record of one ``latentvk inspect`` in a fresh process."""
    started = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", _CHILD, str(path)], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if run.returncode:
        raise SystemExit(f"latentvk inspect {path} ended with {run.returncode}: {run.stderr}")
    return seconds, int(run.stderr), json.loads(run.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE.gguf", help="another file (default: one is made)")
    file = parser.parse_args().file
    with tempfile.TemporaryDirectory() as folder:
        if file is None:
            file = Path(folder) / "sparse.gguf"
            write_sparse(file)
        print(f"{file.name}: {file.stat().st_size / 1e9:.1f} GB, {file.stat().st_blocks * 512 / 1e6:.1f} MB on disk")
        for _ in range(RUNS):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds, peak, _ = inspect(file)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"{seconds:.2f} s (target 1), {busy:.2f} s of processor; peak {peak / 1e6:.1f} MB (target 200)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
