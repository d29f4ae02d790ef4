"""A compare record as one HTML page that needs nothing else: style, charts, tables and the record itself are in it.

It holds no script, and a policy that forbids every request; it follows the reader's light or dark setting and prints.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from harness import charts, sweep
from harness.report_tables import (
    LINES_TITLE,
    Grid,
    heading,
    lines,
    notes,
    provenance,
    title,
    verdicts,
    whole_comparison,
)
from harness.results import Record, Table, to_json
from harness.svg import Chart, draw

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(record: Record, name: str) -> str:
    """The page of a record; ``name``: what its JSON is called when it is saved from the page."""
    parts = [
        f"<h1>{escape(title(record))}</h1>",
        f'<p class="dim">{escape(record.date)}, <code>{escape(record.command)}</code></p>',
    ]
    if record.incomplete:
        parts.append(f'<p class="incomplete">Incomplete: {escape(record.incomplete)}</p>')
    if said := verdicts(record):
        parts.append(f'<section class="verdicts" aria-label="What it says">{_list(said)}</section>')
    if sweep.sweeps(record):
        parts.append(_section(sweep.TITLE, charts.of_sweep(record), sweep.grid(record), sweep.notes(record)))
    parts += [_table_section(table, f"t{index}") for index, table in enumerate(record.tables)]
    parts.append(_environment(record, name))
    style = (files("harness") / "page.css").read_text()
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title(record))}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _table_section(table: Table, key: str) -> str:
    about = "Measured." if table.kind == "measured" else "Predicted: bounds that the chip's peaks set; nothing was run."
    figures = _section(heading(table), charts.of_table(table, key), whole_comparison(table), notes(table), about)
    return f"{figures}\n<p>{escape(LINES_TITLE)}</p>\n{_grid(lines(table))}"


def _section(name: str, found: Sequence[Chart], grid: Grid, sentences: Sequence[str], about: str = "") -> str:
    figures = "\n".join(f"<figure><h3>{escape(chart.title)}</h3>{draw(chart)}</figure>" for chart in found)
    kind = f'<p class="kind">{escape(about)}</p>' if about else ""
    return (
        f'<h2>{escape(name)}</h2>\n{kind}\n<div class="charts">\n{figures}\n</div>\n{_grid(grid)}\n{_list(sentences)}'
    )


def _environment(record: Record, name: str) -> str:
    """Where it was measured, and the record to save."""
    text = json.dumps(to_json(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    data = base64.b64encode(text.encode()).decode()
    link = f'<a download="{escape(name)}" href="data:application/json;base64,{data}">{escape(name)}</a>'
    return (
        f"<h2>Environment and raw data</h2>\n{_grid(provenance(record, name), 'facts')}\n"
        f'<p class="screen">All samples, as JSON: {link} ({len(text.encode()) / 1000:,.0f} kB)</p>'
    )


def _grid(grid: Grid, kind: str = "") -> str:
    head = "".join(
        f'<th scope="col"{_alignment(grid, i)}>{escape(column)}</th>' for i, column in enumerate(grid.columns)
    )
    rows = []
    for index, row in enumerate(grid.rows):
        cells = "".join(f"<td{_alignment(grid, i)}>{escape(cell)}</td>" for i, cell in enumerate(row))
        rows.append(f'<tr class="break">{cells}</tr>' if index in grid.breaks else f"<tr>{cells}</tr>")
    style = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll"><table{style}><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(rows)
        + "</tbody></table></div>"
    )


def _alignment(grid: Grid, column: int) -> str:
    return ' class="text"' if column < grid.labels else ""


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>" if sentences else ""
