"""The gate of `make test`: any exact figure that changes fails it, a ratio of times only where it is sure."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.metrics import Exact
from vkbackend.errors import DeviceError, InputError
from vkbackend.tuning import tuning_file

ROOT = Path(__file__).parents[2]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def gate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gate", ROOT / "tools" / "gate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tuning table of the user's."""
    monkeypatch.setenv("LATENTVK_TUNING", str(tmp_path / "tuning.json"))
    return tmp_path / "tuning.json"


def made(gate: ModuleType, **changes: Any) -> Any:
    exact = {"cache of pp8, mla": Exact(5760, "B"), "launches of decode at pp8, mla": Exact(70, "")}
    return replace(gate.Gate("llvmpipe", "m.gguf", exact, 1.5, 1.6), **changes)


def test_a_baseline_comes_back_as_it_was_written(gate: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "new" / "gate.json"
    gate.save(path, made(gate))
    assert gate.load(path) == made(gate, high=1.5)
    assert '"launches of decode at pp8, mla": [70, ""]' in path.read_text()


def test_the_committed_baseline_covers_every_path_and_count(gate: ModuleType) -> None:
    found = gate.load(ROOT / "results" / "llvmpipe" / "gate.json")
    for path in gate.PATHS:
        for what in ("cache of", "device memory at", "allocations at", "launches of decode at", "launches of chunk at"):
            assert f"{what} tg2 @ d512, {path}" in found.exact
    mha, mla = (found.exact[f"cache of pp128, {path}"].value for path in ("mha", "mla"))
    assert mha * 9 == mla * 160  # 17.78
    assert found.ratio > 1.2


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": "latentvk.gate", "schema_version": 9}'])
def test_what_is_no_baseline(gate: ModuleType, tmp_path: Path, text: str) -> None:
    path = tmp_path / "gate.json"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        gate.load(path)
    assert str(raised.value).startswith(f"{path}: is no baseline (")
    assert str(raised.value).endswith("), expected latentvk.gate version 1; write it with `make baseline`")


def test_equal_figures_pass(gate: ModuleType, capsys: Captured) -> None:
    assert gate.judge(Path("g.json"), made(gate), made(gate)) == 0
    assert capsys.readouterr().out == "gate: 2 figures equal g.json; mha over mla 1.50, baseline 1.50\n"


@pytest.mark.parametrize(
    ("figure", "row"),
    [
        (Exact(71, ""), ["launches", "of", "decode", "at", "pp8,", "mla", "70", "71", "+1"]),
        (Exact(69, ""), ["launches", "of", "decode", "at", "pp8,", "mla", "70", "69", "-1"]),
    ],
)
def test_a_count_that_changes_either_way_fails(
    gate: ModuleType, capsys: Captured, figure: Exact, row: list[str]
) -> None:
    exact = made(gate).exact | {"launches of decode at pp8, mla": figure}
    assert gate.judge(Path("g.json"), made(gate), made(gate, exact=exact)) == 1
    out = capsys.readouterr().out
    assert row in [line.split() for line in out.splitlines()]
    assert out.endswith(
        "gate: differs from g.json; where that is meant, renew it with `make baseline` and say why in the commit\n"
    )


def test_figures_that_come_and_go_fail(gate: ModuleType, capsys: Captured) -> None:
    exact = {"cache of pp8, mla": Exact(5760, "B"), "allocations at pp8, mla": Exact(81, "")}
    assert gate.judge(Path("g.json"), made(gate), made(gate, exact=exact)) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["launches", "of", "decode", "at", "pp8,", "mla", "70", "n/a"] in rows
    assert ["allocations", "at", "pp8,", "mla", "n/a", "81"] in rows


def test_the_ratio_fails_only_where_it_is_sure(gate: ModuleType, capsys: Captured) -> None:
    assert gate.judge(Path("g.json"), made(gate), made(gate, ratio=1.0, high=1.2)) == 0
    capsys.readouterr()
    assert gate.judge(Path("g.json"), made(gate), made(gate, ratio=1.0, high=1.1)) == 1
    assert capsys.readouterr().out.startswith(
        "gate: decoding along mha took 1.00 times as long as along mla (at most 1.10), expected at least 1.12 (the "
        "baseline's 1.50 less 25%): mla has become slower, or mha faster\n"
    )


def test_another_model_is_told(gate: ModuleType, capsys: Captured) -> None:
    assert gate.judge(Path("g.json"), made(gate), made(gate, model="n.gguf")) == 1
    assert capsys.readouterr().out == "gate: g.json is of m.gguf, this is n.gguf; renew it with `make baseline`\n"


def test_a_device_without_a_baseline_is_not_judged_and_gets_one(
    gate: ModuleType, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "RESULTS", tmp_path)
    monkeypatch.setattr(gate, "measure", lambda: made(gate, device="Radeon 780M (RADV)"))
    assert gate.main([]) == 0
    line = "gate: not judged, there is no baseline of Radeon 780M (RADV); write one with `make baseline`\n"
    assert capsys.readouterr().out == line
    assert gate.main(["--renew"]) == 0
    path = tmp_path / "radeon-780m" / "gate.json"
    assert capsys.readouterr().out == f"gate: wrote {path}\n"
    assert json.loads(path.read_text())["device"] == "Radeon 780M (RADV)"
    assert gate.baseline_of("Radeon 780M (RADV)") == path and gate.baseline_of("other") is None


def test_no_device_is_not_judged(gate: ModuleType, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise DeviceError("no Vulkan device; expected one: install a driver")

    monkeypatch.setattr(gate, "measure", absent)
    assert gate.main([]) == 0
    assert capsys.readouterr().out == "gate: not judged, no Vulkan device; expected one: install a driver\n"


@pytest.mark.parametrize("arguments", [[], ["--renew"]])
def test_a_users_tuning_is_neither_judged_nor_written(
    gate: ModuleType, arguments: list[str], table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the processes that measure, which read it where the environment names one."""
    code = "from vkbackend.tuning import tuning_file; print(tuning_file())"
    asked = []

    def measure() -> Any:
        asked.append(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip())
        return made(gate)

    assert tuning_file() == table
    monkeypatch.setattr(gate, "RESULTS", tmp_path)
    monkeypatch.setattr(gate, "measure", measure)
    assert gate.main(arguments) == 0
    assert asked == ["None"]
