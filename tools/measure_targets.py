#!/usr/bin/env python3
"""Measures the full-shape targets: a GLM-4.7-Flash-shaped file of 3 layers, made if it is not there, loaded and run.

Prints agreement with the NumPy reference, decode and prompt speed at two depths, start to first token and peak memory,
each beside its target. Speeds are of this machine at this moment; nothing here is a test. Run it in the project's
environment:

    .venv/bin/python tools/measure_targets.py FOLDER
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from model.gguf_file import GGUFFile
from model.reference.forward import Reference

SYNTH = ["synth", "--preset", "glm-4.7-flash", "--layers", "3", "--vocab", "32000", "--mix", "q4_k_m"]
TOKENS = [11, 2049, 17, 31999, 5, 640]
# f32 sums of 2048 to 10240 products on either side, and one f16 rounding of each cache entry (2**-11) that both round
# alike except where their f32 inputs straddle a rounding boundary.
AGREEMENT = 1e-3
DEEP = 8192


def latentvk(*arguments: str) -> str:
    """Standard output of one command; its failure ends the script."""
    command = [sys.executable, "-m", "harness.cli", *arguments]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"latentvk {' '.join(arguments)} ended with {run.returncode}; its message is above")
    return run.stdout


def agreement(model: Path, device: list[str]) -> tuple[float, float]:
    """Largest difference of the logits from the reference's, over its largest; and the smallest routing margin."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npz"
        latentvk("logits", str(model), "--tokens", ",".join(map(str, TOKENS)), "-o", str(out), *device)
        found = np.load(out)["logits"]
    reference = Reference.from_gguf(GGUFFile.open(model))
    expected = reference.logits(TOKENS, cache_type=np.float16)
    margin = float(reference.routing_margins(TOKENS).min())
    return float(np.abs(found - expected).max() / np.abs(expected).max()), margin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the 0.9 GB file is, or is made")
    parser.add_argument("--device", help="as for latentvk")
    parser.add_argument("-r", "--repetitions", default="5", help="samples of each speed (default 5)")
    arguments = parser.parse_args()
    device = ["--device", arguments.device] if arguments.device else []
    model = arguments.folder / "glm-4.7-flash-3-layers-q4_k_m.gguf"
    if not model.is_file():
        arguments.folder.mkdir(parents=True, exist_ok=True)
        latentvk(*SYNTH, "-o", str(model))

    error, margin = agreement(model, device)

    def bench(*tests: str) -> list[dict[str, Any]]:
        options = ("-r", arguments.repetitions, "--json", "-", *device)
        rows: list[dict[str, Any]] = json.loads(latentvk("bench", str(model), *tests, *options))
        return rows

    prompt, decode = bench("-p", "128", "-n", "32")
    near, far = bench("-p", "512", "-n", "0", "-d", f"0,{DEEP}")
    shallow, deep = bench("-p", "0", "-n", "16", "-d", f"0,{DEEP}")
    startup = json.loads(latentvk("bench", str(model), "--startup", "--json", "-", *device))
    a_token = [1e3 / median(row["samples_ts"]) for row in (shallow, deep)]

    table = Table("what", "measured", "target")
    table.add_row("logits against the reference", f"{error:.1e} of the largest", f"<= {AGREEMENT:.0e}")
    table.add_row("smallest routing margin of its tokens", f"{margin:.1e}", "")
    table.add_row("decode at depth 0", _speed(decode), ">= 28")
    table.add_row("prompt of 128", _speed(prompt), ">= 45")
    table.add_row("decode, what 1,024 tokens of depth add", f"{(a_token[1] - a_token[0]) * 1024 / DEEP:.2f} ms", "<= 7")
    table.add_row(f"prompt of 512 at depth {DEEP:,}", _speed(far), "")
    ratio = median(far["samples_ts"]) / median(near["samples_ts"])
    table.add_row("  over that at depth 0", f"{ratio:.2f} of {_speed(near)}", ">= 0.4")
    for row in (decode, deep):
        table.add_row(f"{row['test']}, of its bound by {row['governs']}", f"{row['roofline_share']:.2f}", ">= 0.5")
    table.add_row("second start to first token", f"{startup['seconds']['first token']:.2f} s", "<= 3")
    table.add_row("peak resident memory", f"{startup['peak_over_file']:.2f} of the file", "<= 1.5")
    Console().print(f"{model.name} on {decode['gpu_info']}, {arguments.repetitions} samples of each speed", table)
    return 0 if error <= AGREEMENT else 1


def _speed(row: dict[str, Any]) -> str:
    return f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f} tok/s"


if __name__ == "__main__":
    sys.exit(main())
