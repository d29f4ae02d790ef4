"""`diagnose --measurements` as a user meets it: the published report, the JSON, what is refused and how."""

import json
from pathlib import Path

import pytest

from harness import diagnose, options
from harness.cli import main

ROOT = Path(__file__).parents[2]
Captured = pytest.CaptureFixture[str]
REPORT = str(ROOT / "results" / "reports" / "780m-ollama-mha.csv")
PRESET = ["--preset", "glm-4.7-flash"]


def run(capsys: Captured, *argv: str) -> str:
    assert main(["diagnose", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def words(text: str) -> str:
    """The text without its line breaks and rules."""
    return " ".join(text.split())


def table(text: str, title: str) -> list[list[str]]:
    """The rows of the table under that title, split at two spaces or more."""
    lines = text.split(title)[1].splitlines()
    rule = next(index for index, line in enumerate(lines) if line.strip().startswith("───"))
    rows = []
    for line in lines[rule + 1 :]:
        if "  " not in line.strip():
            break
        rows.append([cell.strip() for cell in line.strip().split("  ") if cell.strip()])
    return rows


def test_the_example_says_mha_fallback(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    out = run(capsys, *diagnose.EXAMPLE.split()[2:])
    text = words(out)
    assert "Verdict: MHA fallback (98%; f16 97%)" in text
    assert "0.963 MB by the formula; MLA needs 0.0541 MB." in text
    assert "It ran out of memory at 131,072: this cache is 117.5 GiB there" in text
    assert "at 65,536: the weights are not the bottleneck." in text
    predicted = table(out, "Predicted, nothing run")
    assert [row[2] for row in predicted] == ["≤ 33", "≤ 26", "≤ 20", "≤ 14", "≤ 8.6"]
    assert [row[-1] for row in predicted] == ["yes"] * 4 + ["out of memory"]
    measured = table(out, "Measured (CSV)")
    assert [row[1] for row in measured] == ["7.3 ± 0.05", "2.1 ± 0.05", "1.1 ± 0.05", "0.6 ± 0.05", "out of memory"]


def test_the_readme_shows_what_is_printed(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    out = "\n".join(line.rstrip() for line in run(capsys, *diagnose.EXAMPLE.split()[2:]).splitlines())
    assert f"$ {diagnose.EXAMPLE}\n{out}\n```" in (ROOT / "README.md").read_text()


def test_without_the_row_that_did_not_fit_it_is_foretold(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("4096,7.3\n16384,2.1\n32768,1.1\n65536,0.6\n")
    argv = ["--measurements", str(path), *PRESET, "--bandwidth", "80GB/s", "--memory", "96GiB"]
    text = words(run(capsys, *argv))
    assert "Verdict: MHA fallback" in text
    assert "It will run out of memory at 131,072: this cache is 117.5 GiB there" in text


def test_json_keeps_measured_and_predicted_apart(capsys: Captured) -> None:
    argv = ["--measurements", REPORT, *PRESET, "--bandwidth", "80GB/s", "--memory", "96GiB", "--json", "-"]
    found = json.loads(run(capsys, *argv))
    assert (found["schema"], found["schema_version"]) == ("latentvk.diagnosis", 1)
    assert found["verdict"]["kind"] == "mha"
    assert [point["rate"] for point in found["measured"]["points"]] == [7.3, 2.1, 1.1, 0.6]
    assert found["measured"]["out_of_memory"] == [131072]
    best = max(found["inferred"]["likely"], key=lambda each: each["probability"])
    assert best["candidate"]["layout"] == "per_head"
    assert best["bytes_per_token"]["value"] == pytest.approx(960_000, rel=0.05)
    total = found["inferred"]["none"] + sum(each["probability"] for each in found["inferred"]["likely"])
    assert total == pytest.approx(1)
    assert {"rate", "points"} & set(found["predicted"]) == set()
    assert found["predicted"]["rows"][-1] == {
        "context": 131072,
        "cache_bytes_latent": 54_144 * 131072,
        "rate_latent": pytest.approx(80e9 / (found["weights"]["active_bytes"] + 54_144 * 131072)),
        "cache_bytes_best": 962_560 * 131072,
        "fits": False,
    }


def test_the_embedded_file_may_be_the_model(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("512,200\n2048,130.5\n8192,55.2\n")
    model = str(options.embedded_model_path())
    for argv in (["--model", model], [model]):
        out = run(capsys, "--measurements", str(path), *argv, "--bandwidth", "3.3GB/s")
        assert out.startswith("latentvk-tiny (")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--measurements", REPORT],
            "--measurements is given without a model, expected the one that ran; add --model GGUF or --preset NAME",
        ),
        (
            ["a.gguf", "--model", "b.gguf", "--measurements", REPORT],
            "MODEL 'a.gguf' and --model 'b.gguf' are both given, expected one; drop one",
        ),
        (
            ["a.gguf", "--measurements", REPORT, *PRESET],
            "MODEL 'a.gguf' and --preset 'glm-4.7-flash' are both given, expected one; drop one",
        ),
        (
            ["--measurements", REPORT, *PRESET, "--bandwidth", "fast"],
            "argument --bandwidth: found 'fast', expected a bandwidth such as 80GB/s; see `latentvk diagnose --help`",
        ),
        (
            ["--measurements", REPORT, *PRESET, "--bandwidth", "0"],
            "argument --bandwidth: found '0', expected a bandwidth such as 80GB/s; see `latentvk diagnose --help`",
        ),
    ],
)
def test_what_is_refused(argv: list[str], line: str, capsys: Captured) -> None:
    assert main(["diagnose", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"latentvk: error: {line}\n")


@pytest.mark.parametrize(
    ("text", "rate"), [("80GB/s", 80e9), ("80", 80e9), ("236.5 gb/s", 236.5e9), ("1TB/s", 1e12), ("2GiB/s", 2**31)]
)
def test_bandwidths(text: str, rate: float) -> None:
    assert options.bandwidth(text) == rate
