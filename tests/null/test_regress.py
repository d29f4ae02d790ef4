"""`regress` without a device: its usage, exit codes, JSON and refusals, by full text."""

import json
import subprocess
from pathlib import Path

import pytest
from regress_records import Captured, bench_rows, fails, written

from harness.cli import main
from harness.metrics import read_side
from harness.regress_run import again_arguments
from vkbackend.errors import InputError


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
