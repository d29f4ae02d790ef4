"""Statistics, figures as text, the results record and files that appear whole or not at all."""

import json
import os
import stat
from pathlib import Path

import pytest

from harness import results, stats, units
from harness.atomic import replacing, require_writable, write_text
from harness.metadata import model_file
from harness.results import Record, Row, Score, Table, ratios, to_json, write_record
from harness.roofline import Peaks, Weights
from vkbackend.errors import InputError


def row(path: str, context: int, **fields: object) -> Row:
    return Row(path, context, cache_bytes_formula=100, **fields)  # type: ignore[arg-type]


def record(*rows: Row) -> Record:
    table = Table("measured", "m", "d", Weights(10, 5, "test"), Peaks(1e9, 1e9, "test"), rows, ())
    return Record("latentvk compare", "2026-01-02T03:04:05+00:00", {}, {}, {"name": "d"}, {"file": "m"}, {}, (table,))


def test_deviation_is_that_of_a_sample() -> None:
    assert stats.deviation([1.0, 2.0, 4.0]) == pytest.approx((14 / 6) ** 0.5)
    assert stats.deviation([3.0]) == 0.0


def test_ratio_says_when_repeats_show_no_difference() -> None:
    same = stats.paired_ratio([[1.0], [1.2], [0.9]], [[1.05], [0.95], [1.15]])
    assert same.distinct is False
    apart = stats.paired_ratio([[2.0, 9.0, 2.0], [2.1, 2.1, 2.1]], [[1.0, 1.0, 1.0], [1.05, 1.05, 1.05]])
    assert apart.distinct is True
    assert apart.value == pytest.approx(2.1 / 1.025)  # medians over all six samples of each side
    assert (apart.low, apart.high) == (pytest.approx(2.0), pytest.approx(2.0))  # both pairs' medians have the ratio 2
    assert stats.paired_ratio([[2.0]], [[1.0]]).distinct is None
    assert stats.paired_ratio([[2.0], [2.0]], [[1.0]]).distinct is None


def test_a_drift_that_both_sides_share_cancels() -> None:
    drift = [1.0, 3.0, 2.0, 7.0]
    found = stats.paired_ratio([[1.5 * x] for x in drift], [[x] for x in drift])
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_interval_is_students() -> None:
    # Logs of the pairs' ratios are 0 and ln 4: mean ln 2, deviation ln 4 / sqrt 2, so half the width is 12.706 ln 2.
    found = stats.paired_ratio([[1.0], [4.0]], [[1.0], [1.0]])
    assert found.low == pytest.approx(2 ** (1 - 12.706))
    assert found.high == pytest.approx(2 ** (1 + 12.706))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (432, "432 B"), (54_144, "52.88 KiB"), (117.5 * 2**30, "117.5 GiB"), (5000 * 2**40, "5,000 TiB")],
)
def test_bytes_text(value: float, text: str) -> None:
    assert units.bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(6.77e-7, "677 ns"), (1.28e-6, "1.28 µs"), (0.0271, "27.1 ms"), (5.6, "5.60 s"), (2760, "46.0 min"), (0, "0 ns")],
)
def test_seconds_text(value: float, text: str) -> None:
    assert units.seconds_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (99.96, "100"), (1234.5, "1,234"), (0.01234, "0.0123"), (-2.5, "-2.50"), (1e-6, "1.0e-06")],
)
def test_significant(value: float, text: str) -> None:
    assert units.significant(value) == text


def test_rates_are_of_medians_and_ratios_point_to_faster() -> None:
    base = row(
        "mla", 512, cache_bytes=10, decode_seconds=((0.1, 0.1, 5.0),), prompt_seconds=(2.0,), first_token_seconds=(2.0,)
    )
    other = row(
        "mha",
        512,
        cache_bytes=178,
        decode_seconds=((0.2, 0.2, 0.2),),
        prompt_seconds=(1.0,),
        first_token_seconds=(1.0,),
        score=Score(4, 3, 100, 8.0),
    )
    assert base.decode_rate == 10.0
    assert base.prompt_rate == 256.0
    found = ratios(other, base)
    assert found["cache_bytes"].value == 17.8
    assert found["decode_rate"].value == 0.5
    assert found["prompt_rate"].value == 2.0
    assert found["first_token_seconds"].value == 0.5
    assert "recall_percent" not in found  # the base row has no score
    assert other.recall == 75.0


