"""`latentvk shaders watch`: saving a shader's source checks and measures what includes it, on one screen."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from harness import options
from vkbackend.errors import DeviceError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.oracles.client import OracleRunner
    from harness.saved_files import Saves
    from harness.shader_cycle import Answer, Cycle, Watched
    from harness.watch_screen import Board
    from vkbackend.offline import OfflineCompiler
    from vkbackend.physical import DeviceInfo

HELP = "check and measure kernels whenever a source that they include is saved"
EXAMPLE = 'latentvk shaders watch "matvec q4_k"'
_TIMEOUT_S = 60.0  # of a kernel's cases, then it counts as hung; lavapipe's compiler takes ten seconds for the slowest
_POLL_S, _PATIENCE_S = 0.05, 2.0
_ORACLES = Path(__file__).resolve().parent / "oracles"
_RESULTS = Path(__file__).resolve().parent.parent / "results" / "shaders"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("kernels", metavar="KERNEL", nargs="*", help="kernels or beginnings of variants' names (left out: all)")
    add("--chip", default="phoenix", metavar="NAME", help="whose statistics are shown (default phoenix)")
    add("--subgroup", type=int, choices=(32, 64), default=64, help="the chip's subgroup size (default 64)")
    add("--against", type=Path, metavar="FILE", help="baseline (default results/shaders/CHIP.json where it is there)")
    add("--validate", action="store_true", help="run the oracles under the Khronos validation layer")
    add("--seed", type=options.non_negative_int, default=0, metavar="N", help="of the random inputs (default 0)")
    add("--preset", default="glm-4.7-flash", metavar="NAME", help="the model shape whose variants are watched")
    add("--mix", default="q4_k_m", metavar="NAME", help="types of its weights; all other types are added")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from harness.chips import find_chip
    from harness.cli import Terminated
    from harness.saved_files import saves
    from harness.shader_cycle import Cycle
    from harness.watch_screen import Board
    from model.presets import get_preset
    from vkbackend.shader import SHADER_ROOT, compiler
    from vkbackend.spirv_val import require_validator

    if options.json_to_stdout(args) or args.json:
        raise InputError("--json was given, expected none: a watch has no end; use `latentvk shaders check --json`")
    compiler()
    require_validator()
    console = Console(highlight=False)
    with ExitStack() as stack:
        notes = []
        judge: OracleRunner | None = None
        compile_for: OfflineCompiler | None = None
        try:
            judge = stack.enter_context(_open_judge(args))
        except DeviceError as reason:
            if args.device or args.validate:
                raise
            notes.append(f"the oracles do not run: {reason}")
        try:
            compile_for = stack.enter_context(_open_compiler(args))
        except DeviceError as reason:
            notes.append(f"no statistics: {reason}")
        watched = _watched(args, judge.info if judge else None, compile_for.info if compile_for else None)
        cycle = Cycle(judge, compile_for, find_chip(args.chip), get_preset(args.preset), args.subgroup, args.seed)
        title = f"{len(watched)} variant{'s' if len(watched) > 1 else ''} in {SHADER_ROOT}"
        title += f"; checked on {judge.info.name}" if judge else ""
        title += f"; statistics of {compile_for.info.name}, {compile_for.info.driver_version}" if compile_for else ""
        board = Board("\n".join([title, *notes]), [one.name for one in watched], _baseline(args, compile_for))
        try:
            with saves(SHADER_ROOT, _ORACLES) as changed:
                watch(watched, cycle, board, changed, console)
        except Terminated:
            raise
        except KeyboardInterrupt:  # how a watch ends
            return 0
    return 0


def watch(watched: list[Watched], cycle: Cycle, board: Board, changed: Saves, console: Console) -> None:
    """Answer for everything once, then for what each save touches; until an exception, such as Ctrl-C, ends it.

    A save in the middle of a cycle puts what it touches into the next one, which begins at once.
    """
    with _display(board, console) as show, ThreadPoolExecutor(1) as worker:
        todo, saved = list(watched), "start"
        while True:
            started = perf_counter()
            board.begin([one.name for one in todo])
            show(f"{saved}: {len(todo)} variants to go", False)
            while todo and not changed.waiting():
                answer = _answer(worker, cycle, todo[0], changed)
                if answer is not None:
                    board.put(answer)
                    todo.pop(0)
                show(f"{saved}: {len(todo)} variants to go", False)
            if not todo:
                bad = len(board.bad)
                state = f"{bad} of {len(board.names)} variants fail" if bad else "all ok"
                show(f"{saved}: answered in {perf_counter() - started:.1f} s; {state}; Ctrl-C ends", True)
            paths = changed.next()
            saved = f"{', '.join(sorted(path.name for path in paths))} saved"
            if any(path.parent == _ORACLES for path in paths):
                cycle.forget_oracles()
                todo = list(watched)
            else:
                again = {one.name for one in (*todo, *cycle.affected(watched, paths))}
                todo = [one for one in watched if one.name in again]


def _answer(worker: ThreadPoolExecutor, cycle: Cycle, one: Watched, changed: Saves) -> Answer | None:
    """The cycle's answer; None where a save came while it took longer than it may keep one waiting, as a hang does."""
    begun, given_up = perf_counter(), False
    made = worker.submit(cycle.answer, one)
    try:
        while not wait([made], timeout=_POLL_S).done:
            if changed.waiting() and perf_counter() - begun > _PATIENCE_S:
                given_up = True
                cycle.give_up()  # again and again: what it ends may have been about to start
    except BaseException:
        while not wait([made], timeout=_POLL_S).done:  # else the thread would keep the process
            cycle.give_up()
        raise
    return None if given_up else made.result()


