"""The results record of `compare`: its types, its schema version, its JSON. `results/README.md` explains each field.

A record is a value: nothing in it can be changed once it is made, nor its file be written over. Every sample and
warm-up is kept, and measured and predicted rows live in different tables, each saying which it is. Bytes are bytes,
times are seconds, rates are tokens a second.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from harness.atomic import write_new
from harness.frozen import frozen
from harness.roofline import Bound, Line, Peaks, Weights
from harness.stats import Ratio, median, paired_ratio
from vkbackend.errors import InputError, quoted

SCHEMA = "latentvk.compare"
SCHEMA_VERSION = 1
BASE_PATH = "mla"  # what every ratio is against
TIMED = ("decode_rate", "prompt_rate", "first_token_seconds")  # the ratios that samples of times give

Kind = Literal["measured", "predicted"]
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Score:
    """What one prompt's logits say about quality: right answers of the questions, and perplexity of the held-out
    text."""

    questions: int
    right: int
    text_tokens: int
    perplexity: float | None

    @property
    def recall_percent(self) -> float | None:
        return 100 * self.right / self.questions if self.questions else None


@dataclass(frozen=True)
class Row:
    """One path at one context. `cache_bytes` is the sum of the buffers really created (None when nothing was
    created).

    Another runtime's row has its name for a path, `peer` true and nothing said of its cache, neither here nor in
    `cache_bytes_formula`.
    """

    path: str
    context: int
    cache_bytes_formula: int | None
    cache_bytes: int | None = None
    decode_seconds: tuple[tuple[float, ...], ...] = ()
    decode_contexts: tuple[int, ...] = ()
    decode_warmup_seconds: tuple[float, ...] = ()
    prompt_seconds: tuple[float, ...] = ()
    prompt_scored: bool = False
    first_token_seconds: tuple[float, ...] = ()
    score: Score | None = None
    unscored: str = ""
    chunk: int | None = None
    decode_bound: Bound | None = None
    prompt_bound: Bound | None = None
    not_run: str = ""
    needed_bytes: int | None = None
    divergence: float | None = None
    divergence_from: str = ""
    peer: bool = False

    @property
    def ran(self) -> bool:
        return not self.not_run

    @property
    def cache_figure(self) -> int | None:
        return self.cache_bytes_formula if self.cache_bytes is None else self.cache_bytes

    @property
    def decode_rate(self) -> float | None:
        return 1 / median([x for repeat in self.decode_seconds for x in repeat]) if self.decode_seconds else None

    @property
    def prompt_rate(self) -> float | None:
        return self.context / median(self.prompt_seconds) if self.prompt_seconds else None

    @property
    def first_token(self) -> float | None:
        return median(self.first_token_seconds) if self.first_token_seconds else None

    @property
    def recall(self) -> float | None:
        return self.score.recall_percent if self.score else None

    @property
    def perplexity(self) -> float | None:
        return self.score.perplexity if self.score else None


@dataclass(frozen=True)
class PathLine:
    """A path's seconds per token against context, and what its slope means at the table's bandwidth."""

    path: str
    line: Line | None
    bytes_per_token: float | None
    bytes_per_token_error: float | None
    bytes_per_token_formula: int
    flops_per_cache_byte: float
    governs: str


@dataclass(frozen=True)
class Table:
    """All rows of one model on one device (measured) or of one shape on one chip (predicted)."""

    kind: Kind
    model: str
    device: str
    weights: Weights
    peaks: Peaks | None
    rows: tuple[Row, ...]
    lines: tuple[PathLine, ...]
    file: str = ""
    cache_type: str = "f16"
    label: str = ""  # what tells it from the record's other measured tables
    group: int = 0  # tables of one group were measured in turns
    peers: tuple[str, ...] = ()  # what each other runtime was, a sentence each
    memory: int | None = None  # bytes that weights and cache could take; None where nothing says

    def base(self, row: Row) -> Row | None:
        """The row of the base path at the same context, if it was asked for."""
        return next((r for r in self.rows if r.path == BASE_PATH and r.context == row.context), None)


@dataclass(frozen=True)
class Record:
    """One run of `compare`; `incomplete` says what ended it early, empty when nothing did.

    Dictionaries and lists that it is given are kept as copies that refuse any change (TypeError).
    """

    command: str
    date: str
    host: dict[str, Any]
    software: dict[str, Any]
    device: dict[str, Any] | None
    model: dict[str, Any]
    settings: dict[str, Any]
    tables: tuple[Table, ...]
    peak_samples: dict[str, list[float]] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    longest_submission_seconds: float | None = None
    incomplete: str = ""

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, frozen(getattr(self, each.name)))


def ratios(row: Row, base: Row | None) -> dict[str, Ratio]:
    """Each figure of `row` over the same figure of `base`; figures that either side lacks are left out.

    Rates are tokens a second, so above 1 means faster; first_token_seconds above 1 means slower. A row that did not run
    still has its cache ratio, from the formulas.
    """
    if base is None:
        return {}
    found = {}
    if row.cache_figure is not None and base.cache_figure:
        found["cache_bytes"] = Ratio(row.cache_figure / base.cache_figure)
    if row.decode_seconds and base.decode_seconds:
        found["decode_rate"] = paired_ratio(base.decode_seconds, row.decode_seconds)
    if row.prompt_seconds and base.prompt_seconds:
        found["prompt_rate"] = paired_ratio(_single(base.prompt_seconds), _single(row.prompt_seconds))
    if row.first_token_seconds and base.first_token_seconds:
        found["first_token_seconds"] = paired_ratio(_single(row.first_token_seconds), _single(base.first_token_seconds))
    for name, value, reference in (
        ("recall_percent", row.recall, base.recall),
        ("perplexity", row.perplexity, base.perplexity),
    ):
        if value is not None and reference:
            found[name] = Ratio(value / reference)
    return found


def _single(samples: Sequence[float]) -> list[tuple[float]]:
    """Samples as repeats of one sample each."""
    return [(sample,) for sample in samples]


def to_json(record: Record) -> dict[str, Any]:
    """The record as plain JSON values, derived figures included, so that a reader needs no arithmetic."""
    plain = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **asdict(record)}
    for table, shown in zip(record.tables, plain["tables"], strict=True):
        for row, target in zip(table.rows, shown["rows"], strict=True):
            target |= {
                "decode_rate": row.decode_rate,
                "prompt_rate": row.prompt_rate,
                "first_token": row.first_token,
                "recall_percent": row.recall,
                "perplexity": row.perplexity,
                f"ratio_to_{BASE_PATH}": {name: asdict(ratio) for name, ratio in ratios(row, table.base(row)).items()},
            }
            for name, bound in (("decode_bound", row.decode_bound), ("prompt_bound", row.prompt_bound)):
                if bound is not None:
                    target[name] |= {"seconds": bound.seconds, "governs": bound.governs}
    return plain


def from_json(text: str, label: str) -> Record:
    """The record that ``to_json`` made ``text`` of; fields of a later version of the program are left aside.

    Raises InputError for what is no such record.
    """
    try:
        plain = json.loads(text)
        found = (plain["schema"], plain["schema_version"]) if isinstance(plain, dict) and "schema" in plain else None
    except (ValueError, KeyError):
        found = None
    if found != (SCHEMA, SCHEMA_VERSION):
        what = f"{quoted(found[0])} version {quoted(found[1])}" if found else "no record"
        raise InputError(
            f"{label}: found {what}, expected {SCHEMA} version {SCHEMA_VERSION}; choose a JSON file that compare wrote"
        )
    try:
        return _built(Record, plain | {"tables": tuple(_table(table) for table in plain["tables"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{label}: a field is missing or of another kind ({type(error).__name__}: {error}), expected a whole "
            "record; measure again"
        ) from None


def _table(plain: dict[str, Any]) -> Table:
    parts = {
        "weights": _built(Weights, plain["weights"]),
        "peaks": plain["peaks"] and _built(Peaks, plain["peaks"]),
        "rows": tuple(_row(row) for row in plain["rows"]),
        "lines": tuple(
            _built(PathLine, line | {"line": line["line"] and _built(Line, line["line"])}) for line in plain["lines"]
        ),
    }
    return _built(Table, plain | parts)


def _row(plain: dict[str, Any]) -> Row:
    parts = {name: plain[name] and _built(Bound, plain[name]) for name in ("decode_bound", "prompt_bound")}
    return _built(Row, plain | parts | {"score": plain["score"] and _built(Score, plain["score"])})


def _built(kind: type[_Value], plain: dict[str, Any]) -> _Value:
    """A value of a dataclass from the fields that it has; lists become tuples."""
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return kind(
        **{name: frozen(value) if isinstance(value, list) else value for name, value in plain.items() if name in names}
    )


def write_record(record: Record, path: Path) -> None:
    """Write the record's JSON to `path`, whole or not at all.

    Raises InputError where a file is already: records are never written over; or when it cannot be written.
    """
    write_new(path, json.dumps(to_json(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def governing(bounds: Sequence[tuple[int, Bound]]) -> str:
    """'memory', 'compute', or where it changes over the (context, bound) pairs: 'memory, compute from 2048'."""
    parts: list[str] = []
    last = ""
    for context, bound in sorted(bounds, key=lambda pair: pair[0]):
        if bound.governs != last:
            parts.append(bound.governs if not parts else f"{bound.governs} from {context}")
            last = bound.governs
    return ", ".join(parts)
