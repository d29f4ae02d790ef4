"""Reading anyone's decode speeds: a table of context and tokens a second, from any runtime.

Formats, told by their content:

- CSV (or `;` or tabs) with a context and a rate; without a header, in that order. `4K` is 4,096; a rate of `oom` says
  that the context did not fit in memory; lines that begin with `#` are remarks.
- llama-bench's `-o csv`, `json`, `jsonl` and `md` (llama.cpp, tools/llama-bench/llama-bench.cpp): its tg tests; each
  decodes n_gen tokens from n_depth on. `latentvk bench --json` writes the same names.
- sweep-bench's table and `--output-format jsonl` (ik_llama.cpp, examples/sweep-bench/sweep-bench.cpp): each line
  decodes TG tokens from N_KV on. The first, at 0, is a warm-up in all but name, and left out where there are others.
"""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from harness.inference import Point
from vkbackend.errors import InputError, quoted, shown

MOST_BYTES = 2**24  # more is no table of speeds
MOST_POINTS = 1000

_CONTEXTS = ("context", "ctx", "n_ctx", "depth", "n_depth", "n_kv", "tokens")
_RATES = ("tok/s", "t/s", "tokens/s", "tok_s", "tokens_per_second", "rate", "tg")
_OUT_OF_MEMORY = ("oom", "out of memory")
# What must not differ between the tests of one line: llama-bench's names, and this project's own `path`.
_SETUP = (
    "model_filename", "model_type", "model_size", "backends", "gpu_info", "cpu_info", "type_k", "type_v",
    "n_gpu_layers", "flash_attn", "n_threads", "n_batch", "n_ubatch", "devices", "split_mode", "n_cpu_moe",
    "no_kv_offload", "path",
)  # fmt: skip
_EXPECTED = (
    "expected a table of context and tok/s: CSV, llama-bench's csv, json, jsonl or md, or sweep-bench's table or jsonl"
)
_TEST = re.compile(r"(?:pp ?\d+\+)?tg ?(\d+)(?: @ d(\d+))?")
_CONTEXT = re.compile(r"(\d[\d,_]*)([kK]?)")


@dataclass(frozen=True)
class Measurements:
    """What a file says: points in the order given, contexts that ran out of memory, the cache's type and what
    ran where that is told, and remarks on what was left out."""

    points: tuple[Point, ...]
    out_of_memory: tuple[int, ...]
    format: str
    cache_type: str | None = None
    processor: str | None = None  # "gpu" or "cpu"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Row:
    """One line's cells by column."""

    line: int
    cells: Mapping[str, Any]


class _Source:
    """The file's name and lines, for messages that name both."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = shown(name), text

    def wrong(self, line: int | None, found: str, expected: str, remedy: str = "correct it") -> NoReturn:
        where = self.name if line is None else f"{self.name}: line {line}"
        raise InputError(f"{where}: {found}, {expected}; {remedy}")


def read_measurements(path: str) -> Measurements:
    """Read a file, or standard input for '-'. InputError, naming file and line, for what cannot be understood."""
    if path == "-":
        return parse_measurements(sys.stdin.read(MOST_BYTES + 1), "standard input")
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{shown(path)}: cannot be read ({error.strerror}); expected a file of measured speeds; check the path"
        ) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)}: byte {error.start} is no UTF-8; {_EXPECTED}; choose another file") from None
    return parse_measurements(text, path)


def parse_measurements(text: str, name: str) -> Measurements:
    """What ``text`` says, ``name`` being what messages call it. Raises InputError as ``read_measurements``."""
    source = _Source(name, text)
    if len(text) > MOST_BYTES:
        source.wrong(None, f"more than {MOST_BYTES:,} bytes", _EXPECTED, "give the table alone")
    rows, kind = _rows(source)
    found = kind(source, rows)
    if len(found.points) > MOST_POINTS:
        source.wrong(None, f"{len(found.points):,} measured rates", f"expected at most {MOST_POINTS:,}", "give fewer")
    if not found.points:
        source.wrong(None, f"{found.format} without a decode test", _EXPECTED, "measure token generation (tg)")
    return found


_Kind = Callable[[_Source, Sequence[_Row]], Measurements]


def _rows(source: _Source) -> tuple[list[_Row], _Kind]:
    lines = source.text.splitlines()
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not filled:
        source.wrong(None, "nothing in it", _EXPECTED, "fill it")
    if any(line.lstrip().startswith("|") for _, line in filled):
        return _table(source, filled)
    first = filled[0][1].lstrip()[0]
    if first in "[{":
        rows = _json_array(source) if first == "[" else _json_lines(source, filled)
        if all("n_kv" in row.cells for row in rows):
            return rows, _sweep_jsonl
        return rows, _llama_bench
    return _csv(source, filled)


def _json_array(source: _Source) -> list[_Row]:
    try:
        values = json.loads(source.text, parse_float=str)  # as text, for the digits that were printed
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        source.wrong(line, "JSON that does not parse", "expected llama-bench's whole array", "let llama-bench finish")
    # An array's elements have no line of their own: they are counted instead.
    return [_Row(number, _record(source, None, value)) for number, value in enumerate(values, 1)]


def _json_lines(source: _Source, filled: Iterable[tuple[int, str]]) -> list[_Row]:
    rows = []
    for number, line in filled:
        if not line.lstrip().startswith("{"):
            continue  # what else a runtime prints
        try:
            value = json.loads(line, parse_float=str)
        except (ValueError, RecursionError):
            source.wrong(number, "JSON that does not parse", "expected one record a line", "remove the line")
        rows.append(_Row(number, _record(source, number, value)))
    return rows


def _record(source: _Source, line: int | None, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        source.wrong(line, f"found {quoted(value)}", "expected records of llama-bench or sweep-bench")
    return value


def _table(source: _Source, filled: Iterable[tuple[int, str]]) -> tuple[list[_Row], _Kind]:
    """A Markdown table; what stands around it is a runtime's log."""
    header: list[str] = []
    rows: list[_Row] = []
    for number, line in filled:
        if not line.lstrip().startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "t/s" in cells or "S_TG t/s" in cells:
            if header and header != cells:
                source.wrong(number, "a second table with other columns", "expected one table", "split the file")
            header = cells
        elif not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            if not header:
                source.wrong(number, "a table without a column t/s or S_TG t/s", _EXPECTED)
            if len(cells) != len(header):
                source.wrong(number, f"{len(cells)} cells", f"expected {len(header)}, as its heading has")
            rows.append(_Row(number, dict(zip(header, cells, strict=True))))
    if "N_KV" in header and "TG" in header and "B" not in header:
        return rows, _sweep_table
    if "test" in header and "t/s" in header:
        return rows, _markdown
    return source.wrong(None, f"a table of {shown(', '.join(header))}", _EXPECTED, "give one of these")


