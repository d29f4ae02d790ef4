"""What `regress` reads: records become named metrics, runs of one code merge, and what is no record is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from regress_records import Captured, bench_rows, fails, written

from harness.metrics import Exact, merge, parse, read_side
from vkbackend.errors import InputError


def test_bench_records_become_named_metrics() -> None:
    found = read_side(bench_rows(), "r.json")
    assert list(found.timed) == ["pp128", "tg32", "pp128 @ d1024", "tg32 @ d1024"]
    assert all(len(metric.seconds) == 10 and metric.rate for metric in found.timed.values())
    assert found.timed["pp128"].seconds[0] == pytest.approx(bench_rows()[0]["samples_ns"][0] / 128 / 1e9)
    assert found.exact["cache of tg32 @ d1024"] == Exact(1_056_000, "B")
    assert found.exact["launches of decode at pp128"] == Exact(70, "")
    assert (found.device, found.model, found.busy) == ("Imaginary iGPU", "m.gguf (abababababab)", 0.05)


def test_a_decode_repeat_is_its_median_token() -> None:
    rows = bench_rows(count=1)[1:2]
    rows[0]["samples_token_ns"] = [[10, 20, 1000]]
    assert read_side(rows, "r").timed["tg32"].seconds == (pytest.approx(20e-9),)


def test_llama_benchs_rows_are_read_by_the_same_names() -> None:
    row = {"gpu_info": "780M", "model_filename": "/models/glm.gguf", "model_type": "deepseek2 Q4", "model_size": 7,
           "n_prompt": 512, "n_gen": 0, "n_depth": 0, "n_ubatch": 512, "samples_ns": [1000, 2000]}  # fmt: skip
    lines = "\n".join(json.dumps(row | {"n_ubatch": n}) for n in (256, 512))  # -o jsonl
    found = read_side(parse(lines, "peer.jsonl"), "peer.jsonl")
    assert list(found.timed) == ["pp512, n_ubatch 256", "pp512, n_ubatch 512"]
    assert (found.model, found.exact, found.busy) == ("glm.gguf (deepseek2 Q4, 7 B)", {}, None)


def test_compares_record_as_committed() -> None:
    path = Path(__file__).parents[2] / "results" / "llvmpipe" / "compare-latentvk-tiny.json"
    record = json.loads(path.read_text())
    found = read_side(record, path.name)
    rows = record["tables"][0]["rows"]
    assert len(found.timed) == 3 * len(rows) and len(found.exact) == 2 * len(rows)
    assert found.exact["perplexity of mha at 8,192"].value == rows[-1]["perplexity"]
    assert found.exact["cache of mha at 8,192"] == Exact(62_914_560, "B")
    expected = [float(np.median(repeat)) for repeat in rows[0]["decode_seconds"]]
    assert list(found.timed["decode mla at 512"].seconds) == pytest.approx(expected)
    assert not found.timed["first token mla at 512"].rate


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ("{", "r: is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)), expected "
              "a record of compare or bench; check it"),
        ("[]", "r: found no such record, expected the JSON of compare, bench or llama-bench (-o json); choose such a "
               "file"),
        ('{"schema": "latentvk.shader-stats"}', "r: found 'latentvk.shader-stats', expected the JSON of compare, bench "
                                               "or llama-bench (-o json); choose such a file"),
        ('{"schema": "latentvk.compare", "schema_version": 99}', "r: latentvk.compare version 99, expected version 1; "
         "measure again with this program, or read it with the one that wrote it"),
        ('{"schema": "latentvk.compare", "schema_version": 1}', "r: a field is missing or no number (KeyError: "
         "'tables'), expected a whole record; measure again"),
        ('{"schema": "latentvk.compare", "schema_version": 1, "tables": []}', "r: holds nothing measured, expected a "
         "record of a run; measure with compare or bench"),
        ('[{"samples_ns": [0], "n_prompt": 1, "n_gen": 0, "gpu_info": "d"}]', "r: a field is missing or no number "
         "(ValueError: pp1: a time that is not above 0), expected a whole record; measure again"),
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused(record: str, error: str) -> None:
    with pytest.raises(InputError) as raised:
        read_side(parse(record, "r"), "r")
    assert str(raised.value) == error


def test_different_devices_and_models_are_refused_by_name(tmp_path: Path, capsys: Captured) -> None:
    one = written(tmp_path / "one.json", bench_rows())
    rows = bench_rows()
    other = written(tmp_path / "other.json", [row | {"gpu_info": "Radeon 780M"} for row in rows])
    line = (
        f"{one} is of device Imaginary iGPU, {other} of Radeon 780M, expected one device to compare; choose "
        "records of the same device"
    )
    fails(capsys, ["regress", one, other], 2, line)
    fails(capsys, ["regress", f"{one},{other}", one], 2, line.replace("to compare", "to merge"))
    file = {"file": "m.gguf", "sha256": "cd" * 32}
    other = written(tmp_path / "other.json", [row | {"model": file} for row in rows])
    line = (
        f"{one} is of model m.gguf (abababababab), {other} of m.gguf (cdcdcdcdcdcd), expected one model to "
        "compare; choose records of the same model"
    )
    fails(capsys, ["regress", one, other], 2, line)
    both = [rows[0], rows[1] | {"gpu_info": "Radeon 780M"}]
    line = f"{one}: holds devices Imaginary iGPU, Radeon 780M, expected one; compare them one by one"
    written(tmp_path / "one.json", both)
    fails(capsys, ["regress", one, one], 2, line)


def test_merging_keeps_runs_apart_and_refuses_what_cannot_vary() -> None:
    runs = [read_side(bench_rows(seed=i), f"r{i}") for i in range(3)]
    found = merge(runs, "all")
    assert [len(run) for run in found.timed["tg32"].runs] == [10, 10, 10]
    assert found.timed["tg32"].runs[1] == runs[1].timed["tg32"].seconds
    exact = runs[1].exact | {"launches of decode at tg32": Exact(71, "")}
    with pytest.raises(InputError) as raised:
        merge([runs[0], replace(runs[1], exact=exact)], "all")
    assert str(raised.value) == (
        "launches of decode at tg32: 70 in r0, 71 in r1, expected one figure as the same code gives it; do not merge "
        "them"
    )


def test_tables_of_a_sweep_are_told_apart() -> None:
    path = Path(__file__).parents[2] / "results" / "llvmpipe" / "compare-latentvk-tiny.json"
    record = json.loads(path.read_text())
    record["tables"] = [record["tables"][0] | {"label": label} for label in ("cache f16", "cache q8_0")]
    found = read_side(record, "sweep")
    assert {"decode cache f16 mla at 512", "decode cache q8_0 mla at 512"} <= set(found.timed)
