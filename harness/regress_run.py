"""The measuring half of `regress --run`: two processes in turns, and an A/A run of one code before any judging.

A machine's speed drifts from second to second, by more than what is looked for. So both revisions are loaded at once
and take turns of a fraction of a second; a drift then falls on both of a pair.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from harness import options
from harness.bench import READY
from harness.judging import Rules, noise_of
from harness.metrics import Side, merge, parse, read_side, require_same
from vkbackend.errors import DeviceError, InputError, LatentvkError

ROOT = Path(__file__).resolve().parent.parent
_LAYER = Path("vkbackend/companion")
_LIBRARY = _LAYER / "liblatentvk_companion.so"
MIN_AA = 10  # turns of an A/A run
AT_ONCE = 3  # repeats of each test in a turn; their median counts, as the first after a switch finds cold caches


def measure_revision(args: argparse.Namespace, rules: Rules) -> tuple[Side, Side, dict[str, float]]:
    """BASE's revision and this code by `bench` in turns: both sides, and the noise of an A/A run before them.

    Raises:
        InputError: the revision cannot be checked out or its layer not built, or `bench` refuses its options.
        DeviceError: the device cannot, or the machine is too noisy.
    """
    arguments = ["bench", _model(args), *_device(args), *shlex.split(args.bench)]
    noise: dict[str, float] = {}
    with _checkout(args.base) as other:
        if not args.exact_only:
            labels = ("this code", "this code again")
            noise = noise_of(*take_turns((ROOT, ROOT), (arguments, arguments), max(MIN_AA, args.turns // 2), labels))
            _require_quiet(noise, rules)
        base, new = take_turns((other, ROOT), (arguments, arguments), args.turns, (args.base, "this code"))
    return base, new, noise


def measure_again(args: argparse.Namespace, base: Side, rules: Rules) -> tuple[Side, dict[str, float]]:
    """BASE's measurement with this code, in two processes; what they differ by is the noise.

    Raises:
        InputError: BASE does not say how it was measured, or is of another model.
        DeviceError: the device cannot, or the machine is too noisy.
    """
    arguments = again_arguments(base.record, base.label, _model(args), _device(args))
    sides = [measure_once(ROOT, arguments, f"this code, run {i}") for i in (1, 2)]
    require_same(base, sides[0], "compare")
    noise = noise_of(*sides)
    if not args.exact_only:
        _require_quiet(noise, rules)
    return merge(sides, "this code"), noise


def again_arguments(record: Any, label: str, model: str, device: Sequence[str]) -> list[str]:
    """The command line of `compare` or `bench` that measures again what a record says. InputError where it does not."""
    facts = record[0] if isinstance(record, list) else record
    settings = facts.get("settings")
    if not isinstance(settings, dict):
        raise InputError(
            f"{label}: says no settings, expected a record of this program's compare or bench; measure BASE with them"
        )
    if (facts.get("model") or {}).get("others"):
        raise InputError(
            f"{label}: compares several files, expected a record of one to measure again; measure NEW with compare "
            "--weights and name both"
        )
    if facts["schema"] == "latentvk.bench":
        flags = {"n_prompt": "-p", "n_gen": "-n", "n_depth": "-d", "repetitions": "-r"}
        command = "bench"
    else:
        flags = {"contexts": "--contexts", "paths": "--paths", "decode": "-n", "repeats": "-r"}
        flags |= {"questions": "--questions", "seed": "--seed"}
        command = "compare"
    flags |= {"path": "--path", "cache": "--cache", "chunk": "--chunk"}
    arguments = [command, model, *device]
    for name, flag in flags.items():
        value = settings.get(name)
        if value is not None:
            arguments += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    for pair in settings.get("pg", []):
        arguments += ["-pg", ",".join(map(str, pair))]
    overridden = [name for name in settings if name.startswith("override ")]
    if overridden:
        raise InputError(
            f"{label}: was measured with --override-kv {overridden[0].removeprefix('override ')}, expected a file run "
            "as it is; measure NEW yourself and name both"
        )
    return arguments


def take_turns(
    roots: tuple[Path, Path], arguments: tuple[Sequence[str], Sequence[str]], count: int, labels: tuple[str, str]
) -> tuple[Side, Side]:
    """`bench` of both roots at once, one waiting while the other takes a turn; the order changes from turn to turn.

    Args:
        arguments: each side's command line, from the word `bench` on.
        count: turns of each side.
    """
    with tempfile.TemporaryDirectory(prefix="latentvk-regress-") as folder, ExitStack() as stack:
        files = [Path(folder) / name for name in ("one.json", "two.json")]
        sides = [
            stack.enter_context(_Stepped(root, [*words, "-r", str(count * AT_ONCE), "--json", str(file)], label))
            for root, words, file, label in zip(roots, arguments, files, labels, strict=True)
        ]
        turn = 0
        while all(side.ready() for side in sides):
            _progress(f"{labels[0]} and {labels[1]}: turn {turn + 1}")
            for side in sides if turn % 2 == 0 else reversed(sides):
                side.step()
            turn += 1
        _progress("")
        for side in sides:
            side.finish()
        one, two = (
            _by_turns(read_side(parse(file.read_text(), label), label))
            for file, label in zip(files, labels, strict=True)
        )
    return one, two


def _by_turns(side: Side) -> Side:
    """The median of each turn's repeats in place of the repeats. To one of the two processes the other is busy: that
    is not held against them."""
    timed = {}
    for name, metric in side.timed.items():
        seconds = metric.seconds
        turns = tuple(median(seconds[i : i + AT_ONCE]) for i in range(0, len(seconds), AT_ONCE))
        timed[name] = replace(metric, runs=(turns,))
    return replace(side, timed=timed, busy=None)


class _Stepped:
    """A `bench --step` process: it says when it could begin a turn, and takes one when told."""

    def __init__(self, root: Path, arguments: Sequence[str], label: str) -> None:
        self.label = label
        command = [sys.executable, "-m", "harness.cli", *arguments, "--step", str(AT_ONCE), "-o", "jsonl"]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._is_ready: bool | None = None

    def __enter__(self) -> _Stepped:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ready(self) -> bool:
        """Whether it waits for a turn; False when it has no more."""
        if self._is_ready is None:
            assert self._process.stdout is not None
            self._is_ready = self._process.stdout.readline().strip() == READY
        return self._is_ready

    def step(self) -> None:
        """Take a turn, to its end."""
        assert self._process.stdin is not None
        self._is_ready = None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.finish()
        self.ready()

    def finish(self) -> None:
        """Wait for its end. Raises its own error, as DeviceError or InputError."""
        self._process.communicate()
        if self._process.returncode:
            self._errors.seek(0)
            text = self._errors.read()
            if "unrecognized arguments: --step" in text:
                raise InputError(
                    f"{self.label}: its bench cannot take turns, expected a revision that has `regress`; compare "
                    "records of both instead"
                )
            raise _error(self._process.returncode, text, self.label)


def measure_once(root: Path, arguments: Sequence[str], label: str) -> Side:
    """One fresh process of the code at `root`. Its errors are this command's."""
    command = [sys.executable, "-m", "harness.cli", *arguments, "--json", "-"]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if found.returncode:
        raise _error(found.returncode, found.stderr, label)
    return read_side(parse(found.stdout, label), label)