def _csv(source: _Source, filled: Sequence[tuple[int, str]]) -> tuple[list[_Row], _Kind]:
    delimiter = next((mark for mark in ("\t", ";", ",") if mark in filled[0][1]), None)
    if delimiter is None:
        source.wrong(filled[0][0], f"found {quoted(filled[0][1].strip())}", _EXPECTED)
    try:
        parsed = [
            (number, [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, strict=True))])
            for number, line in filled
        ]
    except csv.Error:
        source.wrong(None, "CSV with a quote that does not close", _EXPECTED)
    header = [cell.lower() for cell in parsed[0][1]]
    if _CONTEXT.fullmatch(parsed[0][1][0]):
        header = ["context", "tok/s", *(f"column {n}" for n in range(3, len(header) + 1))]
    else:
        parsed = parsed[1:]
    rows = []
    for number, cells in parsed:
        if len(cells) != len(header):
            source.wrong(number, f"{len(cells)} cells", f"expected {len(header)}, as its first line has")
        rows.append(_Row(number, dict(zip(header, cells, strict=True))))
    if "n_gen" in header and "avg_ts" in header:
        return rows, _llama_bench
    context = next((name for name in _CONTEXTS if name in header), None)
    rate = next((name for name in _RATES if name in header), None)
    if context is None or rate is None:
        source.wrong(
            filled[0][0],
            f"columns {shown(', '.join(header))}",
            f"expected one of {', '.join(_CONTEXTS)} and one of {', '.join(_RATES)}",
            "rename them",
        )
    return [_Row(row.line, {"context": row.cells[context], "tok/s": row.cells[rate]}) for row in rows], _plain


def _plain(source: _Source, rows: Sequence[_Row]) -> Measurements:
    points, out_of_memory = [], []
    for row in rows:
        context = _context(source, row)
        if row.cells["tok/s"].lower() in _OUT_OF_MEMORY:
            out_of_memory.append(context)
        else:
            rate, rounding = _printed(source, row.line, "tok/s", row.cells["tok/s"])
            points.append(Point(context, rate, rounding))
    return Measurements(tuple(points), tuple(out_of_memory), "CSV")


def _llama_bench(source: _Source, rows: Sequence[_Row]) -> Measurements:
    points, used = [], []
    for row in rows:
        n_gen, n_prompt = (_count(source, row, name) for name in ("n_gen", "n_prompt"))
        if not n_gen or n_prompt:
            continue  # a prompt, or a prompt and tokens in one time
        depth = _count(source, row, "n_depth") if "n_depth" in row.cells else 0
        rate, rounding = _printed(source, row.line, "avg_ts", row.cells.get("avg_ts"))
        deviation = _number(source, row.line, "stddev_ts", row.cells.get("stddev_ts", 0.0))
        samples = row.cells.get("samples_ts")
        runs = len(samples) if isinstance(samples, list) and samples else 1
        points.append(Point(depth + (n_gen + 1) / 2, rate, rounding, deviation / math.sqrt(runs)))
        used.append(row)
    _require_one_setup(source, used, _SETUP)
    cache_type = used[0].cells.get("type_k") if used else None
    same = used and cache_type == used[0].cells.get("type_v")
    ran = _processor(used[0].cells.get("backends"), used[0].cells.get("n_gpu_layers")) if used else None
    return Measurements(tuple(points), (), "llama-bench", cache_type if same else None, ran)


