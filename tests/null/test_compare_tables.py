"""What a comparison's tables and Markdown report say of given rows, and what its files are called."""

from io import StringIO
from pathlib import Path as FilePath

import pytest
from fake_compare import CONFIG, record, table
from rich.console import Console

from harness import report_tables
from harness.cli import main
from harness.compare import report_stem
from harness.results import Row, ratios
from model.layout import PATHS, cache_bytes


def linear_rows(seconds_per_row: dict[str, float]) -> list[Row]:
    """Rows whose decode time is 10 ms plus an exact slope."""
    rows = []
    for context in (512, 2048):
        for name, slope in seconds_per_row.items():
            size = cache_bytes(CONFIG, PATHS[name].layout, "f16", context)
            seconds = 0.01 + slope * context
            rows.append(
                Row(
                    name,
                    context,
                    size,
                    cache_bytes=size,
                    decode_seconds=((seconds,) * 3,) * 2,
                    decode_contexts=(context,),
                    prompt_seconds=(1.0,),
                    first_token_seconds=(1.0,),
                )
            )
    return rows


def test_slope_times_bandwidth_is_bytes_per_token() -> None:
    found = table(linear_rows({"mla": 2e-6, "mha": 5e-6}))
    assert {line.path: line.bytes_per_token for line in found.lines} == {
        "mla": pytest.approx(2000.0),
        "mha": pytest.approx(5000.0),
    }


def test_markdown_report_shows_ratio_rows_that_do_not_fit_and_undecided_ratios() -> None:
    rows = linear_rows({"mla": 2e-6, "mha": 2e-6})
    rows.append(Row("mha", 65536, 123 * 2**30, not_run="does not fit", needed_bytes=125 * 2**30))
    text = report_tables.markdown(record(table(rows)), "samples.json")
    blow_up = rows[1].cache_bytes_formula / rows[0].cache_bytes_formula
    assert f"({blow_up:.2f}x)" in text
    assert "| 65,536 | mha | does not fit | 123.0 GiB |" in text
    assert "- mha at 65,536: does not fit, 125.0 GiB needed with the weights." in text
    assert "| ~1.00 | 512 | ?1.00 | 1.00 s | ?1.00 |" in text  # decode has two repeats, the prompt one
    assert "- ? marks a ratio of single runs: nothing says how much they vary.\n" in text
    assert "~ marks a ratio whose 95% interval includes 1" in text
    assert "| all samples | samples.json |" in text


def test_first_row_of_each_path_is_its_own_base() -> None:
    found = table(linear_rows({"mla": 2e-6, "mha": 4e-6}))
    mla, mha = found.rows[:2]
    assert ratios(mla, found.base(mla))["decode_rate"].value == 1.0
    assert ratios(mha, found.base(mha))["decode_rate"].value == pytest.approx((0.01 + 512 * 2e-6) / (0.01 + 512 * 4e-6))


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal_with_no_cell_cut(width: int) -> None:
    console = Console(width=width, record=True, file=StringIO())
    report_tables.show(record(table(linear_rows({"mla": 2e-6, "mla-v": 3e-6, "mha": 5e-6}))), console)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert "tiny, measured on llvmpipe" in text
    # Wide terminals get one comparison table, narrow ones two.
    assert text.count("x mla") == 4
    assert len([line for line in text.splitlines() if line.startswith("512")]) == (3 if width == 120 else 6)


def test_report_names_are_made_of_model_device_and_date() -> None:
    assert report_stem(record(table([]))) == "compare-tiny-1.5-llvmpipe-20260102-030405"


def test_predicted_reports_are_written_and_marked(tmp_path: FilePath, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--preset", "glm-4.7-flash", "--predict", "780m", "-o", str(tmp_path / "new folder")]) == 0
    names = sorted(path.name for path in (tmp_path / "new folder").iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["html", "json", "md"]
    assert names[1].startswith("compare-glm-4.7-flash-radeon-780m-")
    text = (tmp_path / "new folder" / names[2]).read_text()
    assert "| 4,096 | mha | predicted | 3.672 GiB | 17.78 | ≤ 13.1 | 0.39 |" in text
    assert "| 131,072 | mha | does not fit | 117.5 GiB | 17.78 | n/a |" in text
    assert "| 131,072 | mla | predicted | 6.609 GiB | 1 | ≤ 8.63 | 1 |" in text
    out = capsys.readouterr().out
    assert all(name in out for name in names)
