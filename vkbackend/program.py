"""A recorded list of launches: barriers derived from declared accesses, submissions cut by measured time, replayed.

A launch that reads what an earlier one wrote, or writes what an earlier one read or wrote, needs a barrier before
it; ``barriers()`` says before which launches. The companion layer puts one before every dispatch that it is not told
to overlap, and before the first command of every submission.

The first run of a launch that the device never saw learns its pace (vkbackend/pace.py); later runs replay segments,
each one submission, and measure every one. When what was measured, or more work than was measured, makes a segment
too long, the program is cut anew. A program whose runs prepare each other may run several times in one submission.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.errors import DeviceError
from vkbackend.kernel import Kernel
from vkbackend.pace import TARGET_S, Cost, Pace, Piece, Segment, Work, cut, outgrown


@dataclass(frozen=True)
class Launch:
    """One dispatch: kernel, buffers by binding name, constants, the grid in workgroups, and what bounds its work."""

    kernel: Kernel
    buffers: Mapping[str, Buffer]
    spec: Mapping[str, int]
    push: Mapping[str, int | float]
    grid: tuple[int, int, int]
    label: str
    deep: bool

    @cached_property
    def key(self) -> Hashable:
        """What launches that take equally long for each workgroup have in common."""
        constants = (tuple(sorted(values.items())) for values in (self.kernel.macros, self.spec, self.push))
        return self.kernel.file, *constants


@dataclass(frozen=True)
class LaunchTime:
    """Device time of one launch of a profiled run, in seconds."""

    label: str
    seconds: float


@dataclass
class _Replay:
    """The program ``times`` over as segments, and a sequence for each. Their pieces count launches on from one time to
    the next."""

    times: int
    segments: list[Segment] = field(default_factory=list)
    sequences: list[Any] = field(default_factory=list)

    def predict(self, work: Work) -> float:
        """Seconds of one time."""
        return sum(segment.predict(work) for segment in self.segments) / self.times

    def expect(self, seconds: float, work: Work) -> None:
        """Take ``seconds`` for one time, which another replay measured, for this one's, too."""
        ratio = seconds / predicted if (predicted := self.predict(work)) > 0 else 1.0
        for segment in self.segments:
            segment.took(ratio * segment.predict(work), work)


@dataclass
class _Recorded:
    """What a program made on the device: an algorithm for each launch, and replays by how often they run it."""

    algorithms: list[Any]
    barriers: list[bool]
    replays: dict[int, _Replay] = field(default_factory=dict)
    last: _Replay | None = None  # that ran
    paced: Pace | None = None  # that of the device when every launch's was known