def _processor(backends: Any, gpu_layers: Any) -> str | None:
    """What ran, by llama-bench's list of backends: the CPU where no other is there, or no layer lies on another."""
    if not isinstance(backends, str) or not backends:
        return None
    return "cpu" if set(backends.split(",")) <= {"CPU", "BLAS"} or str(gpu_layers) == "0" else "gpu"


def _markdown(source: _Source, rows: Sequence[_Row]) -> Measurements:
    points, used = [], []
    for row in rows:
        test = row.cells["test"]
        if re.fullmatch(r"pp ?\d+( @ d\d+)?", test):
            continue
        match = _TEST.fullmatch(test)
        if match is None:
            source.wrong(row.line, f"test {quoted(test)}", "expected pp512, tg128 or tg128 @ d4096")
        if test.startswith("pp"):
            continue
        mean, _, spread = row.cells["t/s"].partition("±")
        rate, rounding = _printed(source, row.line, "t/s", mean.strip())
        deviation = _number(source, row.line, "t/s", spread.strip()) if spread else 0.0
        points.append(Point(int(match[2] or 0) + (int(match[1]) + 1) / 2, rate, rounding, deviation))
        used.append(row)
    _require_one_setup(source, used, [name for name in rows[0].cells if name not in ("test", "t/s")] if rows else [])
    ran = _processor(used[0].cells.get("backend"), used[0].cells.get("ngl")) if used else None
    return Measurements(tuple(points), (), "llama-bench's table", None, ran)


def _sweep_table(source: _Source, rows: Sequence[_Row]) -> Measurements:
    return _sweep(source, rows, "N_KV", "TG", "S_TG t/s")


def _sweep_jsonl(source: _Source, rows: Sequence[_Row]) -> Measurements:
    return _sweep(source, rows, "n_kv", "tg", "speed_tg")


def _sweep(source: _Source, rows: Sequence[_Row], depth: str, count: str, rate: str) -> Measurements:
    points, notes = [], []
    for row in rows:
        value, rounding = _printed(source, row.line, rate, row.cells.get(rate))
        first = _count(source, row, depth)
        points.append(Point(first + (_count(source, row, count) + 1) / 2, value, rounding))
    if len(points) > 1 and _count(source, rows[0], depth) == 0:
        points = points[1:]
        notes.append("sweep-bench's first line, at 0, was left out: it is measured while the runtime warms up.")
    return Measurements(tuple(points), (), "sweep-bench", notes=tuple(notes))


def _require_one_setup(source: _Source, rows: Sequence[_Row], names: Iterable[str]) -> None:
    for name in names:
        values = list(dict.fromkeys(str(row.cells[name]) for row in rows if name in row.cells))
        if len(values) > 1:
            several = " and ".join(quoted(value) for value in values[:2])
            source.wrong(None, f"tests of {name} {several}", "expected one set-up", "leave the others out")


def _context(source: _Source, row: _Row) -> int:
    text = row.cells["context"]
    match = _CONTEXT.fullmatch(text)
    if match is None or len(match[1]) > 15:
        source.wrong(row.line, f"context {quoted(text)}", "expected tokens, such as 4096 or 4K")
    return int(match[1].replace(",", "").replace("_", "")) * (1024 if match[2] else 1)


def _count(source: _Source, row: _Row, name: str) -> int:
    value = row.cells.get(name)
    try:
        found = int(str(value))
    except ValueError:
        found = -1
    if not 0 <= found < 10**12:
        source.wrong(row.line, f"{name} {quoted(value)}", "expected a whole number of tokens")
    return found


def _number(source: _Source, line: int, name: str, value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 <= found < 1e9:
        source.wrong(line, f"{name} {quoted(value)}", "expected a number, such as 7.3")
    return found


def _printed(source: _Source, line: int, name: str, value: Any) -> tuple[float, float]:
    """A rate above 0 and half of its last printed digit."""
    rate = _number(source, line, name, value)
    if rate == 0:
        source.wrong(line, f"{name} {quoted(value)}", "expected a rate above 0, or oom where memory ran out")
    text = str(value)
    return rate, 0.0 if "e" in text.lower() else 0.5 * 10.0 ** -len(text.partition(".")[2])
