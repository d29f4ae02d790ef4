"""`regress` without a device: what records become, each verdict, what is refused, exit codes, by full text."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import judging, machine
from harness.cli import main
from harness.judging import Rules, judge, refusal
from harness.metrics import Exact, Side, Timed, merge, parse, read_side
from harness.regress_report import markdown, summary
from harness.regress_run import again_arguments
from vkbackend.errors import InputError

Captured = pytest.CaptureFixture[str]
RULES = Rules()
TESTS = ((128, 0, 0), (0, 32, 0), (128, 0, 1024), (0, 32, 1024))


def fails(capsys: Captured, argv: list[str], code: int, line: str) -> None:
    assert main(argv) == code
    assert capsys.readouterr().err == f"latentvk: error: {line}\n"


def bench_rows(scale: float = 1.0, seed: int = 0, scatter: float = 0.005, count: int = 10) -> list[dict[str, Any]]:
    """A record as `bench` writes it: the same machine, `scale` times as slow."""
    rng = np.random.default_rng(seed)
    rows = []
    for n_prompt, n_gen, depth in TESTS:
        tokens = n_prompt + n_gen
        seconds = 1e-3 * scale * rng.lognormal(0, scatter, count)
        row = {
            "schema": "latentvk.bench",
            "schema_version": 1,
            "gpu_info": "Imaginary iGPU",
            "model": {"file": "m.gguf", "sha256": "ab" * 32},
            "n_prompt": n_prompt,
            "n_gen": n_gen,
            "n_depth": depth,
            "samples_ns": [round(1e9 * tokens * x) for x in seconds],
            "cache_bytes": 1000 * (depth + tokens),
            "launches": {"decode": 70, "chunk": 65},
            "device_bytes": 5_000_000,
            "device_allocations": 81,
            "software": {"commit": "abc"},
            "state": {"before": {"load_average": [0.1, 0.2, 0.3]}, "others_busy": 0.05},
        }
        if n_gen:
            row["samples_token_ns"] = [[round(1e9 * x)] * n_gen for x in seconds]
        rows.append(row)
    return rows


def written(path: Path, record: Any) -> str:
    path.write_text(json.dumps(record))
    return str(path)


def side(timed: dict[str, Sequence[Sequence[float]]], **fields: Any) -> Side:
    metrics = {name: Timed(tuple(tuple(run) for run in runs), True) for name, runs in timed.items()}
    return replace(Side("r", "d", "m", metrics, {}), **fields)


def near(value: float, scatter: float = 0.002, count: int = 10, seed: int = 1) -> list[float]:
    return (value * np.random.default_rng(seed).lognormal(0, scatter, count)).tolist()


# ---- from files ------------------------------------------------------------------------------------------------------


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


# ---- verdicts --------------------------------------------------------------------------------------------------------


def verdicts(base: Side, new: Side, **options: Any) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in judge(base, new, RULES, **options)}


def test_slower_faster_and_no_difference() -> None:
    base = side({"a": [near(1.0)], "b": [near(1.0)], "c": [near(1.0)]})
    new = side({"a": [near(1.05, seed=2)], "b": [near(0.95, seed=2)], "c": [near(1.001, seed=2)]})
    assert verdicts(base, new) == {"a": "slower", "b": "faster", "c": "no difference"}
    finding = judge(base, new, RULES)[0]
    assert finding.ratio == pytest.approx(1.05, rel=0.005)
    assert finding.low is not None and finding.high is not None and finding.low < finding.ratio < finding.high
    assert finding.p == pytest.approx(3 * 2 / 184756)  # complete separation of ten and ten, times three metrics


def test_a_certain_but_small_change_is_none() -> None:
    base, new = side({"a": [near(1.0, 1e-4)]}), side({"a": [near(1.015, 1e-4)]})
    found = judge(base, new, RULES)[0]
    assert found.verdict == "no difference" and found.p is not None and found.p < 1e-4
    assert judge(base, new, replace(RULES, effect=0.01))[0].verdict == "slower"


def test_few_repeats_say_that_nothing_can_be_judged() -> None:
    base, new = side({"a": [[1.0] * 3]}), side({"a": [[9.0] * 3]})
    found = judge(base, new, RULES)[0]
    assert (found.verdict, found.why) == ("too few repeats", "has 3, expected 4 to tell 1 metric apart")
    assert str(refusal((base, new), [found], RULES)) == (
        "no time can be judged: a has 3, expected 4 to tell 1 metric apart; measure more repeats (-r)"
    )
    assert refusal((base, new), [replace(found, verdict="faster")], RULES) is None
    assert refusal((base, new), [], RULES) is None
    # Metrics of single samples do not keep the others from being judged.
    singles = {f"s{i}": [[1.0]] for i in range(30)}
    base, new = side({"a": [near(1.0)], **singles}), side({"a": [near(1.2, seed=2)], **singles})
    assert verdicts(base, new)["a"] == "slower"
    assert verdicts(base, new)["s0"] == "too few repeats"


def test_scatter_among_the_repeats_of_a_single_run_is_noise() -> None:
    base, new = side({"a": [near(1.0, 0.03)]}), side({"a": [near(1.1, 0.03, seed=2)]})
    found = judge(base, new, RULES)[0]
    assert found.verdict == "too noisy" and found.noise is not None and 0.1 < found.noise < 0.3
    assert str(refusal((base, new), [found], RULES)) == (
        f"the machine is too noisy to judge times: a differs by {found.noise:.1%} where the code is equal, expected at "
        "most 5%; close other programs, or measure more repeats or turns"
    )


def test_no_difference_is_said_only_where_a_change_is_ruled_out() -> None:
    wide = [1.0, 1.2] * 6  # all pairs differ by a fifth, one way or the other
    base, new = side({"a": [wide]}), side({"a": [[*wide[1:], wide[0]]]})
    found = judge(base, new, RULES, paired=True)[0]
    assert found.verdict == "too noisy" and found.p == 1.0
    assert found.why == f"may have changed by {found.low - 1:+.1%} to {found.high - 1:+.1%}"  # type: ignore[operator]
    narrow = side({"a": [near(1.0, 0.01, 30)]}), side({"a": [near(1.0, 0.01, 30, seed=2)]})
    assert verdicts(*narrow, paired=True) == {"a": "no difference"}


def test_runs_are_the_unit_where_there_are_enough_of_them() -> None:
    # Ten repeats each agree within their run; six runs of one code lie 4% apart. No run's own scatter tells that.
    shifts = [1.0, 1.04, 0.98, 1.02, 0.99, 1.03]
    base = side({"a": [near(shift, 1e-3, seed=i) for i, shift in enumerate(shifts)]})
    new = side({"a": [near(1.01 * shift, 1e-3, seed=9 + i) for i, shift in enumerate(reversed(shifts))]})
    assert verdicts(base, new) == {"a": "no difference"}
    slower = side({"a": [near(1.1 * shift, 1e-3, seed=9 + i) for i, shift in enumerate(shifts)]})
    assert verdicts(base, slower) == {"a": "slower"}


def test_the_runs_of_one_side_are_its_noise_where_they_are_few() -> None:
    base = side({"a": [near(1.0, 1e-3), near(1.03, 1e-3)]})
    assert verdicts(base, side({"a": [near(1.02, 1e-3), near(1.021, 1e-3)]})) == {"a": "no difference"}
    assert verdicts(base, side({"a": [near(1.08, 1e-3), near(1.081, 1e-3)]})) == {"a": "slower"}


def test_a_drift_that_pairs_share_hides_nothing() -> None:
    drift = np.random.default_rng(4).lognormal(0, 0.3, 20)
    base = side({"a": [drift.tolist()]})
    new = side({"a": [(drift * near(1.05, 0.003, 20)).tolist()]})
    assert verdicts(base, new, paired=True) == {"a": "slower"}
    assert verdicts(base, new) == {"a": "too noisy"}
    assert verdicts(base, new, paired=True, noise={"a": 0.06}) == {"a": "too noisy"}  # an A/A run that differed by 6%
    assert verdicts(base, new, paired=True, noise={"a": 0.04}) == {"a": "slower"}


def test_other_programs_at_work_are_a_reason_to_refuse(tmp_path: Path, capsys: Captured) -> None:
    rows = bench_rows()
    base = written(tmp_path / "base.json", rows)
    for row in rows:
        row["state"] = {"others_busy": 1.5}
    new = written(tmp_path / "new.json", rows)
    line = (f"{new}: other programs kept 1.50 processors busy while it was measured, expected at most 0.25; measure "
            "again on a quiet machine, or allow more with --busy")  # fmt: skip
    fails(capsys, ["regress", base, new], 3, line)
    assert main(["regress", base, new, "--busy", "2"]) == 0
    assert main(["regress", base, new, "--exact-only"]) == 0


def test_exact_figures_are_judged_exactly(tmp_path: Path, capsys: Captured) -> None:
    base = written(tmp_path / "base.json", bench_rows())
    rows = bench_rows(seed=1)
    rows[1]["launches"] = {"decode": 71, "chunk": 64}
    rows[3]["cache_bytes"] += 32
    new = written(tmp_path / "new.json", rows)
    assert main(["regress", base, new, "--format", "md"]) == 1
    out = capsys.readouterr().out
    assert "| launches of decode at tg32 | 70 | 71 | +1 |  |  | more |" in out
    assert "| launches of chunk at tg32 | 65 | 64 | -1 |  |  | less |" in out
    assert "| cache of tg32 @ d1024 | 1.007 MiB | 1.007 MiB | +0.0% |  |  | more |" in out
    assert out.startswith("**regression: 2 more, 1 less, 4 no difference, 17 equal** (m.gguf (abababababab) on ")
    assert "- Equal in both: cache (3), device memory (4), allocations (4), launches (6).\n" in out


def test_perplexity_has_slack_for_roundings_and_none_for_nonsense() -> None:
    def judged(value: float) -> tuple[str, str]:
        sides = [side({}, exact={"perplexity of mla at 512": Exact(x, "perplexity", 0.005)}) for x in (46.0, value)]
        findings = judge(*sides, RULES)
        return findings[0].verdict, markdown([(*sides, findings)], RULES)

    assert judged(46.2)[0] == judged(45.8)[0] == "equal"
    verdict, text = judged(50.0)
    assert verdict == "more" and text.startswith("**regression: 1 more**")
    assert "| perplexity of mla at 512 | 46.0000 | 50.0000 | +8.7% |  |  | more |" in text
    assert judged(40.0)[0] == "less"


def test_tables_of_a_sweep_are_told_apart() -> None:
    path = Path(__file__).parents[2] / "results" / "llvmpipe" / "compare-latentvk-tiny.json"
    record = json.loads(path.read_text())
    record["tables"] = [record["tables"][0] | {"label": label} for label in ("cache f16", "cache q8_0")]
    found = read_side(record, "sweep")
    assert {"decode cache f16 mla at 512", "decode cache q8_0 mla at 512"} <= set(found.timed)


def test_what_no_longer_runs_is_a_regression() -> None:
    base = side({"decode mha at 512": [near(1.0)], "b": [near(1.0)]})
    new = side({"c": [near(1.0)]}, not_run={"mha at 512": "does not fit"})
    findings = judge(base, new, RULES)
    assert {f.name: f.verdict for f in findings} == {"decode mha at 512": "gone", "b": "not in NEW", "c": "not in BASE"}
    assert summary(findings) == "regression: 1 gone, 1 not in NEW, 1 not in BASE"
    assert "- Gone: decode mha at 512 does not fit." in markdown([(base, new, findings)], RULES)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_exit_codes_and_json(tmp_path: Path, capsys: Captured) -> None:
    base = written(tmp_path / "base.json", bench_rows())
    for scale, code in ((1.0, 0), (1.05, 1), (0.95, 0)):
        new = written(tmp_path / "new.json", bench_rows(scale, seed=7))
        assert main(["regress", base, new, "--json", "-"]) == code
        found = json.loads(capsys.readouterr().out)["comparisons"][0]
        assert found["regressions"] == (["pp128", "tg32", "pp128 @ d1024", "tg32 @ d1024"] if code else [])
        assert found["new"]["seconds"]["pp128"] == [
            list(read_side(bench_rows(scale, seed=7), "x").timed["pp128"].seconds)
        ]
    assert main(["regress", base, new]) == 0
    out = capsys.readouterr().out
    assert "no regression: 4 faster, 20 equal\n" in out
    assert main(["regress", base, base, "--effect", "0.5"]) == 0


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["a"], "found neither NEW nor --run, expected one of them; name another record, or measure now"),
        (["a", "b", "--run"], "found NEW and --run, expected one of them; name another record, or measure now"),
        (["a", "b", "--bench=-r 1"], "--bench is given without --run, expected both to measure a revision; add --run"),
        (
            ["a", "b", "--busy", "x"],
            "argument --busy: found 'x', expected a number of processors such as 0.25; see `latentvk regress --help`",
        ),
    ],
)
def test_wrong_usage(argv: list[str], line: str, capsys: Captured) -> None:
    fails(capsys, ["regress", *argv], 2, line)


def test_files_that_are_not_there(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    expected = "expected a record's file, REV:path or a git revision; check it"
    fails(capsys, ["regress", "a.json", "b.json"], 2, f"a.json: cannot be read (No such file or directory), {expected}")
    fails(capsys, ["regress", "bytes", "b.json"], 2, f"bytes: cannot be read (no UTF-8 text), {expected}")


def test_committed_records_by_revision(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "notes.json").write_text("{}")
    for scale, tag in ((1.0, "v1"), (1.08, "v2")):
        written(tmp_path / "results" / "bench.json", bench_rows(scale))
        git("add", ".")
        git("commit", "-q", "-m", tag)
        git("tag", tag)
    assert main(["regress", "v1", "v2"]) == 1
    assert main(["regress", "v1:results/bench.json", "v2:results/bench.json"]) == 1
    assert main(["regress", "v1", "results/bench.json"]) == 1
    assert main(["regress", "v2", "results/bench.json"]) == 0
    capsys.readouterr()
    line = "v3:results/bench.json: git says 'fatal: invalid object name 'v3'.', expected a revision and a path in it, "
    fails(capsys, ["regress", "v3:results/bench.json", "v1"], 2, line + "such as HEAD~1:results/r.json; check both")
    git("rm", "-q", "-r", "results")
    git("commit", "-q", "-m", "v3")
    line = "v1 and HEAD share no record below results/, expected at least one; name files, or REV:path"
    fails(capsys, ["regress", "v1", "HEAD"], 2, line)


def test_what_a_record_says_is_measured_again() -> None:
    rows = bench_rows()
    settings = {"n_prompt": [128], "n_gen": [32], "pg": [[16, 4]], "n_depth": [0, 1024], "repetitions": 10,
                "path": "mla", "cache": "f16", "chunk": None}  # fmt: skip
    rows[0]["settings"] = settings
    line = "bench m.gguf -p 128 -n 32 -d 0,1024 -r 10 --path mla --cache f16 -pg 16,4"
    assert " ".join(again_arguments(rows, "r", "m.gguf", [])) == line
    settings = {"contexts": [512], "paths": ["mla", "mha"], "decode": 12, "repeats": 5, "questions": 32, "seed": 1,
                "chunk": 64, "cache": "f16"}  # fmt: skip
    record = {"schema": "latentvk.compare", "settings": settings}
    line = "compare m.gguf --device 0 --contexts 512 --paths mla,mha -n 12 -r 5 --questions 32 --seed 1"
    line += " --cache f16 --chunk 64"
    assert " ".join(again_arguments(record, "r", "m.gguf", ["--device", "0"])) == line
    with pytest.raises(InputError) as raised:
        again_arguments([{"samples_ns": [1]}], "r", "m.gguf", [])
    assert str(raised.value) == (
        "r: says no settings, expected a record of this program's compare or bench; measure BASE with them"
    )
    with pytest.raises(InputError) as raised:
        again_arguments(record | {"model": {"file": "a.gguf", "others": [{"file": "b.gguf"}]}}, "r", "m.gguf", [])
    assert str(raised.value) == (
        "r: compares several files, expected a record of one to measure again; measure NEW with compare --weights and "
        "name both"
    )
    record["settings"]["override a.b"] = 2  # type: ignore[index]
    with pytest.raises(InputError) as raised:
        again_arguments(record, "r", "m.gguf", [])
    assert str(raised.value) == (
        "r: was measured with --override-kv a.b, expected a file run as it is; measure NEW yourself and name both"
    )


# ---- the machine's state ---------------------------------------------------------------------------------------------


def test_state_reads_sysfs(tmp_path: Path) -> None:
    files = {
        "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "3200000\n",
        "devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1400000\n",
        "class/hwmon/hwmon3/name": "k10temp\n",
        "class/hwmon/hwmon3/temp1_input": "61500\n",
        "class/hwmon/hwmon3/temp1_label": "Tctl\n",
        "class/hwmon/hwmon3/temp2_input": "asleep\n",
        "class/power_supply/BAT0/type": "Battery\n",
        "class/power_supply/BAT0/status": "Discharging\n",
        "bus/pci/devices/0000:c1:00.0/hwmon/hwmon5/freq1_input": "2700000000\n",
        "firmware/acpi/platform_profile": "balanced\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = machine.state("0000:c1:00.0", tmp_path)
    assert len(found.pop("load_average")) == 3
    assert found == {
        "cpu_mhz": [3200.0, 1400.0],
        "cpu_governor": "powersave",
        "gpu_mhz": 2700.0,
        "gpu_memory_mhz": None,
        "temperature_c": {"k10temp Tctl": 61.5},
        "power_source": "battery",
        "platform_profile": "balanced",
    }
    adapter = tmp_path / "class/power_supply/AC"
    adapter.mkdir()
    (adapter / "type").write_text("Mains\n")
    (adapter / "online").write_text("1\n")
    assert machine.state(None, tmp_path)["power_source"] == "mains"


def test_watch_counts_other_programs_and_not_this_one() -> None:
    watch = machine.Watch(None)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    alone = watch.taken()["others_busy"]
    busy = "import time\nend = time.monotonic() + 0.5\nwhile time.monotonic() < end: pass"
    watch = machine.Watch(None)
    with subprocess.Popen([sys.executable, "-c", busy]):
        time.sleep(0.4)
        beside = watch.taken()["others_busy"]
    # What else runs is unknown; a child that was not waited for counts as another program, at up to one processor.
    assert 0 <= alone <= (os.cpu_count() or 1)
    assert beside > 0.2


def test_state_of_a_machine_that_shows_nothing(tmp_path: Path) -> None:
    found = machine.state("0000:c1:00.0", tmp_path)
    assert {key: value for key, value in found.items() if value} == {"load_average": found["load_average"]}


def test_the_level_is_that_of_all_metrics_together() -> None:
    assert judging.LEVEL == 0.05
    # 2/4096 for 12 pairs, 2/184756 for 10 and 10: what the defaults of `bench` and --turns rest on.
    assert judging.least_p(12, 12, True) * 100 < judging.LEVEL > judging.least_p(10, 10, False) * 100
