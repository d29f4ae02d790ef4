"""The report page and its Markdown: the record comes back whole, every figure is there, nothing asks for a network."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from harness import charts
from harness.cli import main
from harness.page import page
from harness.report_tables import provenance, verdicts, whole_comparison
from harness.results import Record, from_json, to_json
from vkbackend.errors import InputError

COMMITTED = Path(__file__).parents[2] / "results" / "llvmpipe" / "compare-latentvk-tiny.json"
Captured = pytest.CaptureFixture[str]


class Page(HTMLParser):
    """A page's links, table cells, points and the tags that could ask for something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.cells: list[str] = []
        self.points: list[dict[str, str]] = []
        self.tags: set[str] = set()
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.tags.add(tag)
        self.links += [(tag, found[key]) for key in ("src", "href", "data", "action", "xlink:href") if key in found]
        if tag == "g" and found.get("class") == "point":
            self.points.append(found)
        if tag == "td":
            self._cell = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def record() -> Record:
    return from_json(COMMITTED.read_text(), COMMITTED.name)


@pytest.fixture(scope="module")
def shown(record: Record) -> Page:
    return Page(page(record, COMMITTED.name))


def test_a_record_comes_back_as_it_was_written(record: Record) -> None:
    written = json.loads(COMMITTED.read_text())
    again = json.loads(json.dumps(to_json(record)))
    for table, other in zip(written["tables"], again["tables"], strict=True):
        for row, same in zip(table["rows"], other["rows"], strict=True):
            assert row == {key: same[key] for key in row}
    assert from_json(json.dumps(again), "again") == record


def test_the_charts_hold_the_records_figures(record: Record, shown: Page) -> None:
    decode = charts.of_table(record.tables[0], "t0")[0]
    found = {
        (p.data["path"], int(p.data["context"])): p.data["value"] for s in decode.series for p in s.points if p.data
    }
    assert found == {(row.path, row.context): repr(row.decode_rate) for row in record.tables[0].rows}
    assert {(p["data-path"], p["data-context"], p["data-value"]) for p in shown.points} >= {
        (row.path, str(row.context), repr(value))
        for table in record.tables
        for row in table.rows
        for value in (row.decode_rate, row.prompt_rate, row.first_token)
        if value
    }


def test_which_charts_there_are(record: Record) -> None:
    measured, predicted = record.tables
    keys = ["decode", "prompt", "first", "memory", "roofline"]
    assert [chart.key for chart in charts.of_table(measured, "t0")] == [f"t0-{key}" for key in keys]
    assert [chart.key for chart in charts.of_table(predicted, "t1")] == [f"t1-{key}" for key in keys[:-1]]
    assert charts.of_sweep(record) == []
    two = tuple(
        replace(measured, label=label, weights=replace(measured.weights, active_bytes=n))
        for label, n in (("a", 10**6), ("b", 2 * 10**6))
    )
    sweep = charts.of_sweep(replace(record, tables=two))
    assert [chart.key for chart in sweep] == ["sweep-mla", "sweep-mla-v", "sweep-mha"]
    assert [series.name for series in sweep[0].series] == ["a, 1.00 MB a token", "b, 2.00 MB a token"]


def test_our_paths_keep_their_colours_beside_another_runtime(record: Record) -> None:
    table = record.tables[0]
    peer = replace(table.rows[0], path="llama-bench", cache_bytes=None, cache_bytes_formula=None, peer=True)
    found = charts.of_table(replace(table, rows=(peer, *table.rows)), "t")
    assert [(series.name, series.colour) for series in found[0].series][:4] == [
        ("mla", 0), ("mla-v", 1), ("mha", 2), ("llama-bench", 3)]  # fmt: skip
    assert [series.name for series in found[3].series] == ["mla", "mla-v", "mha"]  # nothing is known of its memory


