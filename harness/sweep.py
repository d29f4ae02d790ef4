"""Several files or cache types of one model side by side: what each costs and gives, and whether the weights matter."""

from __future__ import annotations

from collections.abc import Sequence

from harness.quants import effect_text, quant_effect
from harness.report_tables import NONE, Grid
from harness.results import Record, Row, Table, ratios
from harness.units import decimal_bytes_text, rate_text

_WEIGHTS, _CACHE = "weights\na token", "cache B\na token"
TITLE = "Side by side (x: decode speed over the first of that context and path)"


def measured_tables(record: Record) -> list[Table]:
    return [table for table in record.tables if table.kind == "measured"]


def sweeps(record: Record) -> bool:
    """Whether the record compares files or cache types."""
    return len(measured_tables(record)) > 1


def grid(record: Record) -> Grid:
    """One row for each context, path and table, in that order; columns that tell nothing are left out."""
    tables = measured_tables(record)
    found: list[dict[str, str]] = []
    breaks = set()
    for base in tables[0].rows:
        if found:
            breaks.add(len(found))
        for table in tables:
            row = same(table, base)
            if row is not None:
                found.append(_cells(table, row, base))
    if len({table.weights.active_bytes for table in tables}) == 1:
        found = [{name: cell for name, cell in cells.items() if name != _WEIGHTS} for cells in found]
    if len({table.cache_type for table in tables}) == 1:
        found = [{name: cell for name, cell in cells.items() if name != _CACHE} for cells in found]
    for optional in ("recall\n%", "perplexity", "diverges\nnats"):
        if all(cells[optional] == NONE for cells in found):
            found = [{name: cell for name, cell in cells.items() if name != optional} for cells in found]
    rows = tuple(tuple(cells.values()) for cells in found)
    return Grid(tuple(found[0]), rows, labels=3, breaks=frozenset(breaks))


def same(table: Table, base: Row) -> Row | None:
    """The table's row of the same path and context."""
    return next((row for row in table.rows if (row.path, row.context) == (base.path, base.context)), None)


def _cells(table: Table, row: Row, base: Row) -> dict[str, str]:
    rate = ratios(row, base).get("decode_rate")
    if row is base:
        times = "1"
    elif rate is None:
        times = NONE
    else:
        times = {True: "", False: "~", None: "?"}[rate.distinct] + f"{rate.value:.2f}"
    return {
        "context": f"{row.context:,}",
        "path": row.path,
        "of": table.label.removeprefix("cache "),
        _WEIGHTS: decimal_bytes_text(table.weights.active_bytes),
        _CACHE: NONE if row.cache_bytes_formula is None else f"{row.cache_bytes_formula // row.context:,}",
        "tok/s": row.not_run or (NONE if row.decode_rate is None else rate_text(row.decode_rate)),
        "x": times,
        "recall\n%": NONE if row.recall is None else f"{row.recall:.1f}",
        "perplexity": NONE if row.perplexity is None else f"{row.perplexity:.4f}",
        "diverges\nnats": divergence_text(row.divergence),
    }


def divergence_text(value: float | None) -> str:
    """A mean divergence with two digits; the arithmetic's own rounding may leave a tiny negative one."""
    return NONE if value is None else f"{max(value, 0.0):.1e}"


def notes(record: Record) -> list[str]:
    """What the side by side says: for each context and path whether the weights are the bottleneck, and what the
    columns are."""
    tables = measured_tables(record)
    found = []
    for base in tables[0].rows:
        for table in tables[1:]:
            row = same(table, base)
            if row is not None and table.weights.active_bytes != tables[0].weights.active_bytes:
                found += _quant_note(tables[0], base, table, row)
    if any(table.group != tables[0].group for table in tables):
        found.append(
            "Not all files fitted the device together: those measured one after the other do not share the machine's "
            "drift, and their ratios' intervals are too narrow."
        )
    references = {row.divergence_from for table in tables for row in table.rows if row.divergence is not None}
    if references:
        names = " and ".join(sorted(name or "the first" for name in references))
        over = "scored text" if any(row.score for table in tables for row in table.rows) else "whole prompt"
        found.append(
            f"Divergence: mean Kullback-Leibler divergence of the next token's distribution from that of {names}, over "
            f"the {over}."
        )
    found.append("~ marks a ratio whose 95% interval includes 1, ? one of single runs.")
    return found


def _quant_note(base_table: Table, base: Row, table: Table, row: Row) -> list[str]:
    if len(base.decode_seconds) < 2 or len(row.decode_seconds) < 2:
        return []
    pairs: Sequence[tuple[Table, Row]] = sorted(
        ((base_table, base), (table, row)), key=lambda pair: -pair[0].weights.active_bytes
    )
    (larger, slow), (smaller, fast) = pairs
    effect = quant_effect(
        (larger.weights.active_bytes, slow.decode_seconds), (smaller.weights.active_bytes, fast.decode_seconds)
    )
    return [effect_text(row.path, row.context, larger.label, smaller.label, effect)]
