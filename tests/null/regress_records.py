"""What the tests of `regress` compare: records as `bench` writes them, and sides made of times."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.cli import main
from harness.judging import Rules
from harness.metrics import Side, Timed

Captured = pytest.CaptureFixture[str]
RULES = Rules()
TESTS = ((128, 0, 0), (0, 32, 0), (128, 0, 1024), (0, 32, 1024))


def fails(capsys: Captured, argv: list[str], code: int, line: str) -> None:
    assert main(argv) == code
    assert capsys.readouterr().err == f"latentvk: error: {line}\n"


def bench_rows(scale: float = 1.0, seed: int = 0, scatter: float = 0.005, count: int = 10) -> list[dict[str, Any]]:
    """A record as `bench` writes it: the same machine, `scale` times as slow."""
    rng = np.random.default_rng(seed)
    rows = []
    for n_prompt, n_gen, depth in TESTS:
        tokens = n_prompt + n_gen
        seconds = 1e-3 * scale * rng.lognormal(0, scatter, count)
        row = {
            "schema": "latentvk.bench",
            "schema_version": 1,
            "gpu_info": "Imaginary iGPU",
            "model": {"file": "m.gguf", "sha256": "ab" * 32},
            "n_prompt": n_prompt,
            "n_gen": n_gen,
            "n_depth": depth,
            "samples_ns": [round(1e9 * tokens * x) for x in seconds],
            "cache_bytes": 1000 * (depth + tokens),
            "launches": {"decode": 70, "chunk": 65},
            "device_bytes": 5_000_000,
            "device_allocations": 81,
            "software": {"commit": "abc"},
            "state": {"before": {"load_average": [0.1, 0.2, 0.3]}, "others_busy": 0.05},
        }
        if n_gen:
            row["samples_token_ns"] = [[round(1e9 * x)] * n_gen for x in seconds]
        rows.append(row)
    return rows


def written(path: Path, record: Any) -> str:
    path.write_text(json.dumps(record))
    return str(path)


def side(timed: dict[str, Sequence[Sequence[float]]], **fields: Any) -> Side:
    metrics = {name: Timed(tuple(tuple(run) for run in runs), True) for name, runs in timed.items()}
    return replace(Side("r", "d", "m", metrics, {}), **fields)


def near(value: float, scatter: float = 0.002, count: int = 10, seed: int = 1) -> list[float]:
    return (value * np.random.default_rng(seed).lognormal(0, scatter, count)).tolist()
