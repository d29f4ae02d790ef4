"""`latentvk shaders watch` without a device: what a save touches, what the screen says, what a hang may not stop."""

import io
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from imaginary import INFO
from rich.console import Console

from harness import shaders_watch
from harness.oracles.client import Job, Verdict
from harness.saved_files import Saves, saves
from harness.shader_cycle import Answer, Cycle, Watched, pair_variants
from harness.shader_row import Row
from harness.shader_variants import find_variants
from harness.shader_work import UnitCost
from harness.shaders_check import Module
from harness.timing.job import BenchJob, Timing
from harness.watch_screen import Board, render
from model.presets import get_preset
from vkbackend import shader
from vkbackend.errors import DeviceError, InputError

STATISTICS = {"vgprs": 64, "spilled_vgprs": 0, "spilled_sgprs": 0, "code_bytes": 5000}
WIDTH = 140
DEVICE = replace(INFO, max_workgroup_count=(65535, 65535, 65535))


def answer(name: str, vgprs: int = 64, valu: float = 5.0, **more: Any) -> Answer:
    row = Row(name, 64, STATISTICS | {"vgprs": vgprs}, 512 // vgprs, UnitCost("weight", valu, 1.6, 0.56, 2e-12, 7e-12))
    return Answer(name, Module(), Verdict(6, 0.1, ()), row, **more)


def screen(board: Board, height: int = 0, colour: bool = False, width: int = WIDTH) -> str:
    console = Console(
        width=width, file=io.StringIO(), force_terminal=colour, color_system="truecolor" if colour else None
    )
    console.print(render(board, height))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def shown(board: Board, height: int = 0) -> list[str]:
    """The screen's lines, without empty ones and blanks at their ends."""
    return [line.rstrip() for line in screen(board, height).splitlines() if line.strip()]


def test_figures_stand_with_both_differences() -> None:
    board = Board("2 variants", ["a", "b"], {"a": {"VGPR": 48, "VALU/unit": 5.0}}, status="saved")
    board.put(answer("a", 64))
    board.put(answer("a", 32, 5.5))
    board.put(answer("b"))
    head, names, _, first, second, status = shown(board)
    assert (head, status) == ("2 variants", "saved")
    assert names.split() == ["variant", "check", "VGPR", "waves", "spill", "VALU/unit", "roofline", "%", "code"]
    assert " ".join(first.split()) == "a ok, 6 cases 32 -32 (-16) 16 +8 0 = 5.50 +0.500 100 = 5,000 ="
    assert " ".join(second.split()) == "b ok, 6 cases 64 8 0 5.00 100 5,000"
    told = screen(board, colour=True)
    green, red = "\x1b[32m", "\x1b[31m"
    # Fewer registers and more waves are better, more instructions worse.
    for better in (" -32", " (-16)", " +8"):
        assert green + better in told
    assert red + " +0.500" in told


def test_a_narrow_screen_leaves_out_the_last_columns() -> None:
    board = Board("1 variant", ["a variant with a name"], {}, status="saved")
    board.put(answer("a variant with a name"))
    shown_columns = []
    for width in range(38, 141):
        lines = screen(board, width=width).splitlines()
        assert all(len(line.rstrip()) <= width for line in lines)
        assert lines[4].split()[:5] == ["a", "variant", "with", "a", "name"]
        shown_columns.append(lines[2].replace("roofline %", "roofline").split()[2:])
    assert shown_columns[0] == [] and shown_columns[-1] == ["VGPR", "waves", "spill", "VALU/unit", "roofline", "code"]
    assert all(wider[: len(narrower)] == narrower for narrower, wider in pairwise(shown_columns))


def timed(name: str, microseconds: float, *changes: float) -> Answer:
    timing = Timing(((1e-6 * microseconds,),), (1,), 1, 1e6, False, "wall clock of submissions")
    return Answer(name, Module(), Verdict(6, 0.1, ()), None, timing, moved=1e6, changes=changes or (1.0, 1.0))


def test_times_stand_with_the_share_that_they_changed_by() -> None:
    """As measured in turns with the modules before, not as one run's times differ from another's."""
    board = Board("1 variant", ["a"], {"a": {"VGPR": 48}}, status="saved")
    rows = []
    for answer in (timed("a", 1000.0), timed("a", 2000.0), timed("a", 700.0, 0.7, 0.75), timed("a", 740.0, 1.05, 0.8)):
        board.put(answer)
        rows.append(" ".join(shown(board)[3].split()))
    assert shown(board)[1].split() == ["variant", "check", "\u00b5s", "GB/s"]
    assert rows == [
        "a ok, 6 cases 1,000 1.00",
        "a ok, 6 cases 2,000 = 0.500 =",
        "a ok, 6 cases 700 -30% (-25%) 1.43 +43% (+33%)",
        "a ok, 6 cases 740 = (-20%) 1.35 = (+25%)",  # 5% is noise
    ]


class Clock:
    """A judge that finds all right and times modules by their lengths, at a speed that changes from pair to pair."""

    def __init__(self) -> None:
        self.jobs: list[BenchJob] = []

    def judge(self, job: Job) -> Verdict:
        return Verdict(1, 0.0, ())

    def time(self, job: BenchJob) -> Timing:
        self.jobs.append(job)
        sizes = [len(choice.kernel.spirv()) for choice in job.choices]
        samples = tuple(tuple(speed * size for speed in (1e-9, 2e-9, 3e-9)) for size in sizes)
        return Timing(samples, (1,) * len(sizes), 1, 1e6, False, "wall clock of submissions")

    def restart(self) -> None: ...

    def give_up(self) -> None: ...


def test_modules_are_timed_beside_those_of_the_saves_before(folder: Path) -> None:
    clock = Clock()
    cycle = Cycle(clock, None, None, get_preset("glm-4.7-flash"))
    (watched,) = variants("moe_sum")
    path, sizes = folder / "moe_sum.comp", []
    text = path.read_text()
    for more in ("", "", "float first = inversesqrt(weights[0]); ", "float second = sin(cos(weights[1])); "):
        path.write_text(text.replace("void main() {", f"void main() {{ {more}"))
        found = cycle.answer(watched)
        assert found.wrong == ()
        sizes.append(len(watched.variant.launch.kernel.spirv()))
        before, first = sizes[-2:][0], sizes[0]
        assert found.changes == (pytest.approx(sizes[-1] / before), pytest.approx(sizes[-1] / first))
    assert len(set(sizes)) == 3
    assert [len(job.choices) for job in clock.jobs] == [1, 1, 2, 3]


def test_a_compile_error_takes_the_tables_place_once() -> None:
    error = "include/x.glsl:2: ERROR: 'y' : undeclared\n>    2 | y = 1;"
    board = Board("3 variants", ["a", "b", "c"], {}, status="saved")
    board.put(answer("a"))
    for name in ("b", "c"):
        board.put(Answer(name, Module(compiled=(error,))))
    assert shown(board) == [
        "3 variants",
        "include/x.glsl:2: ERROR: 'y' : undeclared",
        ">    2 | y = 1;",
        "does not compile: b, c",
        "saved",
    ]
    board.begin(["b", "c"])  # what is answered anew is no longer known
    assert [line.split()[:2] for line in shown(board)[3:6]] == [["a", "ok,"], ["b", "..."], ["c", "..."]]


def test_failing_elements_stand_below_the_table_and_stay_on_the_screen() -> None:
    names = [f"v{i:02}" for i in range(40)]
    board = Board("40 variants", names, {}, status="saved")
    for name in names:
        board.put(answer(name))
    wrong = Verdict(3, 2.0, tuple(f"case {i}: y[row 3] is 1, expected 2" for i in range(20)))
    board.put(Answer("v37", Module(), wrong))
    lines = shown(board, height=30)
    assert len(lines) <= 30
    assert any(line.split()[:2] == ["v37", "FAIL"] for line in lines)
    assert "v37: case 0: y[row 3] is 1, expected 2" in lines
    assert "and 9 more" in lines
    assert any(line.strip().endswith("more variants are not shown") for line in lines)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the shaders to edit."""
    shutil.copytree(shader.SHADER_ROOT, tmp_path / "shaders")
    monkeypatch.setattr(shader, "SHADER_ROOT", tmp_path / "shaders")
    monkeypatch.setattr(shader, "INCLUDE_ROOT", tmp_path / "shaders" / "include")
    monkeypatch.setenv("LATENTVK_CACHE", str(tmp_path / "cache"))
    shader.forget_sources()
    yield tmp_path / "shaders"
    shader.forget_sources()


def variants(*patterns: str) -> list[Watched]:
    return pair_variants(find_variants(get_preset("glm-4.7-flash"), "q4_k_m", DEVICE, patterns), [])


class Right:
    """A judge that finds everything right, or hangs until it is given up."""

    def __init__(self, hangs: bool = False) -> None:
        self.jobs: list[Job] = []
        self.restarts = 0
        self.ended = threading.Event()
        self.hangs = hangs

    def judge(self, job: Job) -> Verdict:
        self.jobs.append(job)
        if self.hangs:
            self.hangs = False
            assert self.ended.wait(60)
            return Verdict(0, 0.0, ("the process that ran it ended",))
        return Verdict(1, 0.0, ())

    def time(self, job: BenchJob) -> Timing:
        raise AssertionError("no shapes to time were given")

    def restart(self) -> None:
        self.restarts += 1

    def give_up(self) -> None:
        self.ended.set()


def test_a_save_touches_what_includes_it_now_or_did_before(folder: Path) -> None:
    watched = variants("matvec q4_k", "embed q8_0", "moe_sum")
    cycle = Cycle(Right(), None, None)
    for one in watched:
        assert cycle.answer(one).wrong == ()

    def touched(path: Path) -> set[str]:
        return {one.name.split()[0] for one in cycle.affected(watched, frozenset({path}))}

    assert touched(folder / "include" / "unit.glsl") == {"matvec", "embed"}
    assert touched(folder / "moe_sum.comp") == {"moe_sum"}
    assert touched(folder / "route.comp") == set()
    for one in watched:
        cycle.answer(one)
    # Taken out of the kernel, the file no longer counts, but its own removal does.
    text = (folder / "moe_sum.comp").read_text()
    (folder / "moe_sum.comp").write_text(text.replace('#include "params.glsl"', ""))
    (folder / "include" / "params.glsl").unlink()
    assert "moe_sum" in touched(folder / "include" / "params.glsl")
    assert any("params.glsl" in text for one in variants("embed q8_0") for text in cycle.answer(one).wrong)


def watch(watched: list[Watched], judge: Right, changed: Saves, console: Console, **arguments: Any) -> None:
    board = Board("watching", [one.name for one in watched], {})
    with pytest.raises(KeyboardInterrupt):
        shaders_watch.watch(watched, Cycle(judge, None, None), board, changed, console)


class Script(Saves):
    """Saves at given moments: each entry is put when the watch would wait; after the last one, Ctrl-C."""

    def __init__(self, *entries: Path) -> None:
        super().__init__()
        self.entries = list(entries)

    def next(self) -> frozenset[Path]:
        if not self.waiting():
            if not self.entries:
                raise KeyboardInterrupt
            self.queue.put(frozenset({self.entries.pop(0)}))
        return super().next()


def test_each_save_is_answered_and_an_oracles_own_file_runs_all_in_a_new_process(folder: Path, tmp_path: Path) -> None:
    judge, watched = Right(), variants("embed q8_0", "moe_sum")
    log = tmp_path / "log"
    with log.open("w") as stream:
        oracle = shaders_watch._ORACLES / "routing.py"
        script = Script(folder / "moe_sum.comp", folder / "include" / "format_q8_0.glsl", oracle)
        watch(watched, judge, script, Console(file=stream, width=WIDTH))
    files = [job.kernel.file for job in judge.jobs]
    assert files == ["embed.comp", "moe_sum.comp", "moe_sum.comp", "embed.comp", "embed.comp", "moe_sum.comp"]
    assert judge.restarts == 1
    told = [line.split(":")[0] for line in log.read_text().splitlines() if ": answered in " in line]
    assert told == ["start", "moe_sum.comp saved", "format_q8_0.glsl saved", "routing.py saved"]


def test_a_save_ends_what_hangs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaders_watch, "_PATIENCE_S", 0.1)
    judge, watched = Right(hangs=True), variants("moe_sum")
    script = Script()

    def save() -> None:
        while not judge.jobs:
            time.sleep(0.01)
        script.queue.put(frozenset({folder / "moe_sum.comp"}))

    saver = threading.Thread(target=save)
    saver.start()
    with (tmp_path / "log").open("w") as stream:
        watch(watched, judge, script, Console(file=stream, width=WIDTH))
    saver.join()
    assert judge.ended.is_set()
    assert len(judge.jobs) == 2
    assert "all ok" in (tmp_path / "log").read_text()


def test_files_that_are_saved_become_events(tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    with saves(tmp_path) as changed:
        (tmp_path / "include" / "a.glsl~").write_text("an editor's own")
        (tmp_path / "include" / "a.glsl").write_text("first")
        assert changed.next() == {tmp_path / "include" / "a.glsl"}


def test_a_folder_that_cannot_be_watched_is_said(tmp_path: Path) -> None:
    with saves(tmp_path / "absent") as changed, pytest.raises(InputError) as caught:
        changed.next()
    told = str(caught.value)
    assert told.startswith("changes of files: the system tells of none (")
    assert told.endswith("); expected it to: raise fs.inotify.max_user_watches, and see that the folder is there")


class Hanging:
    """A compiler for a chip that hangs until it is given up."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def compile_kernel(self, *args: Any, **kwargs: Any) -> None:
        self.begun.set()
        assert self.ended.wait(60)
        raise DeviceError("RADV's compiler ended")

    def give_up(self) -> None:
        self.ended.set()


def test_a_save_ends_what_hangs_in_the_chips_compiler(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shaders_watch, "_PATIENCE_S", 0.1)
    compiler: Any = Hanging()
    watched = pair_variants([], find_variants(get_preset("glm-4.7-flash"), "q4_k_m", DEVICE, ["moe_sum"]))
    board, script = Board("watching", [one.name for one in watched], {}), Script()

    def save() -> None:
        compiler.begun.wait()
        script.queue.put(frozenset({folder / "moe_sum.comp"}))

    saver = threading.Thread(target=save)
    saver.start()
    with (tmp_path / "log").open("w") as stream, pytest.raises(KeyboardInterrupt):
        shaders_watch.watch(watched, Cycle(None, compiler, None), board, script, Console(file=stream, width=WIDTH))
    saver.join()
    assert "moe_sum: RADV's compiler ended" in (tmp_path / "log").read_text()
