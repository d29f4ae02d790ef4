"""A compare record as text for people: the same grids as Rich tables on a terminal and as Markdown in the report file.

Every predicted figure carries '≤' or '≥', as the model gives bounds; measured ratios carry '~' or '?', see `_ratio`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from harness.results import BASE_PATH, TIMED, Record, Row, Table, ratios
from harness.roofline import Peaks
from harness.text_tables import plain_table
from harness.units import bytes_text, decimal_bytes_text, rate_text, seconds_text, significant

LINES_TITLE = "Seconds per decoded token as a straight line in context (B/token: its slope times the bandwidth):"
NONE = "n/a"
_TIMES = f"x {BASE_PATH}"
_MEMORY = ("cache", "formula", _TIMES)
_SPEED = ("decode\ntok/s", _TIMES, "prompt\ntok/s", _TIMES, "first\ntoken", _TIMES)
_QUALITY = ("recall\n%", "perplexity")


@dataclass(frozen=True)
class Grid:
    """A table as strings: the first `labels` columns are text, the rest figures; `breaks` are first rows of blocks."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 2
    breaks: frozenset[int] = frozenset()


def heading(table: Table) -> str:
    verb = "measured on" if table.kind == "measured" else "predicted for"
    return f"{table.model}{f' ({table.label})' if table.label else ''}, {verb} {table.device}"


def title(record: Record) -> str:
    """'MLA against its fallback: ' and what was measured where."""
    return "MLA against its fallback: " + " and ".join(
        dict.fromkeys(heading(replace(table, label="")) for table in record.tables)
    )


def whole_comparison(table: Table) -> Grid:
    """The comparison grid with all the columns that the table has figures for."""
    return comparison(table, (_MEMORY, _SPEED, *((_QUALITY,) if table.kind == "measured" else ())))


def comparison(table: Table, groups: Sequence[tuple[str, ...]]) -> Grid:
    """The comparison grid with the named groups of columns."""
    rows = []
    breaks = set()
    for index, row in enumerate(table.rows):
        if index and row.context != table.rows[index - 1].context:
            breaks.add(index)
        cells = [f"{row.context:,}", row.path]
        for group in groups:
            cells += _CELLS[group](table, row)
        rows.append(tuple(cells))
    columns = ("context", "path", *(column for group in groups for column in group))
    return Grid(columns, tuple(rows), breaks=frozenset(breaks))


def _memory_cells(table: Table, row: Row) -> list[str]:
    if row.cache_bytes_formula is None:
        return [NONE, NONE, NONE]
    found = (row.not_run or "predicted") if row.cache_bytes is None else bytes_text(row.cache_bytes)
    return [found, bytes_text(row.cache_bytes_formula), _ratio(table, row, "cache_bytes")]


def _speed_cells(table: Table, row: Row) -> list[str]:
    upper, lower = ("≤ ", "≥ ") if table.kind == "predicted" else ("", "")
    cells: list[str] = []
    for value, show, mark, name in (
        (row.decode_rate, rate_text, upper, "decode_rate"),
        (row.prompt_rate, rate_text, upper, "prompt_rate"),
        (row.first_token, seconds_text, lower, "first_token_seconds"),
    ):
        cells += [NONE if value is None else mark + show(value), _ratio(table, row, name)]
    return cells


def _quality_cells(table: Table, row: Row) -> list[str]:
    return [
        NONE if row.recall is None else f"{row.recall:.1f}",
        NONE if row.perplexity is None else f"{row.perplexity:.4f}",
    ]


_CELLS: dict[tuple[str, ...], Callable[[Table, Row], list[str]]] = {
    _MEMORY: _memory_cells,
    _SPEED: _speed_cells,
    _QUALITY: _quality_cells,
}


def _ratio(table: Table, row: Row, name: str) -> str:
    """A ratio with what its samples say about it: '~' no difference, '?' single runs, nothing: told apart or exact."""
    ratio = ratios(row, table.base(row)).get(name)
    if ratio is None:
        return NONE
    if row.path == BASE_PATH:
        return "1"
    exact = table.kind == "predicted" or name == "cache_bytes"
    mark = "" if exact else {True: "", False: "~", None: "?"}[ratio.distinct]
    return f"{mark}{ratio.value:.2f}"