class Program:
    """Launches in order; recorded at the first ``run`` and replayed after it. In ``workspace``, where it has one, they
    may leave what only launches behind them read."""

    def __init__(self, device: Device, name: str, workspace: Buffer | None = None) -> None:
        self.device = device
        self.name = name
        self.workspace = workspace
        self.launches: list[Launch] = []
        self._recorded: _Recorded | None = None

    def launch(
        self,
        kernel: Kernel,
        buffers: Mapping[str, Buffer],
        grid: tuple[int, int, int],
        *,
        spec: Mapping[str, int] | None = None,
        push: Mapping[str, int | float] | None = None,
        label: str = "",
        deep: bool = False,
    ) -> None:
        """Append one dispatch of ``grid`` workgroups; ``deep`` where its work grows with ``Work.depth``.

        Raises:
            DeviceError: the grid exceeds the device's limits.
            ValueError: the buffers or constants are not the declared ones, or the program was already recorded.
        """
        if self._recorded is not None:
            raise ValueError(f"program {self.name} is recorded already; expected launches before its first run")
        names = [name for name, _ in kernel.bindings]
        if set(names) != set(buffers):
            raise ValueError(
                f"kernel {kernel.file} was launched with buffers {sorted(buffers)}; expected {sorted(names)}"
            )
        limit = self.device.info.max_workgroup_count
        if any(not 0 < n <= most for n, most in zip(grid, limit, strict=True)):
            raise DeviceError(
                f"{label or kernel.file} needs a grid of {grid} workgroups; {self.device.info.name} allows {limit}: "
                "use a smaller chunk"
            )
        self.launches.append(Launch(kernel, dict(buffers), spec or {}, push or {}, grid, label or kernel.file, deep))

    def barriers(self) -> list[bool]:
        """For each launch, whether a barrier must stand before it."""
        read: set[int] = set()
        written: set[int] = set()
        needed = []
        for launch in self.launches:
            reads = {id(launch.buffers[n]) for n, access in launch.kernel.bindings if "r" in access}
            writes = {id(launch.buffers[n]) for n, access in launch.kernel.bindings if "w" in access}
            hazard = bool(reads & written or writes & (read | written))
            if hazard:
                read, written = set(), set()
            read |= reads
            written |= writes
            needed.append(hazard)
        return needed

    def run(self, items: float = 1.0, depth: float = 1.0, times: int = 1) -> None:
        """Submit the program, piece by piece where it is long, and wait for it.

        Args:
            items, depth: bounds of the data-dependent work of this run (``vkbackend.pace.Work``).
            times: how often to run it, in as few submissions as that takes. A recording for each is kept.

        Raises:
            DeviceLostError: the device was lost, or did not finish a submission in time.
        """
        work = Work(items, depth)
        recorded = self._recorded = self._recorded or self._create()
        while not self._paced(recorded):
            self._learn(recorded, work)
            times -= 1
            if times == 0:
                return
        replay = recorded.replays.setdefault(times, _Replay(times))
        if recorded.last is not None and recorded.last is not replay:
            replay.expect(recorded.last.predict(work), work)
        if not replay.segments or outgrown(replay.segments, work):
            self._cut(recorded, replay, work)
        recorded.last = replay
        for segment, sequence in zip(replay.segments, replay.sequences, strict=True):
            segment.took(self._submit(sequence), work)

    def fitting(self, most: int, items: float = 1.0, depth: float = 1.0) -> int:
        """How many ``times`` are predicted to fit one submission: a power of two, so that few are recorded, from 1 to
        ``most``."""
        recorded = self._recorded
        if recorded is None or not self._paced(recorded) or recorded.last is None:
            return 1
        seconds, times = recorded.last.predict(Work(items, depth)), 1
        while 2 * times <= most and 2 * times * seconds <= TARGET_S:
            times *= 2
        return times

    def _paced(self, recorded: _Recorded) -> bool:
        """Whether the device knows every launch's pace; asked once, for a pace that is known stays so."""
        if recorded.paced is not self.device.pace and all(self.device.pace.knows(each.key) for each in self.launches):
            recorded.paced, recorded.last = self.device.pace, None
        return recorded.paced is self.device.pace

    def profile(self, items: float = 1.0, depth: float = 1.0) -> list[LaunchTime]:
        """Run once with device timestamps; barriers are counted to the launch that they stand before."""
        times = [0.0] * len(self.launches)
        recorded = self._recorded = self._recorded or self._create()
        self._learn(recorded, Work(items, depth), times)
        return [LaunchTime(launch.label, t) for launch, t in zip(self.launches, times, strict=True)]

    def free(self) -> None:
        """Give back the recording; the program may be run again and is then recorded anew."""
        if self._recorded is None:
            return
        for replay in self._recorded.replays.values():
            self._forget(replay)
        for algorithm in self._recorded.algorithms:
            _destroy(algorithm)
        self._recorded = None

    def _create(self) -> _Recorded:
        companion = self.device.companion
        with companion.lock, companion.creating(f"program {self.name}"):
            return _Recorded([self._algorithm(launch) for launch in self.launches], self.barriers())

    def _algorithm(self, launch: Launch) -> Any:
        kernel = launch.kernel
        with self.device.companion.texel_bindings(kernel.texel_bindings):
            return self.device.manager.algorithm(
                [launch.buffers[name].tensor for name, _ in kernel.bindings],
                kernel.spirv(),
                list(launch.grid),
                kernel.pack_spec(self.device.subgroup_size, launch.spec),
                kernel.pack_push(launch.push),
            )

    def _sequence(self, recorded: _Recorded, pieces: Iterable[Piece], timestamps: int = 0) -> Any:
        """One submission of these pieces; a launch's barrier stands before its first piece only. Each time over begins
        with one, for all that was run before."""
        import kp

        companion, count = self.device.companion, len(self.launches)
        with companion.lock, companion.creating(f"program {self.name}"):
            sequence = self.device.sequence(f"program {self.name}", timestamps)
            for piece in pieces:
                again, index = divmod(piece.launch, count)
                begins = again > 0 and index == 0
                if piece.box.base != (0, 0, 0) or not (begins or recorded.barriers[index]):
                    companion.overlap()
                companion.dispatch_box(piece.box.base, piece.box.count)
                sequence.record(kp.OpAlgoDispatch(recorded.algorithms[index]))
        return sequence

    def _submit(self, sequence: Any, first: bool = False) -> float:
        seconds = self.device.run(sequence, f"program {self.name}")
        self.device.pace.submitted(seconds, first)
        return seconds

    def _run_once(
        self, recorded: _Recorded, pieces: list[Piece], times: list[float] | None, first: bool = False
    ) -> float:
        """Submit these pieces without keeping the recording; their device times are added to ``times``, by launch."""
        # Kompute never checks its query pool's size: one timestamp more than there are operations.
        sequence = self._sequence(recorded, pieces, 0 if times is None else len(pieces) + 1)
        try:
            seconds = self._submit(sequence, first)
            if times is not None:
                ticks = np.array(sequence.get_timestamps(), np.uint64)
                spent = np.diff(ticks).astype(np.float64) * self.device.info.timestamp_period_ns * 1e-9
                for piece, value in zip(pieces, spent, strict=True):
                    times[piece.launch] += float(value)
        finally:
            _destroy(sequence)
        return seconds

    def _learn(self, recorded: _Recorded, work: Work, times: list[float] | None = None) -> None:
        """Run once: launches of unknown pace piece by piece, the others between them as they are cut."""
        known: list[int] = []
        for index, launch in enumerate(self.launches):
            if self.device.pace.knows(launch.key):
                known.append(index)
                continue
            self._run_known(recorded, known, work, times)
            known = []
            self._probe(recorded, index, work, times)
        self._run_known(recorded, known, work, times)

    def _run_known(self, recorded: _Recorded, indices: list[int], work: Work, times: list[float] | None) -> None:
        segments = self._plan(indices, work)
        for segment in segments:
            segment.took(self._run_once(recorded, segment.pieces, times), work)
        self._settle(segments)

    def _probe(self, recorded: _Recorded, index: int, work: Work, times: list[float] | None) -> None:
        launch, pace = self.launches[index], self.device.pace
        probe = pace.probe(launch.key, launch.grid)
        while (box := probe.next()) is not None:
            first = not probe.warm
            probe.took(box, self._run_once(recorded, [Piece(index, box, 0.0)], times, first))
        if probe.pace is not None:
            pace.learn(launch.key, probe.pace, work.amount(launch.deep))

    def _plan(self, indices: Iterable[int], work: Work) -> list[Segment]:
        costs = {}
        for i in indices:
            launch = self._launch_of(i)
            costs[i] = Cost(launch.grid, self.device.pace.predict(launch.key, work.amount(launch.deep)), launch.deep)
        return cut(costs, work)

    def _launch_of(self, index: int) -> Launch:
        """A piece's launch, counted on from one time to the next."""
        return self.launches[index % len(self.launches)]

    def _cut(self, recorded: _Recorded, replay: _Replay, work: Work) -> None:
        self._forget(replay)
        segments = self._plan(range(replay.times * len(self.launches)), work)
        try:
            for segment in segments:
                replay.sequences.append(self._sequence(recorded, segment.pieces))
        except BaseException:
            self._forget(replay)  # half a program must not be run
            if recorded.last is replay:  # nothing is left of it to predict others by
                recorded.last = None
            raise
        replay.segments = segments

    def _forget(self, replay: _Replay) -> None:
        """Drop the segments; what they measured stays with the device."""
        self._settle(replay.segments)
        for sequence in replay.sequences:
            _destroy(sequence)
        replay.segments, replay.sequences = [], []

    def _settle(self, segments: Iterable[Segment]) -> None:
        """Tell the device what segments measured; of several pieces of one kind the slowest counts."""
        found: dict[Hashable, tuple[float, float]] = {}
        for segment in segments:
            for piece in segment.pieces:
                launch = self._launch_of(piece.launch)
                pace = piece.pace * segment.growth(launch.deep)
                if pace >= found.get(launch.key, (0.0, 0.0))[0]:
                    found[launch.key] = pace, segment.work.amount(launch.deep)
        for key, (pace, amount) in found.items():
            self.device.pace.learn(key, pace, amount)


def _destroy(made: Any) -> None:
    """Free a Kompute object, unless closing its device did."""
    if made.is_init():
        made.destroy()
