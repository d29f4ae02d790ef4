"""A lost device: one clear error, exit code 3, what was finished is kept, and another device can be opened."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vkbackend.device
from harness.cli import main
from model.data import EMBEDDED_MODEL
from model.engine import Model, Session
from model.layout import PATHS
from vkbackend.device import Device, open_device
from vkbackend.errors import DeviceError, DeviceLostError

pytestmark = pytest.mark.usefixtures("unhurried")  # so that as many programs run the second time as the first
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def fresh() -> Iterator[Device]:
    """A device of its own, to be lost."""
    try:
        made = open_device()
    except DeviceError as reason:
        pytest.skip(str(reason))
    yield made
    made.close()


def message(device: Device, what: str) -> str:
    """The whole error line."""
    return (
        f"{device.info.name} was lost at {what}; expected it to finish: results so far are kept, "
        "see the kernel log (dmesg) for a reset, then run the command again"
    )


def test_a_lost_device_is_one_error_and_another_can_be_opened(fresh: Device, device: Device) -> None:
    model = Model.load(EMBEDDED_MODEL, fresh)
    session = Session(model, PATHS["mla"], 64)
    expected = session.prompt([5, 900, 33])
    chosen = session.decode(7)
    fresh.companion.lose()
    for _ in range(2):  # it stays lost
        with pytest.raises(DeviceLostError) as caught:
            session.decode(7)
        assert re.fullmatch(re.escape(message(fresh, "program decode (X)")).replace("X", r"\w+"), str(caught.value))
        assert caught.value.exit_code == 3
    assert session.n_past == 4
    session.close()
    model.close()
    fresh.close()
    again = open_device()
    model = Model.load(EMBEDDED_MODEL, again)
    session = Session(model, PATHS["mla"], 64)
    np.testing.assert_array_equal(session.prompt([5, 900, 33]), expected)
    assert session.decode(7) == chosen
    session.close()
    model.close()
    again.close()
    assert not device.companion.lost


def test_a_device_lost_while_a_program_is_learnt(fresh: Device) -> None:
    model = Model.load(EMBEDDED_MODEL, fresh)
    session = Session(model, PATHS["mha"], 64)
    fresh.companion.lose()
    with pytest.raises(DeviceLostError, match="was lost at program chunk"):
        session.prompt([5, 900, 33])
    session.close()
    model.close()


class Losing:
    """Opens devices that are lost at the n-th run of a program called ``name``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, n: int) -> None:
        self.devices: list[Device] = []
        self._left = n
        open_as_ever = vkbackend.device.open_device

        def opened(*args: Any, **options: Any) -> Device:
            made = open_as_ever(*args, **options)
            self.devices.append(made)
            run = made.run

            def losing(sequence: Any, what: str = "a submission") -> float:
                if what == f"program {name}":
                    self._left -= 1
                    if self._left == 0:
                        made.companion.lose()
                return run(sequence, what)

            made.run = losing  # type: ignore[method-assign]
            return made

        monkeypatch.setattr(vkbackend.device, "open_device", opened)


def error_line(err: str) -> str:
    """The last line of standard error, the only one that says error."""
    lines = err.strip().splitlines()
    assert [line for line in lines if "error" in line.lower()] == lines[-1:]
    return lines[-1]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs_of(monkeypatch: pytest.MonkeyPatch, name: str, argv: list[str]) -> int:
    """How many submissions of program ``name`` a whole command makes: about as many as the next will."""
    with monkeypatch.context() as patch:
        counting = Losing(patch, name, 10**9)
        assert main(argv) == 0
    left: int = counting._left
    return 10**9 - left


def test_generate_keeps_the_text_so_far(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    argv = ["generate", "-p", "The history of", "-n", "40"]
    runs = runs_of(monkeypatch, "decode", argv)
    whole = capsys.readouterr().out
    Losing(monkeypatch, "decode", runs - 4)
    assert main([*argv, "--json", "out.json"]) == 3
    out, err = capsys.readouterr()
    assert 0 < len(out.strip()) < len(whole.strip()) and whole.startswith(out.rstrip("\n"))
    line = error_line(err)
    assert " was lost at program decode (" in line
    found = json.loads(Path("out.json").read_text())
    assert f"latentvk: error: {found['incomplete']}" == line
    assert found["text"] == out.rstrip("\n") and 0 < len(found["tokens"]) < 40


def test_bench_keeps_the_tests_before(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    argv = ["bench", "-p", "16", "-n", "3,30", "-r", "2", "--json", "out.json"]
    runs = runs_of(monkeypatch, "decode", argv)
    assert [row["incomplete"] for row in json.loads(Path("out.json").read_text())] == [""] * 3
    capsys.readouterr()
    Losing(monkeypatch, "decode", runs - 3)
    assert main(argv) == 3
    out, err = capsys.readouterr()
    rows = json.loads(Path("out.json").read_text())
    assert [row["test"] for row in rows] == ["pp16", "tg3"]
    assert [f"latentvk: error: {row['incomplete']}" for row in rows] == [error_line(err)] * 2
    assert "tg3" in out and "tg30" not in out


def test_compare_writes_the_contexts_before(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    argv = ["compare", "--contexts", "32,64", "--paths", "mla,mha", "--decode", "3", "--repeats", "2", "-o", "r"]
    runs = runs_of(monkeypatch, "decode", [*argv[:-1], "whole"])
    capsys.readouterr()
    Losing(monkeypatch, "decode", runs - 2)
    assert main(argv) == 3
    out, err = capsys.readouterr()
    line = error_line(err)
    reason = line.removeprefix("latentvk: error: ")
    page, json_file, markdown = sorted(Path("r").iterdir())
    assert f"Incomplete: {html.escape(reason)}" in page.read_text()
    found = json.loads(json_file.read_text())
    assert found["incomplete"] == reason
    rows = found["tables"][0]["rows"]
    assert [(row["context"], row["not_run"]) for row in rows] == [
        (32, ""), (32, ""), (64, "device lost"), (64, "device lost")]  # fmt: skip
    assert all(len(row["decode_seconds"]) == 2 for row in rows[:2])
    assert f"**Incomplete:** {reason}" in markdown.read_text()
    assert "Incomplete: " in out