def lines(table: Table) -> Grid:
    """Each path's seconds per token as a line in context, and what governs it."""
    rows = []
    for entry in table.lines:
        base = slope = per_token = NONE
        if entry.line is not None:
            base, slope = seconds_text(entry.line.intercept), seconds_text(entry.line.slope)
        if entry.bytes_per_token is not None:
            error = f" ± {entry.bytes_per_token_error:,.0f}" if entry.bytes_per_token_error is not None else ""
            per_token = f"{entry.bytes_per_token:,.0f}" + (error if table.kind == "measured" else "")
        rows.append(
            (
                entry.path,
                base,
                slope,
                per_token,
                f"{entry.bytes_per_token_formula:,}",
                significant(entry.flops_per_cache_byte),
                entry.governs or NONE,
            )
        )
    columns = (
        "path",
        "at context\n0",
        "slope",
        "slope\nB/token",
        "cache\nB/token",
        "FLOP per\ncache B",
        "decode\nbound by",
    )
    return Grid(columns, tuple(rows), labels=1)


def notes(table: Table) -> list[str]:
    """What a reader must know to judge the table, one sentence each."""
    found = []
    if table.peaks is not None:
        found.append(_peaks_note(table.kind, table.peaks))
    found.append(
        f"Weights: {decimal_bytes_text(table.weights.total_bytes)}, of which a decoded token reads "
        f"{decimal_bytes_text(table.weights.active_bytes)} ({table.weights.source})."
    )
    found += [_blow_up(table)] if len(table.lines) > 1 else []
    found += [f"{peer}." for peer in table.peers]
    found += [
        f"{row.path} at {row.context:,}: {row.not_run}"
        + (
            f", {bytes_text(row.needed_bytes)} needed with the weights."
            if row.needed_bytes and _too_large(row)
            else "."
        )
        for row in table.rows
        if not row.ran
    ]
    found += _reached(table)
    found += [f"No scores: {why}." for why in dict.fromkeys(row.unscored for row in table.rows if row.unscored)]
    if table.kind == "predicted":
        found.append(
            "Predicted: ≤ and ≥ mark bounds that the chip's peaks set for the path's own arithmetic in f32; no run was "
            "made."
        )
        return found
    if any(_timed(table, row, distinct=False) for row in table.rows):
        found.append("~ marks a ratio whose 95% interval includes 1: these samples show no difference.")
    if any(_timed(table, row, distinct=None) for row in table.rows):
        also = " The run also returned all logits for the score." if any(r.prompt_scored for r in table.rows) else ""
        found.append(f"? marks a ratio of single runs: nothing says how much they vary.{also}")
    return found


def _too_large(row: Row) -> bool:
    return row.not_run.startswith("does not fit")


def _timed(table: Table, row: Row, distinct: bool | None) -> bool:
    """Whether one of the row's ratios of times is marked so."""
    found = ratios(row, table.base(row)) if row.path != BASE_PATH else {}
    return any(found[name].distinct is distinct for name in TIMED if name in found)


def _peaks_note(kind: str, peaks: Peaks) -> str:
    origin = "measured" if kind == "measured" else "from a table"
    return (
        f"Peaks, {origin}: {peaks.bandwidth / 1e9:,.3g} GB/s and {peaks.flops / 1e9:,.4g} GFLOP/s, that is "
        f"{peaks.balance:,.3g} FLOP per byte ({peaks.source}). "
        "Attention that does more per cache byte is bound by arithmetic."
    )


def _blow_up(table: Table) -> str:
    figures = {line.path: line.bytes_per_token_formula for line in table.lines}
    base = figures.get(BASE_PATH)
    parts = [f"{path} {value:,}" + (f" ({value / base:.2f}x)" if base else "") for path, value in figures.items()]
    return f"Cache bytes per token of context: {', '.join(parts)}."


