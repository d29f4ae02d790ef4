"""`diagnose MODEL` on a device: what is counted, what is measured, in how many sessions at once."""

import json
from pathlib import Path

import pytest
from small_models import SmallModel
from test_commands import in_empty_folder  # noqa: F401

from harness.cli import main
from harness.options import embedded_model_path
from model.config import ModelConfig
from model.gguf_file import GGUFFile
from model.layout import PATHS, cache_bytes_per_token

Captured = pytest.CaptureFixture[str]
SHAPE = "n_embd=64 q_lora=32 kv_lora=32 qk_nope=16 qk_rope=16 v_head=16 n_head=2 n_ff=64 n_expert=4 n_ff_exp=32"
QUICK = ["--contexts", "32,64,160", "-n", "4", "-r", "6"]


@pytest.mark.alone
def test_our_own_paths_are_measured_and_explained(embedded: SmallModel, capsys: Captured) -> None:
    assert main(["diagnose", *QUICK, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    config = ModelConfig.from_gguf(GGUFFile.open(embedded_model_path()))
    assert (found["schema"], found["schema_version"]) == ("latentvk.own-diagnosis", 1)
    assert [line["path"] for line in found["lines"]] == ["mla", "mha"]
    assert found["launch_cost"]["launch"] > 0
    for line in found["lines"]:
        per_token = cache_bytes_per_token(config, PATHS[line["path"]].layout)
        assert line["cache_bytes_per_token_formula"] == per_token
        assert [row["cache_bytes"] for row in line["rows"]] == [per_token * n for n in (32, 64, 160)]
        assert all(len(row["decode_seconds"]) == 6 for row in line["rows"])
        assert all(sum(row["profile"].values()) == pytest.approx(1, abs=0.3) for row in line["rows"])
        assert line["launches"] == embedded.session(line["path"], 8).launch_counts()["decode"] > 9 * config.n_layer
        assert line["line"]["parts"]["weights"] == pytest.approx(
            line["weight_bytes_per_token"] / found["peaks"]["bandwidth"]
        )
    assert found["quantisations"] == []


def test_the_printed_diagnosis_has_a_verdict_for_each_path(capsys: Captured) -> None:
    assert main(["diagnose", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "Verdict, mla: " in out and "Verdict, mha: " in out
    assert "Peaks, measured: " in out


def test_two_quantisations_of_a_model(capsys: Captured, tmp_path: Path) -> None:
    for mix in ("f32", "q8_0"):
        argv = ["synth", "--layers", "2", "--vocab", "300", "--mix", mix, "-o", f"{mix}.gguf", "--shape"]
        assert main([*argv, *SHAPE.split()]) == 0
    capsys.readouterr()
    assert main(["diagnose", "f32.gguf", "--weights", "q8_0.gguf", "--paths", "mla", *QUICK, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["file"] for line in found["lines"]] == ["f32.gguf", "q8_0.gguf"]
    assert [(effect["larger"], effect["smaller"]) for effect in found["quantisations"]] == [
        ("f32.gguf", "q8_0.gguf")
    ] * 3
    large, small = (line["weight_bytes_per_token"] for line in found["lines"])
    assert found["quantisations"][0]["effect"]["bytes_ratio"] == pytest.approx(large / small)


def test_another_models_file_is_refused(capsys: Captured) -> None:
    assert main(["synth", "--layers", "2", "--vocab", "300", "-o", "other.gguf", "--shape", *SHAPE.split()]) == 0
    capsys.readouterr()
    model = str(embedded_model_path())
    assert main(["diagnose", model, "--weights", "other.gguf"]) == 2
    config = ModelConfig.from_gguf(GGUFFile.open(embedded_model_path()))
    assert config.n_layer != 2
    line = f"other.gguf: n_layer 2, expected {config.n_layer} as in {model}; give files of one model"
    assert capsys.readouterr().err == f"latentvk: error: {line}\n"


def test_compare_holds_cache_types_against_f16(capsys: Captured) -> None:
    argv = ["compare", "--cache", "f32,f16", "--contexts", "256", "--paths", "mla,mha", "-n", "4", "-r", "2"]
    assert main([*argv, str(embedded_model_path()), "--json", "-"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert [table["label"] for table in tables] == ["cache f16", "cache f32"]
    assert [row["divergence"] for row in tables[0]["rows"]] == [None, None]
    for row in tables[1]["rows"]:
        assert row["divergence_from"] == "cache f16"
        assert 0 < row["divergence"] < 1e-3
        assert row["cache_bytes"] == 2 * tables[0]["rows"][0 if row["path"] == "mla" else 1]["cache_bytes"]


def test_compare_puts_quantisations_side_by_side(capsys: Captured) -> None:
    for mix in ("f32", "q8_0"):
        argv = ["synth", "--layers", "2", "--vocab", "300", "--mix", mix, "-o", f"{mix}.gguf", "--shape"]
        assert main([*argv, *SHAPE.split()]) == 0
    capsys.readouterr()
    argv = ["--contexts", "32,64", "--paths", "mla", "-n", "4", "-r", "3", "-o", "out"]
    assert main(["compare", "--weights", "f32.gguf", "q8_0.gguf", *argv]) == 0
    out = capsys.readouterr().out
    assert "Side by side" in out and "mla at 32: q8_0.gguf reads" in out
    found = json.loads(next(Path("out").glob("*.json")).read_text())
    assert [table["file"] for table in found["tables"]] == ["f32.gguf", "q8_0.gguf"]
    assert [other["file"] for other in found["model"]["others"]] == ["q8_0.gguf"]
    assert all(row["divergence"] > 0 for row in found["tables"][1]["rows"])
