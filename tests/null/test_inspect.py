"""``latentvk inspect``: the published figures, from a preset and from a file, in JSON and in the table."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.synth import write_synthetic
from model.gguf_file import GGUFFile
from tests.null.random_model import BASE, CONFIGS

GIB = 2**30


def inspect_json(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    assert cli.main(["inspect", *args, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    value: dict[str, Any] = json.loads(out)
    return value


def failure(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(["inspect", *args]) == 2
    return capsys.readouterr().err


def test_glm_preset(capsys: pytest.CaptureFixture[str]) -> None:
    facts = inspect_json(capsys, "--preset", "glm-4.7-flash", "--context", "200192", "--memory", "96GiB")
    rows = {(row["path"], row["type"]): row for row in facts["cache"]}
    assert [rows[p, "f16"]["bytes_per_token"] for p in ("mla", "mla-v", "mha")] == [54_144, 102_272, 962_560]
    assert rows["mla", "q8_0"]["bytes_per_token"] == 28_764
    assert [f"{rows[p, 'f16']['bytes'] / 2**20:.2f}" for p in ("mla", "mla-v")] == ["10337.06", "19525.56"]
    assert facts["parameters"]["active"] / 1e9 == pytest.approx(3.58, abs=5e-3)
    assert facts["weights"]["estimated_from_mix"] == "q4_k_m" and facts["supported"] and facts["unsupported"] is None
    left = 96 * GIB - facts["weights"]["bytes"]
    assert all(row["max_context"] == left // row["bytes_per_token"] for row in facts["cache"])
    assert rows["mha", "f16"]["layout"] == "per_head" and rows["mha", "f16"]["elements_per_token_layer"] == 10_240
    by_type = facts["weights"]["by_type"].values()
    assert sum(row["bytes"] for row in by_type) == facts["weights"]["bytes"]
    assert sum(row["active_bytes"] for row in by_type) == facts["weights"]["active_bytes"]
    assert sum(row["parameters"] for row in by_type) == facts["parameters"]["total"]


def test_table_holds_the_figures_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["inspect", "--preset", "glm-4.7-flash", "--context", "200192", "--memory", "96GiB"]) == 0
    out = capsys.readouterr().out
    for figure in ("54,144", "102,272", "962,560", "28,764", "17.78", "10,337.06", "19,525.56", "3.58 G", "q4_k_m"):
        assert re.search(rf"(?<![\d,.]){re.escape(figure)}(?![\d,.]*\d)", out), figure
    assert "estimated" in out
    assert "\u2026" not in out  # nothing cut off
    assert max(map(len, out.splitlines())) <= 80


def test_context_defaults_to_the_trained_one(capsys: pytest.CaptureFixture[str]) -> None:
    facts = inspect_json(capsys, "--preset", "glm-4.7-flash")
    assert facts["context"] == 202_752 and facts["memory"] is None
    assert facts["cache"][0]["max_context"] is None


def test_no_memory_left(capsys: pytest.CaptureFixture[str]) -> None:
    facts = inspect_json(capsys, "--preset", "deepseek-v3", "--memory", "96GiB")
    assert {row["max_context"] for row in facts["cache"]} == {0}
    assert facts["supported"] and facts["unsupported"] is None


@pytest.mark.parametrize("name", CONFIGS)
def test_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = tmp_path / "m.gguf"
    write_synthetic(CONFIGS[name], path, "f16")
    facts = inspect_json(capsys, str(path))
    tensors = GGUFFile.open(path).tensors.values()
    assert facts["source"] == str(path) and facts["weights"]["estimated_from_mix"] is None
    assert facts["weights"]["bytes"] == sum(t.nbytes for t in tensors)
    assert facts["weights"]["by_type"]["F16"]["tensors"] == sum(t.type.name == "F16" for t in tensors)
    # None of these odd widths is a whole number of vectors of four; test_config has shapes that can run.
    assert facts["supported"] is False
    assert cli.main(["inspect", str(path)]) == 0
    assert ("not runnable yet: " in capsys.readouterr().out) is not facts["supported"]


def test_json_file_is_written_beside_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "facts.json"
    assert cli.main(["inspect", "--preset", "glm-4.7-flash", "--json", str(target)]) == 0
    assert "54,144" in capsys.readouterr().out
    assert json.loads(target.read_text())["config"]["kv_lora"] == 512


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, "m.gguf", "--preset", "glm-4.7-flash") == (
        "latentvk: error: MODEL 'm.gguf' and --preset 'glm-4.7-flash' are both given, expected one; drop one\n"
    )
    assert failure(capsys, "m.gguf", "--mix", "q8_0") == (
        "latentvk: error: --mix is given without --preset, expected both: a file has its own types; leave --mix out\n"
    )
    path = tmp_path / "m.gguf"
    write_synthetic(replace(BASE, n_layer=1), path)
    path.write_bytes(path.read_bytes()[:-300])
    size = path.stat().st_size
    err = failure(capsys, str(path))
    assert err.startswith(f"latentvk: error: {path}: truncated: tensor blk.0.ffn_down.weight ends at byte ")
    assert err.endswith(f", the file has {size}; download or copy it again\n")


def test_how_a_file_stores_the_model_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forms = {"split_kv_b": False, "fused_gate_up": True, "tied_output": True, "n_padding": 3}
    write_synthetic(replace(BASE, **forms), tmp_path / "m.gguf", "f32")
    assert cli.main(["inspect", str(tmp_path / "m.gguf")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "stored joint attn_kv_b, fused ffn_gate_up_exps, output tied to the embedding, 3 rows without a token" in shown
    )
    dense = replace(BASE, n_dense=3, n_expert=0, n_expert_used=0, n_expert_shared=0, n_ff_exp=0, expert_bias=False)
    write_synthetic(dense, tmp_path / "dense.gguf", "f32")
    assert cli.main(["inspect", str(tmp_path / "dense.gguf")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "experts none routing none" in shown and "stored" not in shown