def _reached(table: Table) -> list[str]:
    """Measured decode as a share of its bound, at each path's longest context."""
    if table.kind == "predicted":
        return []
    parts = []
    for line in table.lines:
        rows = [r for r in table.rows if r.path == line.path and r.decode_rate and r.decode_bound]
        if rows:
            row = max(rows, key=lambda r: r.context)
            if row.decode_rate and row.decode_bound:
                parts.append(f"{line.path} {100 * row.decode_rate * row.decode_bound.seconds:.0f}% at {row.context:,}")
    return [f"Decode reached of what the measured peaks allow: {', '.join(parts)}."] if parts else []


def show(record: Record, console: Console) -> None:
    """Print all tables of the record; the comparison in one piece where the console is wide enough, else in two."""
    if record.incomplete:
        console.print(Text(f"Incomplete: {record.incomplete}", style="bold"), end="\n\n")
    from harness import sweep  # it shows its grid with this module's

    several = sweep.sweeps(record)
    if several:
        measured = sweep.measured_tables(record)[0]
        console.print(Text(heading(replace(measured, label="")), style="bold"), end="\n\n")
        console.print(sweep.TITLE, end="\n\n")
        console.print(_rich_grid(sweep.grid(record)), "")
        for note in sweep.notes(record):
            console.print(Text(note, style="dim"))
        console.print()
    for table in record.tables:
        if several and table.kind == "measured":
            continue  # the report file has each table whole
        console.print(Text(heading(table), style="bold"), end="\n\n")
        for grid in _pieces(table, console):
            console.print(_rich_grid(grid), "")
        console.print(LINES_TITLE, end="\n\n")
        console.print(_rich_grid(lines(table)), "")
        for note in notes(table):
            console.print(Text(note, style="dim"))
        console.print()


def _pieces(table: Table, console: Console) -> list[Grid]:
    quality = (_QUALITY,) if table.kind == "measured" else ()
    whole = whole_comparison(table)
    if console.measure(_rich_grid(whole), options=console.options.update(width=1000)).maximum <= console.width:
        return [whole]
    return [comparison(table, (_MEMORY, *quality)), comparison(table, (_SPEED,))]


def _rich_grid(grid: Grid) -> RichTable:
    shown = plain_table(*grid.columns, labels=grid.labels, overflow="ellipsis")
    for index, row in enumerate(grid.rows):
        if index in grid.breaks:
            shown.add_section()
        shown.add_row(*row)
    return shown


def markdown(record: Record, json_name: str) -> str:
    """The whole record as a Markdown report; `json_name` is the file with all samples."""
    parts = [f"# {title(record)}"]
    parts += [f"**Incomplete:** {record.incomplete}"] if record.incomplete else []
    parts.append("\n".join(f"- {verdict}" for verdict in verdicts(record)))
    parts.append(markdown_grid(provenance(record, json_name)))
    from harness import sweep

    if sweep.sweeps(record):
        parts += [f"## {sweep.TITLE}", markdown_grid(sweep.grid(record))]
        parts.append("\n".join(f"- {note}" for note in sweep.notes(record)))
    for table in record.tables:
        parts.append(f"## {heading(table)}")
        parts.append(markdown_grid(whole_comparison(table)))
        parts.append(LINES_TITLE)
        parts.append(markdown_grid(lines(table)))
        parts.append("\n".join(f"- {note}" for note in notes(table)))
    return "\n\n".join(parts) + "\n"


def verdicts(record: Record) -> list[str]:
    """What the record says where the context is longest, a sentence each: every table against the first that was
    measured, and within a table every path against the base path; a table with neither says its own speed."""
    measured = [table for table in record.tables if table.kind == "measured"]
    found = []
    for table in record.tables:
        of_paths = [_of_path(table, path) for path in dict.fromkeys(row.path for row in table.rows)]
        rows = [row for rows in of_paths for row in _longest(rows)]
        sentences = []
        for row in rows:
            base = table.base(row)
            if base is not None and row.path != BASE_PATH:
                sentences.append(_verdict(table, row, f"{row.path} against {BASE_PATH}", base))
            if table in measured[1:]:
                others = [r for r in _of_path(measured[0], row.path) if r.context == row.context]
                against = f"{row.path}, {table.label} against {measured[0].label}"
                sentences += [_verdict(table, row, against, other) for other in others]
        found += sentences or [_own_speed(table, row) for row in rows if row.decode_rate]
    return found


