"""Programs on an imaginary device whose workgroups take known times: what is submitted, in which order, how long."""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.null.imaginary import INFO
from vkbackend.errors import DeviceError
from vkbackend.kernel import Kernel
from vkbackend.pace import LIMIT_S, RECUT_S, TARGET_S, Grid, Pace
from vkbackend.program import Program

STEP = Kernel("step.comp", (("source", "r"), ("target", "w")), push=("kind",))
OVERHEAD_S, COMPILING_S = 5e-5, 1.5


def cells(base: Grid, count: Grid) -> list[Grid]:
    """Every workgroup of a box."""
    x, y, z = (range(b, b + n) for b, n in zip(base, count, strict=True))
    return list(product(x, y, z))


@dataclass
class Recorded:
    """One dispatch as the layer would see it."""

    algorithm: Any
    base: Grid
    count: Grid
    barrier: bool


@dataclass
class ImaginaryDevice:
    """Stands for Device, its companion, its Kompute manager and sequences. ``seconds`` gives a workgroup's time."""

    seconds: Callable[[int, Grid], float]
    info: Any = INFO
    subgroup_size: int = 32
    lock: Any = field(default_factory=nullcontext)
    pace: Pace = field(default_factory=Pace)
    submissions: list[tuple[float, bool]] = field(default_factory=list)  # seconds, whether something compiled in it
    ran: list[Recorded] = field(default_factory=list)
    live: int = 0
    compiled: set[int] = field(default_factory=set)
    _box: tuple[Grid, Grid] | None = None
    _overlap: bool = False

    @property
    def companion(self) -> Any:
        return self

    manager = companion

    @contextmanager
    def creating(self, what: str) -> Any:
        yield

    @contextmanager
    def texel_bindings(self, bindings: int) -> Any:
        assert bindings == 0
        yield

    def overlap(self) -> None:
        self._overlap = True

    def dispatch_box(self, base: Grid, count: Grid) -> None:
        self._box = base, count

    def algorithm(self, tensors: Any, spirv: bytes, grid: Any, spec: Any, push: np.ndarray) -> Any:
        return self._made(kind=int(push[0]))

    def sequence(self, *_: Any) -> Any:
        made = self._made(dispatches=[])
        made.record = lambda algorithm: made.dispatches.append(self._recorded(algorithm))
        return made

    def _made(self, **members: Any) -> Any:
        made = SimpleNamespace(**members, alive=True)
        self.live += 1

        def destroy() -> None:
            made.alive = False
            self.live -= 1

        made.destroy, made.is_init = destroy, lambda: made.alive
        return made

    def _recorded(self, algorithm: Any) -> Recorded:
        assert self._box is not None
        found = Recorded(algorithm, *self._box, barrier=not self._overlap)
        self._box, self._overlap = None, False
        return found

    def run(self, sequence: Any, what: str) -> float:
        assert sequence.alive and sequence.dispatches and what == "program test"
        seconds, compiling = OVERHEAD_S, False
        for d in sequence.dispatches:
            seconds += sum(self.seconds(d.algorithm.kind, cell) for cell in cells(d.base, d.count))
            compiling |= d.algorithm.kind not in self.compiled
            self.compiled.add(d.algorithm.kind)
        self.ran += sequence.dispatches
        seconds += COMPILING_S * compiling
        self.submissions.append((seconds, compiling))
        return seconds

    def longest(self) -> float:
        """Seconds of the longest submission since the last call, those that compiled left out."""
        found = max((seconds for seconds, compiling in self.submissions if not compiling), default=0.0)
        self.submissions.clear()
        return found


@pytest.fixture(autouse=True)
def without_kompute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kp", SimpleNamespace(OpAlgoDispatch=lambda algorithm: algorithm))
    monkeypatch.setattr(Kernel, "spirv", lambda self: b"")


def program(device: ImaginaryDevice, launches: list[tuple[int, Grid, bool]]) -> Program:
    """Launches of (kind, grid, deep); each odd one reads what the one before it wrote."""
    made = Program(device, "test")  # type: ignore[arg-type]
    buffers = [SimpleNamespace(tensor=None) for _ in range(2 * len(launches) + 2)]
    for i, (kind, grid, deep) in enumerate(launches):
        reads = buffers[2 * (i - 1) + 1] if i % 2 else buffers[2 * i]
        both: Any = {"source": reads, "target": buffers[2 * i + 1]}
        made.launch(STEP, both, grid, push={"kind": kind}, label=f"launch {i}", deep=deep)
    return made


