"""What `bench` prints: a table for people, and llama-bench's formats for scripts: md, csv, json, jsonl."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

Rows = Sequence[dict[str, Any]]

# llama-bench's columns in its order, those that say something of this program; CSV has no lists and no nested values.
_CSV = (
    *("build_commit", "cpu_info", "gpu_info", "backends", "model_filename", "model_type", "model_size"),
    *("model_n_params", "type_k", "type_v", "flash_attn", "n_prompt", "n_gen", "n_depth", "test_time"),
    *("avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "path", "driver", "cache_bytes"),
    *("chunk", "bytes_per_token", "governs", "roofline_share"),
)


def show(rows: Rows) -> None:
    """llama-bench's table with the bandwidth that decoding reached, bytes a token must read times tokens a second, and
    the bound that governs each test with the share of it that was reached."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from harness.units import significant
    from harness.verdict import percent

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("path", "test", "tok/s", "GB/s", "bound", "of it"):
        table.add_column(heading, justify="right" if heading in ("tok/s", "GB/s", "of it") else "left")
    for row in rows:
        rate = "n/a"
        if row["n_gen"] and not row["n_prompt"]:
            rows_read = row["n_depth"] + (row["n_gen"] + 1) / 2
            per_token = row["weight_bytes_per_token"] + rows_read * row["cache_bytes_per_token"]
            rate = significant(per_token * row["avg_ts"] / 1e9)
        bound = (row["governs"], percent(row["roofline_share"])) if "bound" in row else ("n/a", "n/a")
        table.add_row(row["path"], row["test"], _speed(row), rate, *bound)
    Console(highlight=False).print(table)
    print(f"{rows[0]['model_type']} on {rows[0]['gpu_info']} ({rows[0]['driver']})")
    if "peaks" in rows[0]:
        peaks = rows[0]["peaks"]
        bandwidth, flops = significant(peaks["bandwidth"] / 1e9), significant(peaks["flops"] / 1e9)
        print(f"its peaks, measured: memory reads {bandwidth} GB/s, f32 arithmetic {flops} GFLOP/s")


def markdown(rows: Rows) -> str:
    """llama-bench's Markdown table: its columns, with the path in place of the number of layers on the GPU."""
    lines = [
        "| model | size | params | backend | path | test | t/s |",
        "| --- | ---: | ---: | --- | --- | ---: | ---: |",
    ]
    for row in rows:
        size = f"{row['model_size'] / 2**20:.2f} MiB" if row["model_size"] < 2**30 else _gib(row["model_size"])
        large = row["model_n_params"] >= 1e9
        params = f"{row['model_n_params'] / (1e9 if large else 1e6):.2f} {'B' if large else 'M'}"
        cells = (row["model_type"], size, params, row["backends"], row["path"], row["test"], _speed(row))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"build: {row['build_commit']}"]) + "\n"


def comma_separated(rows: Rows) -> str:
    """One line of headings, then one for each test, every value quoted, as llama-bench writes CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
    stream.write(",".join(_CSV) + "\n")
    writer.writerows([row.get(name, "") for name in _CSV] for row in rows)
    return stream.getvalue()


def _json(rows: Rows) -> str:
    return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _json_lines(rows: Rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _speed(row: dict[str, Any]) -> str:
    return f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


FORMATTED: dict[str, Callable[[Rows], str]] = {
    "md": markdown,
    "csv": comma_separated,
    "json": _json,
    "jsonl": _json_lines,
}