def test_memory_is_held_against_what_there_is(record: Record) -> None:
    table = replace(record.tables[1], memory=96 * 2**30)
    chart = next(chart for chart in charts.of_table(table, "t") if chart.key == "t-memory")
    assert [(limit.name, limit.y) for limit in chart.limits] == [("there is 96 GiB", 96 * 2**30)]
    values = {(p.data["path"], p.data["context"]): int(p.data["value"]) for s in chart.series for p in s.points}
    assert values["mha", "131072"] == table.weights.total_bytes + 131072 * 962_560  # shown although it does not fit
    assert "mha at 131,072: " in chart.series[-1].points[-1].title
    assert chart.series[-1].points[-1].title.endswith(", does not fit")


def test_the_roofline_has_no_point_above_its_roof_where_the_bound_holds(record: Record) -> None:
    table = record.tables[0]
    chart = next(chart for chart in charts.of_table(table, "t") if chart.key == "t-roofline")
    rows = {(row.path, row.context): row for row in table.rows}
    assert table.peaks is not None
    for series in chart.series[:-1]:
        for point in series.points:
            row = rows[point.data["path"], int(point.data["context"])]
            bound = row.decode_bound if point.data["kind"] == "decode" else row.prompt_bound
            assert bound is not None
            seconds = 1 / row.decode_rate if point.data["kind"] == "decode" else row.prompt_seconds  # type: ignore[operator]
            if isinstance(seconds, float):
                assert point.y == pytest.approx(bound.flops / seconds)
            roof = min(point.x * table.peaks.bandwidth, table.peaks.flops)
            assert point.y <= roof * (1 + 1e-9)
    assert [point.y for point in chart.series[-1].points][1:] == [table.peaks.flops, table.peaks.flops]


def test_every_cell_of_the_tables_is_on_the_page(record: Record, shown: Page) -> None:
    for table in record.tables:
        for row in whole_comparison(table).rows:
            at = [i for i in range(len(shown.cells)) if tuple(shown.cells[i : i + len(row)]) == row]
            assert at, row
    assert dict(provenance(record, "x").rows)["model sha256"] in shown.cells


def test_the_page_needs_nothing_and_its_link_is_the_record(record: Record, shown: Page) -> None:
    assert shown.tags.isdisjoint({"script", "img", "link", "iframe", "object", "embed", "form", "base", "use", "image"})
    ((tag, link),) = shown.links
    assert tag == "a" and link.startswith("data:application/json;base64,")
    data = json.loads(base64.b64decode(link.partition(",")[2]))
    assert data == json.loads(json.dumps(to_json(record)))
    text = page(record, COMMITTED.name)
    assert """content="default-src 'none'; style-src 'unsafe-inline'\"""" in text
    assert re.findall(r"url\(|@import|https?://", text) == []
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_a_hostile_name_stays_text(record: Record) -> None:
    name = '<script>alert(1)</script>"&'
    table = replace(record.tables[0], model=name, device=name)
    hostile = replace(record, tables=(table,), incomplete=name, command=name, model={"file": name})
    shown = Page(page(hostile, name))
    assert "script" not in shown.tags and len(shown.links) == 1
    assert name in shown.cells


def test_verdicts_say_what_the_samples_say(record: Record) -> None:
    assert verdicts(record) == [
        "llvmpipe (LLVM 15.0.6, 256 bits), mla-v against mla at 8,192 tokens: a cache 1.89 times as large, "
        "decoding not told apart by these samples (0.83 to 1.23 times).",
        "llvmpipe (LLVM 15.0.6, 256 bits), mha against mla at 8,192 tokens: a cache 17.78 times as large, decoding at "
        "0.54 times the speed (95%: 0.48 to 0.71).",
        "Radeon 780M, mla-v against mla at 131,072 tokens: a cache 1.89 times as large, decoding at 0.59 times the "
        "speed, by the bounds.",
        "Radeon 780M, mha against mla at 65,536 tokens: a cache 17.78 times as large, decoding at 0.09 times the "
        "speed, by the bounds.",
        "Radeon 780M, mha against mla at 131,072 tokens: a cache 17.78 times as large, does not fit.",
    ]
    alone = replace(record.tables[0], rows=record.tables[0].rows[:1], lines=record.tables[0].lines[:1])
    assert verdicts(replace(record, tables=(alone,))) == [
        "llvmpipe (LLVM 15.0.6, 256 bits): mla at 512 tokens decodes 214 tokens a second."
    ]


