"""`--override-kv`: read as llama.cpp reads it, refused by full text, told and taken by every command with a MODEL."""

import json
from pathlib import Path

import pytest

from harness import cli
from harness.overrides import overrides, spelt
from harness.synth import write_synthetic
from tests.null.random_model import BASE

Captured = pytest.CaptureFixture[str]
GATING = "deepseek2.expert_gating_func"


def test_every_type() -> None:
    text = "a.b=int:-3,c=float:2.5,d=bool:false,e=str:x=y, z,f=int:1"
    found = {"a.b": -3, "c": 2.5, "d": False, "e": "x=y, z", "f": 1}
    assert overrides(text) == found
    assert [type(value) for value in overrides(text).values()] == [int, float, bool, str, int]
    assert overrides(spelt(found)) == found
    assert overrides("k=str:") == {"k": ""}


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("gating", "gating", "KEY=TYPE:VALUE with a type of int, float, bool, str"),
        ("gating=2", "gating=2", "KEY=TYPE:VALUE with a type of int, float, bool, str"),
        ("a=uint:2", "a=uint:2", "KEY=TYPE:VALUE with a type of int, float, bool, str"),
        ("=int:2", "=int:2", "KEY=TYPE:VALUE with a type of int, float, bool, str"),
        ("a=int:2,b=int:two", "b=int:two", "a whole number after 'int:'"),
        ("a=int:2.0", "a=int:2.0", "a whole number after 'int:'"),
        ("a=float:x", "a=float:x", "a number after 'float:'"),
        ("a=bool:yes", "a=bool:yes", "true or false after 'bool:'"),
    ],
)
def test_malformed(capsys: Captured, text: str, found: str, expected: str) -> None:
    for command in ("inspect", "compare", "bench"):
        assert cli.main([command, "--override-kv", text]) == 2
        error = f"argument --override-kv: found '{found}', expected {expected}; see `latentvk {command} --help`"
        assert capsys.readouterr().err == f"latentvk: error: {error}\n"


def test_a_known_key_has_its_effect_and_is_told(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "m.gguf"
    write_synthetic(BASE, path, "f32")
    argv = ["inspect", str(path), "--json", "-", "--override-kv", f"{GATING}=int:1,deepseek2.none=str:x"]
    assert cli.main([*argv, "--override-kv", "deepseek2.expert_weights_norm=bool:false"]) == 0
    out, err = capsys.readouterr()
    config = json.loads(out)["config"]
    assert (config["gating"], config["norm_topk"]) == ("softmax", False)
    assert err.splitlines() == [
        f"latentvk: note: {GATING} is taken as 1, in place of 2",
        "latentvk: note: deepseek2.none is taken as 'x', which the file does not set",
        "latentvk: note: deepseek2.expert_weights_norm is taken as False, in place of True",
    ]


def test_the_last_of_one_key_counts_and_must_be_of_its_type(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "m.gguf"
    write_synthetic(BASE, path, "f32")
    wrong = ["--override-kv", f"{GATING}=int:1", "--override-kv", f"{GATING}=str:softmax"]
    assert cli.main(["inspect", str(path), *wrong]) == 2
    assert capsys.readouterr().err.splitlines()[1] == (
        f"latentvk: error: {path}: key {GATING} is 'softmax', expected an integer; "
        "convert the model again with a current llama.cpp"
    )


@pytest.mark.parametrize("command", ["inspect", "compare"])
def test_a_shape_has_no_keys(capsys: Captured, command: str) -> None:
    assert cli.main([command, "--preset", "deepseek-v3", "--override-kv", f"{GATING}=int:1"]) == 2
    assert capsys.readouterr().err == (
        "latentvk: error: --override-kv is given with --preset, expected a MODEL: a shape has no keys; leave one out\n"
    )