def _error(code: int, text: str, label: str) -> LatentvkError:
    """A child's error as this command's own."""
    lines = text.strip().splitlines() or ["no message"]
    kind = DeviceError if code == DeviceError.exit_code else InputError
    return kind(f"{label}: {lines[-1].removeprefix('latentvk: error: ')}")


def _require_quiet(noise: dict[str, float], rules: Rules) -> None:
    name = max(noise, key=lambda metric: noise[metric], default=None)
    if name is not None and noise[name] > rules.noise:
        raise DeviceError(
            f"the machine is too noisy to judge: in an A/A run of the same code {name} differed by {noise[name]:.1%}, "
            f"expected at most {rules.noise:.0%}; close other programs, or allow more with --noise"
        )


@contextmanager
def _checkout(revision: str) -> Iterator[Path]:
    """A work tree of the revision beside this one, its companion layer compiled; removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="latentvk-regress-") as folder:
        root = Path(folder) / "base"
        _git("worktree", "add", "--detach", "--quiet", str(root), revision)
        try:
            if _same_layer(revision):
                shutil.copy2(ROOT / _LIBRARY, root / _LIBRARY)
                yield root
                return
            built = subprocess.run([sys.executable, "hatch_build.py"], cwd=root, capture_output=True, text=True)
            if built.returncode:
                lines = built.stderr.strip().splitlines() or ["no message"]
                raise InputError(
                    f"{revision}: its companion layer does not compile ({lines[-1]}), expected hatch_build.py to make "
                    "it; choose another revision"
                )
            yield root
        finally:
            _git("worktree", "remove", "--force", str(root))


def _same_layer(revision: str) -> bool:
    """Whether the compiled layer of this code is the revision's as well."""
    changed = ["git", "-C", str(ROOT), "diff", "--quiet", revision, "--", str(_LAYER), "hatch_build.py"]
    return (ROOT / _LIBRARY).exists() and subprocess.run(changed, capture_output=True).returncode == 0


def _git(*arguments: str) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        raise InputError(f"{ROOT}: is no git checkout, expected one to measure a revision; name a record instead")
    found = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if found.returncode:
        lines = found.stderr.strip().splitlines() or ["no message"]
        raise InputError(
            f"git {arguments[0]} {arguments[1]} failed ({lines[-1]}), expected it to work; mend that first"
        )


def _model(args: argparse.Namespace) -> str:
    return str(Path(args.model).resolve() if args.model else options.embedded_model_path())


def _device(args: argparse.Namespace) -> list[str]:
    return ["--device", args.device] if args.device else []


def _progress(text: str) -> None:
    """One line on a terminal, nothing in a pipe."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
