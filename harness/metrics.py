"""Records of any kind as named metrics: `compare`'s and `bench`'s JSON, and llama-bench's, whose names are bench's.

A timed metric keeps one figure for each repeat, a decode run's being its median token. Records of several runs of one
model on one device merge; of different ones they are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from harness import bench
from harness.results import SCHEMA, SCHEMA_VERSION
from vkbackend.errors import InputError, quoted

# Paths whose sums are ordered differently lie up to 0.03% apart (results/llvmpipe); a broken kernel, far more.
_PERPLEXITY_SLACK = 0.005
# What tells two of llama-bench's rows apart beside the test; named only where it differs within a record.
_VARIED = (
    *("model_filename", "path", "type_k", "type_v", "flash_attn", "n_gpu_layers", "n_batch", "n_ubatch", "n_threads"),
    *("n_cpu_moe", "split_mode", "no_kv_offload", "no_op_offload", "lazy_mode"),
)


@dataclass(frozen=True)
class Timed:
    """Seconds of each repeat of each run; per token where ``rate``, which then is shown as tokens a second."""

    runs: tuple[tuple[float, ...], ...]
    rate: bool

    @property
    def seconds(self) -> tuple[float, ...]:
        return tuple(x for run in self.runs for x in run)


@dataclass(frozen=True)
class Exact:
    """A figure that does not vary from run to run; ``unit`` is 'B' for bytes, '' for a count, 'perplexity' for one.

    Figures less than ``slack`` of BASE's apart are equal: a perplexity moves with the order of additions.
    """

    value: float
    unit: str
    slack: float = 0.0


@dataclass(frozen=True)
class Side:
    """What one side of a comparison measured, and what it must share with the other: device and model, by name.

    ``busy`` is the most processors that other programs kept busy while a record was made, None where it is not told.
    """

    label: str
    device: str
    model: str
    timed: dict[str, Timed]
    exact: dict[str, Exact]
    not_run: dict[str, str] = field(default_factory=dict)  # by the row's name, with the reason
    facts: dict[str, str] = field(default_factory=dict)
    busy: float | None = None
    record: Any = field(default=None, repr=False, compare=False)  # what it was read from


def parse(text: str, label: str) -> Any:
    """The JSON of a record, or of llama-bench's JSON lines. InputError for what is neither."""
    try:
        return json.loads(text)
    except ValueError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            rows = [json.loads(line) for line in lines]
        except ValueError:
            rows = []
        if rows and all(isinstance(row, dict) for row in rows):
            return rows
        raise InputError(f"{label}: is not JSON ({error}), expected a record of compare or bench; check it") from None


def read_side(record: Any, label: str) -> Side:
    """One record's metrics.

    Raises:
        InputError: it is no record of `compare`, `bench` or llama-bench, of a version that this program does not know,
            holds nothing measured, or several devices or models.
    """
    if isinstance(record, dict) and record.get("schema") == SCHEMA:
        _check_version(label, SCHEMA, record.get("schema_version"), SCHEMA_VERSION)
        read: Callable[[Any, str], Side] = _compare_side
    elif isinstance(record, list) and record and all(isinstance(row, dict) and "samples_ns" in row for row in record):
        if record[0].get("schema") is not None:
            _check_version(label, bench.SCHEMA, record[0].get("schema_version"), bench.SCHEMA_VERSION)
        read = _bench_side
    else:
        found = quoted(record["schema"]) if isinstance(record, dict) and "schema" in record else "no such record"
        raise InputError(
            f"{label}: found {found}, expected the JSON of compare, bench or llama-bench (-o json); choose such a file"
        )
    try:
        side = replace(read(record, label), record=record)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{label}: a field is missing or no number ({type(error).__name__}: {error}), expected a whole record; "
            "measure again"
        ) from None
    if not side.timed and not side.exact:
        raise InputError(f"{label}: holds nothing measured, expected a record of a run; measure with compare or bench")
    return side


def merge(sides: Sequence[Side], label: str) -> Side:
    """Several runs of one thing as one side.

    Raises:
        InputError: they are of different devices or models, or differ in a figure that cannot vary.
    """
    first = sides[0]
    for other in sides[1:]:
        require_same(first, other, "merge")
        for name in first.exact.keys() & other.exact.keys():
            if first.exact[name] != other.exact[name]:
                raise InputError(
                    f"{name}: {first.exact[name].value:,} in {first.label}, {other.exact[name].value:,} in "
                    f"{other.label}, expected one figure as the same code gives it; do not merge them"
                )
    timed: dict[str, Timed] = {}
    for side in sides:
        for name, metric in side.timed.items():
            timed[name] = replace(metric, runs=(*timed[name].runs, *metric.runs)) if name in timed else metric
    busy = [side.busy for side in sides if side.busy is not None]
    return replace(
        first,
        label=label,
        timed=timed,
        exact={name: metric for side in sides for name, metric in side.exact.items()},
        not_run={name: why for side in sides for name, why in side.not_run.items()},
        busy=max(busy, default=None),
    )


def require_same(base: Side, new: Side, what: str) -> None:
    """Raises InputError where the two are of different devices or models."""
    for kind in ("device", "model"):
        one, other = getattr(base, kind), getattr(new, kind)
        if one != other:
            raise InputError(
                f"{base.label} is of {kind} {one}, {new.label} of {other}, expected one {kind} to {what}; choose "
                f"records of the same {kind}"
            )