def check_run(device: ImaginaryDevice, made: Program, times: int = 1) -> None:
    """Every workgroup ran once, launch after launch, with the derived barriers and no other; all that ``times`` over,
    with a barrier between."""
    first, *others = made.barriers()
    again = zip(made.launches, [True, *others], strict=True)
    expected = iter([*zip(made.launches, [first, *others], strict=True), *list(again) * (times - 1)])
    done: list[Grid] = []
    current: list[Grid] = []
    for d in device.ran:
        if not current:
            launch, barrier = next(expected)
            current = cells((0, 0, 0), launch.grid)
            done = []
            assert d.barrier == barrier
        else:
            assert not d.barrier
        assert d.algorithm.kind == launch.push["kind"]
        done += cells(d.base, d.count)
        if len(done) >= len(current):
            assert sorted(done) == current
            current = []
    assert not current and next(expected, None) is None
    device.ran.clear()


sizes = st.integers(1, 6)
launches = st.lists(st.tuples(st.integers(0, 4), st.tuples(sizes, sizes, sizes), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(launches, st.lists(st.floats(0, 0.02), min_size=5, max_size=5), st.integers(0, 40))
def test_no_submission_runs_long_and_every_workgroup_runs_once(
    steps: list[tuple[int, Grid, bool]], paces: list[float], grown: int
) -> None:
    """Learning, replaying, and after work that grew without warning by all that was announced."""
    factor = 1
    device = ImaginaryDevice(lambda kind, cell: factor * paces[kind])
    made = program(device, steps)
    for _ in range(4):
        made.run()
        check_run(device, made)
        assert device.longest() <= LIMIT_S
    factor = 1 + grown
    if factor * max(paces) <= TARGET_S:
        for _ in range(3):
            made.run(items=factor)
            check_run(device, made)
            assert device.longest() <= LIMIT_S
    made.free()
    assert device.live == 0


@settings(max_examples=60, deadline=None)
@given(launches, st.lists(st.floats(0, 0.02), min_size=5, max_size=5), st.lists(st.integers(1, 9), max_size=9))
def test_a_program_run_several_times_over_is_cut_like_one(
    steps: list[tuple[int, Grid, bool]], paces: list[float], counts: list[int]
) -> None:
    device = ImaginaryDevice(lambda kind, cell: paces[kind])
    made = program(device, steps)
    for _ in range(2):  # the first run of a grid of one says nothing
        made.run()
        check_run(device, made)
    for times in (*counts, 2):
        made.run(times=times)
        check_run(device, made, times)
        assert device.longest() <= LIMIT_S
    made.free()
    assert device.live == 0


def test_as_many_times_fit_as_a_submission_has_room_for() -> None:
    pace = 1e-5
    device = ImaginaryDevice(lambda kind, cell: pace)
    made = program(device, [(0, (10, 10, 1), False)] * 5 + [(1, (100, 1, 1), True)] * 5)
    assert made.fitting(64) == 1  # nothing is known
    made.run()
    made.run()
    assert [made.fitting(most) for most in (1, 2, 3, 7, 8, 64)] == [1, 2, 2, 4, 8, 8]  # 10 ms a time
    assert made.fitting(64, depth=3.0) == 4 and made.fitting(64, items=30.0) == 1
    for times in (8, 1, 2, 8):
        device.submissions.clear()
        made.run(times=times)
        ((seconds, _),) = device.submissions
        assert seconds == pytest.approx(times * 1e-2 + OVERHEAD_S)
    pace = 4e-5
    made.run(times=8)  # nothing announced it
    assert made.fitting(64) == 2  # 40 ms a time
    device.submissions.clear()
    made.run(times=2)
    made.run()
    assert [round(seconds, 2) for seconds, _ in device.submissions] == [0.08, 0.04]
    pace = 1e-5
    made.run()
    assert made.fitting(64) == 8
    made.free()
    assert device.live == 0 and made.fitting(64) == 1


def test_a_recording_that_failed_midway_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The segments before the failure are given back; the next run records all."""
    device = ImaginaryDevice(lambda kind, cell: 1e-3)
    made = program(device, [(0, (10, 10, 1), False)] * 3)
    made.run()
    device.ran.clear()
    live, sequence, left = device.live, device.sequence, 2

    def failing(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise DeviceError("no more")
        return sequence(*args)

    monkeypatch.setattr(device, "sequence", failing)
    with pytest.raises(DeviceError, match="no more"):
        made.run()
    assert device.live == live and not device.ran
    made.run()
    check_run(device, made)
    assert device.longest() <= LIMIT_S


def test_after_a_recording_that_failed_submissions_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed predicts nothing, neither how many times fit nor how long others take."""
    pace = 1e-5
    device = ImaginaryDevice(lambda kind, cell: pace)
    made = program(device, [(0, (100, 1, 1), True)] * 10)
    for times in (1, 1, 8, 1):
        made.run(times=times)
    sequence = device.sequence

    def failing(*args: Any) -> Any:
        raise DeviceError("no more")

    monkeypatch.setattr(device, "sequence", failing)
    with pytest.raises(DeviceError, match="no more"):
        made.run(depth=30.0)
    assert made.fitting(8) == 1
    monkeypatch.setattr(device, "sequence", sequence)
    made.run(times=8, depth=30.0)
    pace = 3e-4
    made.run(times=8, depth=30.0)  # nothing announced it
    device.submissions.clear()
    for _ in range(3):
        made.run(times=8, depth=30.0)
    assert device.longest() <= LIMIT_S


def test_deep_launches_are_cut_for_the_depth_that_is_announced() -> None:
    depth = 10
    device = ImaginaryDevice(lambda kind, cell: 1e-4 * depth if kind else 1e-5)
    made = program(device, [(0, (50, 1, 1), False), (1, (10, 10, 1), True)] * 3)
    for depth in (10, 10, 5000, 5000, 5000, 10, 10, 10):
        made.run(depth=depth)
        check_run(device, made)
        assert device.longest() <= max(LIMIT_S, 1e-4 * depth + OVERHEAD_S)


def test_workgroups_that_differ_twofold_stay_within_the_limit() -> None:
    """As under a causal mask: the last token's workgroup takes twice the mean."""
    device = ImaginaryDevice(lambda kind, cell: 2e-3 * cell[0] / 128)
    made = program(device, [(0, (128, 4, 1), True)] * 3)
    for _ in range(6):
        made.run()
        check_run(device, made)
        assert device.longest() <= LIMIT_S


def test_a_fast_device_gets_one_submission() -> None:
    device = ImaginaryDevice(lambda kind, cell: 1e-7)
    made = program(device, [(i % 4, (8, 2, 1), False) for i in range(200)])
    made.run()
    made.run()
    for _ in range(3):
        device.submissions.clear()
        made.run()
        assert len(device.submissions) == 1


def test_what_was_learnt_serves_other_programs() -> None:
    device = ImaginaryDevice(lambda kind, cell: 1e-3)
    steps = [(kind, (7, 5, 2), False) for kind in range(3)]
    first = program(device, steps)
    first.run()
    first.run()
    first.free()
    device.submissions.clear()
    device.ran.clear()
    second = program(device, steps * 4)
    second.run()
    check_run(device, second)
    assert len(device.submissions) <= 1.5 * 12 * 70 * 1e-3 / TARGET_S
    assert TARGET_S / 2 < device.longest() <= TARGET_S + OVERHEAD_S


def test_a_device_that_grows_slow_is_cut_for_after_one_run_and_merged_again() -> None:
    pace = 8e-5
    device = ImaginaryDevice(lambda kind, cell: pace)
    made = program(device, [(0, (10, 10, 1), False)] * 10)
    for _ in range(3):
        made.run()
    device.submissions.clear()
    made.run()
    assert len(device.submissions) == 1
    pace = 8e-4
    made.run()  # nothing announced it
    assert device.longest() == pytest.approx(0.8, rel=0.01)
    for _ in range(3):
        made.run()
        assert device.longest() <= RECUT_S
    pace = 8e-5
    for _ in range(4):
        made.run()
    device.submissions.clear()
    made.run()
    assert len(device.submissions) <= 3


def test_a_grid_of_one_is_learnt_when_nothing_compiles() -> None:
    device = ImaginaryDevice(lambda kind, cell: 1e-4)
    made = program(device, [(0, (1, 1, 1), False)])
    made.run()
    assert not device.pace.knows(made.launches[0].key)
    made.run()
    assert device.pace.predict(made.launches[0].key, 1.0) == pytest.approx(1e-4 + OVERHEAD_S)
    assert (device.pace.submissions, device.pace.longest_first_s) == (2, pytest.approx(COMPILING_S + 1.5e-4))
    assert device.pace.longest_s == pytest.approx(1e-4 + OVERHEAD_S)