def test_a_row_that_did_not_run_keeps_its_cache_ratio() -> None:
    base = Row("mla", 512, 10, cache_bytes=10, decode_seconds=((0.1,),))
    refused = Row("mha", 512, 178, not_run="does not fit", needed_bytes=1000)
    assert {name: ratio.value for name, ratio in ratios(refused, base).items()} == {"cache_bytes": 17.8}
    table = record(base, refused).tables[0]
    assert table.base(refused) is base
    assert record(refused).tables[0].base(refused) is None
    both = record(Row("mla", 512, 10, not_run="does not fit"), refused).tables[0]
    assert ratios(refused, both.base(refused))["cache_bytes"].value == 17.8


def test_record_as_json_keeps_all_samples_and_names_its_schema(tmp_path: Path) -> None:
    rows = (row("mla", 512, cache_bytes=100, decode_seconds=((0.1,), (0.3,)), decode_warmup_seconds=(9.0,)),)
    write_record(record(*rows), tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["schema"], found["schema_version"]) == (results.SCHEMA, results.SCHEMA_VERSION)
    shown = found["tables"][0]["rows"][0]
    assert shown["decode_seconds"] == [[0.1], [0.3]]
    assert shown["decode_warmup_seconds"] == [9.0]
    assert shown["decode_rate"] == 5.0
    assert shown["ratio_to_mla"]["cache_bytes"]["value"] == 1.0
    assert found["tables"][0]["kind"] == "measured"


def test_every_field_of_the_record_is_explained_in_the_schema_document() -> None:
    text = (Path(__file__).parents[2] / "results" / "README.md").read_text()
    plain = to_json(record(row("mla", 512, decode_seconds=((0.1,),), score=Score(1, 1, 1, 1.0))))
    fields = set(plain) | set(plain["tables"][0]) | set(plain["tables"][0]["rows"][0])
    fields |= set(plain["tables"][0]["rows"][0]["score"])
    assert [name for name in sorted(fields) if f"`{name}`" not in text] == []
    assert f"version {results.SCHEMA_VERSION}." in text


def test_a_record_cannot_be_changed() -> None:
    made = Record("c", "d", {"load_average": [1.0]}, {}, None, {}, {"contexts": [512]}, ())
    assert made.settings == {"contexts": (512,)}
    for change in (
        lambda: made.settings.__setitem__("contexts", 1),
        lambda: made.host.update(cpu="x"),
        lambda: made.host.pop("load_average"),
        lambda: made.host["load_average"].append(2.0),
        lambda: setattr(made, "date", "x"),
    ):
        with pytest.raises((TypeError, AttributeError)):
            change()
    assert json.loads(json.dumps(to_json(made)))["host"] == {"load_average": [1.0]}


def test_a_record_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_record(record(), path)
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()
    with pytest.raises(InputError) as error:
        write_record(record(row("mla", 1)), path)
    assert str(error.value) == f"{path}: exists, expected a new name as records are not written over; choose another"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "report.md"
    write_text(target, "old")

    def interrupted() -> None:
        with replacing(target) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_writing_where_nothing_can_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        write_text(tmp_path / "absent" / "r.json", "{}")
    assert str(error.value) == (
        f"{tmp_path}/absent/r.json: cannot write there (No such file or directory); "
        "choose a folder that exists and is writable"
    )
    with pytest.raises(InputError) as error:
        write_text(tmp_path, "{}")
    assert str(error.value) == f"{tmp_path}: found a folder, expected a file name to write to; add one"


def test_model_file_is_named_by_content_not_by_place(tmp_path: Path) -> None:
    path = tmp_path / "a b.gguf"
    path.write_bytes(b"GGUF")
    assert model_file(path) == {
        "file": "a b.gguf",
        "file_bytes": 4,
        "sha256": "b83633aa785344791618f2fddf131b010ea04912a60430760b070bad293f65bd",
        "sha256_covers": "whole file",
    }


def test_what_is_no_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    for path in (fifo, link, Path("/dev/full"), Path("/dev/null")):
        for write in (require_writable, lambda place: write_text(place, "x")):
            with pytest.raises(InputError) as error:
                write(path)
            assert str(error.value) == (
                f"{path}: is not a regular file, expected a path to write a file to; choose another"
            )
    assert fifo.is_fifo() and link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [fifo, link]


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target, link, dangling = tmp_path / "deep" / "r.json", tmp_path / "link", tmp_path / "dangling"
    target.write_text("old")
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "deep" / "new.json")
    for path in (link, dangling):
        assert require_writable(path) == path.resolve()
        write_text(path, "new")
        assert path.is_symlink() and path.read_text() == "new"
    assert target.read_text() == "new"
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["new.json", "r.json"]