def _check_version(label: str, schema: str, found: Any, expected: int) -> None:
    if found != expected:
        raise InputError(
            f"{label}: {schema} version {quoted(found)}, expected version {expected}; measure again with this program, "
            "or read it with the one that wrote it"
        )


def _compare_side(record: dict[str, Any], label: str) -> Side:
    tables = [table for table in record["tables"] if table["kind"] == "measured"]
    timed: dict[str, Timed] = {}
    exact: dict[str, Exact] = {}
    not_run: dict[str, str] = {}
    for table in tables:
        for row in table["rows"]:
            name = f"{row['path']} at {row['context']:,}"
            name = f"{table.get('label') or table['model']} {name}" if len(tables) > 1 else name
            if row["not_run"]:
                not_run[name] = row["not_run"]
                continue
            if row["cache_bytes"] is not None:
                exact[f"cache of {name}"] = Exact(int(row["cache_bytes"]), "B")
            if row["perplexity"] is not None:
                exact[f"perplexity of {name}"] = Exact(row["perplexity"], "perplexity", _PERPLEXITY_SLACK)
            decode = [median(repeat) for repeat in row["decode_seconds"]]
            prompt = [seconds / row["context"] for seconds in row["prompt_seconds"]]
            _add(timed, f"decode {name}", decode, True)
            _add(timed, f"prompt {name}", prompt, True)
            _add(timed, f"first token {name}", row["first_token_seconds"], False)
    device = record.get("device") or {}
    model = record.get("model") or {}
    return Side(label, _name(device.get("name")), _model(model), timed, exact, not_run, *_circumstances(record))


def _bench_side(rows: list[dict[str, Any]], label: str) -> Side:
    varied = [name for name in _VARIED if len({json.dumps(row.get(name)) for row in rows}) > 1]
    timed: dict[str, Timed] = {}
    exact: dict[str, Exact] = {}
    for row in rows:
        name = ", ".join([_test(row), *(f"{key} {row[key]}" for key in varied if row.get(key) is not None)])
        tokens = row["n_prompt"] + row["n_gen"]
        if row.get("samples_token_ns") and not row["n_prompt"]:
            seconds = [1e-9 * median(repeat) for repeat in row["samples_token_ns"]]
        else:
            seconds = [1e-9 * sample / tokens for sample in row["samples_ns"]]
        _add(timed, name, seconds, True)
        for key, unit, what in (
            ("cache_bytes", "B", "cache of"),
            ("device_bytes", "B", "device memory at"),
            ("device_allocations", "", "allocations at"),
        ):
            if key in row:
                exact[f"{what} {name}"] = Exact(int(row[key]), unit)
        for program, count in row.get("launches", {}).items():
            exact[f"launches of {program} at {name}"] = Exact(int(count), "")
    devices = list(dict.fromkeys(str(row["gpu_info"]) for row in rows))
    models = list(dict.fromkeys(_model(row.get("model") or row) for row in rows))
    for kind, found in (("devices", devices), ("models", models)):
        if len(found) > 1:
            raise InputError(f"{label}: holds {kind} {', '.join(found)}, expected one; compare them one by one")
    return Side(label, devices[0], models[0], timed, exact, {}, *_circumstances(rows[0]))


def _add(timed: dict[str, Timed], name: str, seconds: Iterable[float], rate: bool) -> None:
    values = tuple(float(x) for x in seconds)
    if not all(x > 0 for x in values):
        raise ValueError(f"{name}: a time that is not above 0")
    if name in timed:
        raise ValueError(f"{name} is there twice")
    if values:
        timed[name] = Timed((values,), rate)


def _test(row: dict[str, Any]) -> str:
    """llama-bench's name of a test: 'pp512+tg128 @ d4096'."""
    parts = [f"pp{row['n_prompt']}"] * bool(row["n_prompt"]) + [f"tg{row['n_gen']}"] * bool(row["n_gen"])
    depth = row.get("n_depth", 0)
    return "+".join(parts) + (f" @ d{depth}" if depth else "")


def _model(facts: dict[str, Any]) -> str:
    """File name and hash of a model, where a record has them; what llama-bench knows of it otherwise."""
    if "sha256" in facts:
        return f"{facts['file']} ({str(facts['sha256'])[:12]})"
    if "model_filename" in facts:
        name = str(facts["model_filename"]).rpartition("/")[2]
        return f"{name} ({facts['model_type']}, {facts['model_size']} B)"
    return _name(facts.get("file") or facts.get("name"))


def _name(value: Any) -> str:
    return str(value) if value else "unnamed"


def _circumstances(record: dict[str, Any]) -> tuple[dict[str, str], float | None]:
    """What a reader wants to see beside the figures, and how busy others kept the machine."""
    software, device = record.get("software") or {}, record.get("device") or {}
    state = record.get("state") or {}
    before = state.get("before") or {}
    load = before.get("load_average") or (record.get("host") or {}).get("load_average") or []
    driver = record.get("driver") or f"{device.get('driver', '')} {device.get('driver_version', '')}".strip()
    found = {
        "commit": software.get("commit") or record.get("build_commit"),
        "driver": driver,
        "shader compiler": software.get("glslang"),
        "date": record.get("date") or record.get("test_time"),
        "load average": ", ".join(f"{x:.2f}" for x in load),
        "power": before.get("power_source"),
    }
    return {key: str(value) for key, value in found.items() if value}, state.get("others_busy")