def test_how_the_machine_was_is_told(record: Record) -> None:
    before = {"cpu_mhz": [3200.0], "gpu_mhz": 2700.0, "temperature_c": {"k10temp Tctl": 60.0}, "power_source": "mains"}
    state = {"before": before, "after": {"temperature_c": {"k10temp Tctl": 71.0}}, "others_busy": 0.125}
    rows = dict(provenance(replace(record, state=state), "x").rows)
    assert rows["temperatures"] == "k10temp Tctl 60 to 71 °C"
    assert (rows["processor clocks"], rows["GPU clock"], rows["power"]) == ("3,200 MHz", "2,700 MHz", "mains")
    assert rows["other programs"] == "kept 0.12 processors busy meanwhile"


def test_the_command_writes_html_and_markdown(tmp_path: Path, capsys: Captured) -> None:
    html, text = tmp_path / "r.html", tmp_path / "r.md"
    assert main(["report", str(COMMITTED), "-o", str(html)]) == 0
    assert main(["report", str(COMMITTED), "-o", str(text)]) == 0
    assert capsys.readouterr().out == f"report: {html}\nreport: {text}\n"
    assert html.read_text().startswith("<!doctype html>")
    assert text.read_text().startswith("# MLA against its fallback: ")
    copy = tmp_path / "copy.json"
    copy.write_text(COMMITTED.read_text())
    assert main(["report", str(copy)]) == 0
    assert (tmp_path / "copy.html").read_text().count("<svg ") == 9


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "found no record, expected latentvk.compare version 1; choose a JSON file that compare wrote"),
        ("[1]", "found no record, expected latentvk.compare version 1; choose a JSON file that compare wrote"),
        (
            '{"schema": "latentvk.compare", "schema_version": 2}',
            "found 'latentvk.compare' version 2, expected latentvk.compare version 1; choose a JSON file that compare "
            "wrote",
        ),
        (
            '{"schema": "latentvk.compare", "schema_version": 1}',
            "a field is missing or of another kind (KeyError: 'tables'), expected a whole record; measure again",
        ),
    ],
)
def test_what_is_no_record(text: str, error: str, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        from_json(text, str(path))
    assert str(raised.value) == f"{path}: {error}"
    assert main(["report", str(path)]) == 2
    assert capsys.readouterr().err == f"latentvk: error: {path}: {error}\n"
    assert [each.name for each in tmp_path.iterdir()] == ["r.json"]


def test_the_record_itself_is_not_written_over(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "r.json"
    path.write_text(COMMITTED.read_text())
    assert main(["report", str(path), "-o", str(path)]) == 2
    line = f"{path}: is the record itself, expected another file to write to; choose one with -o"
    assert capsys.readouterr().err == f"latentvk: error: {line}\n"
    assert main(["report", str(tmp_path / "none.json")]) == 2
    line = f"{tmp_path}/none.json: cannot be read (No such file or directory), expected a record of compare; "
    assert capsys.readouterr().err == f"latentvk: error: {line}check the path\n"


def test_rows_that_did_not_run_leave_charts_that_do_not_break(record: Record) -> None:
    rows = tuple(
        replace(row, decode_seconds=(), prompt_seconds=(), first_token_seconds=(), not_run="device lost")
        for row in record.tables[0].rows
    )
    table = replace(record.tables[0], rows=rows)
    assert [chart.key for chart in charts.of_table(table, "t")] == ["t-memory"]
    shown: Any = Page(page(replace(record, tables=(table,)), "x.json"))
    assert "n/a" in shown.cells