@contextmanager
def _display(board: Board, console: Console) -> Iterator[Callable[[str, bool], None]]:
    """Shows the board with a new status, finished or not: on a terminal's whole screen; in a pipe what is finished."""
    from rich.live import Live

    from harness.watch_screen import render

    if not console.is_terminal:

        def say(status: str, finished: bool) -> None:
            board.status = status
            if finished:
                console.print(render(board))

        yield say
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def refresh(status: str, finished: bool) -> None:
            board.status = status
            live.update(render(board, console.height), refresh=True)

        yield refresh


def _open_judge(args: argparse.Namespace) -> OracleRunner:
    from harness.oracles.client import OracleRunner

    return OracleRunner(args.device, validate=args.validate, timeout_s=_TIMEOUT_S)


def _open_compiler(args: argparse.Namespace) -> OfflineCompiler:
    from harness.chips import find_chip
    from vkbackend.offline import OfflineCompiler

    chip = find_chip(args.chip)
    return OfflineCompiler(chip.family if chip else args.chip)


def _watched(args: argparse.Namespace, device: DeviceInfo | None, chip: DeviceInfo | None) -> list[Watched]:
    """What the patterns name among the device's variants and the chip's. InputError where one names nothing."""
    from harness.shader_cycle import pair_variants
    from harness.shader_variants import Shape, choose, find_variants
    from harness.timing.job import QUICK_BYTES
    from model.presets import get_preset
    from vkbackend.tuning import load_tuning

    preset, on_device = get_preset(args.preset), []
    if device:
        shape = Shape(most_bytes=QUICK_BYTES, tuning=load_tuning(device))
        on_device = find_variants(preset, args.mix, device, everything=True, shape=shape)
    wide = replace(chip, subgroup_size=args.subgroup) if chip else None
    on_chip = find_variants(preset, args.mix, wide, alternatives=True) if wide else []
    pairs = {one.name: one for one in pair_variants(on_device, on_chip)}
    return [pairs[name] for name in choose(pairs, args.kernels)]


def _baseline(args: argparse.Namespace, compiler: OfflineCompiler | None) -> dict[str, dict[str, float]]:
    """The baseline's figures by variant; empty where there is none, or one that another compiler made.

    Raises:
        InputError: the one asked for cannot be read, or is another chip's.
    """
    from harness.shader_baseline import load
    from harness.shader_cycle import row_figures

    if compiler is None:
        return {}
    path = args.against or _RESULTS / f"{compiler.chip}.json"
    if args.against is None and not path.is_file():
        return {}
    record = load(path)
    if record["chip"] != compiler.chip:
        raise InputError(
            f"{path}: a baseline of {record['chip']}, expected one of {compiler.chip}; choose it with --chip"
        )
    if record["driver"] != compiler.info.driver_version:
        return {}
    return {
        name: row_figures(entry, entry["waves_per_simd"], entry["unit"] or {})
        for name, entry in record["variants"].items()
    }