def _longest(rows: Sequence[Row]) -> list[Row]:
    """The row of the longest context, and where it did not run the longest that did before it."""
    ran = [row for row in rows if row.ran]
    last = max(rows, key=lambda row: row.context)
    return [last] if last.ran or not ran else [max(ran, key=lambda row: row.context), last]


def _of_path(table: Table, path: str) -> list[Row]:
    return [row for row in table.rows if row.path == path]


def _own_speed(table: Table, row: Row) -> str:
    mark = "at most " if table.kind == "predicted" else ""
    rate = rate_text(row.decode_rate or 0)
    return f"{table.device}: {row.path} at {row.context:,} tokens decodes {mark}{rate} tokens a second."


def _verdict(table: Table, row: Row, what: str, base: Row) -> str:
    found = ratios(row, base)
    parts = []
    if "cache_bytes" in found:
        parts.append(f"a cache {found['cache_bytes'].value:.2f} times as large")
    if row.not_run:
        parts.append(row.not_run)
    elif "decode_rate" in found:
        ratio = found["decode_rate"]
        if table.kind == "predicted":
            parts.append(f"decoding at {ratio.value:.2f} times the speed, by the bounds")
        elif ratio.distinct is None:
            parts.append(f"decoding at {ratio.value:.2f} times the speed in single runs")
        elif ratio.distinct:
            parts.append(f"decoding at {ratio.value:.2f} times the speed (95%: {ratio.low:.2f} to {ratio.high:.2f})")
        else:
            parts.append(f"decoding not told apart by these samples ({ratio.low:.2f} to {ratio.high:.2f} times)")
    return f"{table.device}, {what} at {row.context:,} tokens: {', '.join(parts) or 'nothing in common'}."


def provenance(record: Record, json_name: str) -> Grid:
    """What was measured, where, by which versions, and how the machine was; what is not known is left out."""
    before, after = record.state.get("before") or {}, record.state.get("after") or {}
    temperatures = [
        f"{name} {value:.0f} to {(after.get('temperature_c') or {}).get(name, value):.0f} \u00b0C"
        for name, value in (before.get("temperature_c") or {}).items()
    ]
    busy = record.state.get("others_busy")
    facts = {
        "date": record.date,
        "commit": record.software.get("commit"),
        "latentvk": record.software.get("latentvk"),
        "model": record.model.get("file") or record.model.get("name"),
        "model sha256": record.model.get("sha256"),
        "device": record.device and record.device.get("name"),
        "driver": record.device and f"{record.device.get('driver')} {record.device.get('driver_version')}",
        "host": f"{record.host.get('cpu')}, {record.host.get('cpu_count')} logical processors",
        "load average": ", ".join(f"{load:.2f}" for load in record.host.get("load_average", [])),
        "other programs": None if busy is None else f"kept {busy:.2f} processors busy meanwhile",
        "shader compiler": record.software.get("glslang"),
        "processor clocks": ", ".join(f"{clock:,.0f} MHz" for clock in before.get("cpu_mhz") or ()),
        "GPU clock": before.get("gpu_mhz") and f"{before['gpu_mhz']:,.0f} MHz",
        "temperatures": ", ".join(temperatures),
        "power": before.get("power_source"),
        "longest submission": record.longest_submission_seconds and seconds_text(record.longest_submission_seconds),
        "settings": ", ".join(f"{key} {value}" for key, value in record.settings.items()),
        "all samples": json_name,
    }
    rows = tuple((key, str(value)) for key, value in facts.items() if value)
    return Grid(("what", "value"), rows)


def markdown_grid(grid: Grid) -> str:
    """The grid as a Markdown table, headings on one line."""
    rule = [":--" if index < grid.labels else "--:" for index in range(len(grid.columns))]
    rows = [tuple(column.replace("\n", " ") for column in grid.columns), rule, *grid.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
