"""How long launches take on a device, learnt by running them, and how a program is cut so that none takes too long.

amdgpu resets a queue after about 2 s, and a desktop on the same GPU stalls for as long as one submission runs. LIMIT_S
is what none should pass. So submissions are cut for TARGET_S, and cut anew when one is predicted to pass RECUT_S, which
leaves room for a device that is busy with something else now and then. What is learnt is seconds per workgroup, by
launch key (kernel, constants, push constants), and kept with the device: layers alike, other programs and later
sessions need not learn it again.

How much a launch does may change from run to run, with the same grid: ``Work`` bounds that, so that a jump is foreseen.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

# Seconds. A launch is cut by its mean workgroup, and causal attention's last ones take twice the mean.
TARGET_S, RECUT_S, LIMIT_S = 0.1, 0.18, 0.25
_FINER = 4  # so many times more segments than the target asks for are merged again

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Work:
    """Upper bounds of how data-dependent work grows between two runs of one program, in any unit.

    Attributes:
        items: what every launch's work is at most proportional to (tokens of a chunk).
        depth: what a ``deep`` launch's work is at most proportional to besides (rows of a cache that each item reads).
    """

    items: float = 1.0
    depth: float = 1.0

    def amount(self, deep: bool) -> float:
        """The bound for one launch."""
        return self.items * self.depth if deep else self.items


@dataclass(frozen=True)
class Box:
    """Workgroups ``base`` to ``base + count`` of a grid."""

    base: Grid
    count: Grid

    @property
    def groups(self) -> int:
        """Workgroups in it."""
        return math.prod(self.count)

    def halves(self) -> tuple[Box, Box]:
        """Cut across the longest axis, the first half the larger; only for more than one workgroup."""
        axis = max(range(3), key=lambda i: self.count[i])
        first = -(-self.count[axis] // 2)

        def part(offset: int, length: int) -> Box:
            base, count = list(self.base), list(self.count)
            base[axis] += offset
            count[axis] = length
            return Box((base[0], base[1], base[2]), (count[0], count[1], count[2]))

        return part(0, first), part(first, self.count[axis] - first)

    def pieces(self, most: int) -> Iterator[Box]:
        """Boxes of at most ``most`` workgroups (at least 1) that together are this one."""
        if self.groups <= max(1, most):
            yield self
            return
        for half in self.halves():
            yield from half.pieces(most)


def whole(grid: Grid) -> Box:
    """The box of a whole grid."""
    return Box((0, 0, 0), grid)


@dataclass
class Probe:
    """Learns the pace of a launch while running it: pieces to run, each told how long it took.

    The first piece is one workgroup; unless the kernel is ``warm`` it does not count, for some drivers compile then.
    After it no piece has more workgroups than all counted before it together or is predicted to pass TARGET_S.
    """

    grid: Grid
    warm: bool = False
    _rest: list[Box] = field(init=False)
    _groups: int = 0
    _seconds: float = 0.0
    _last: float = 0.0

    def __post_init__(self) -> None:
        self._rest = [whole(self.grid)]

    def next(self) -> Box | None:
        """The piece to run now; None when the grid is done."""
        if not self._rest:
            return None
        most = max(1, self._groups)
        if self.pace:
            most = max(1, min(most, int(TARGET_S / self.pace)))
        box = self._rest.pop()
        while box.groups > most:
            box, other = box.halves()
            self._rest.append(other)
        return box

    def took(self, box: Box, seconds: float) -> None:
        """The piece that ``next`` gave was run."""
        if not self.warm:
            self.warm = True
            return
        self._groups += box.groups
        self._seconds += seconds
        self._last = seconds / box.groups

    @property
    def pace(self) -> float | None:
        """Seconds per workgroup so far: the mean, or the last piece's where that is more; None while nothing counts."""
        return max(self._seconds / self._groups, self._last) if self._groups else None


@dataclass(frozen=True)
class Piece:
    """A box of the program's ``launch``-th launch; ``pace`` is the seconds per workgroup that it was cut for."""

    launch: int
    box: Box
    pace: float


@dataclass(frozen=True)
class Cost:
    """A launch as planning sees it; ``pace`` in seconds per workgroup."""

    grid: Grid
    pace: float
    deep: bool = False


@dataclass
class Segment:
    """Pieces of one submission, with the seconds it is predicted to take at ``work``.

    ``flat_s`` is the part of launches that are not deep; measuring corrects both parts alike.
    """

    pieces: list[Piece]
    flat_s: float
    deep_s: float
    work: Work
    planned: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        self.planned = self.flat_s, self.deep_s

    def _parts(self, work: Work) -> tuple[float, float]:
        flat = self.flat_s * max(1.0, work.amount(False) / self.work.amount(False))
        return flat, self.deep_s * max(1.0, work.amount(True) / self.work.amount(True))

    def predict(self, work: Work) -> float:
        """Seconds at ``work``: no less than measured, and more in proportion where there may be more work."""
        return sum(self._parts(work))

    def took(self, seconds: float, work: Work) -> None:
        """Correct the prediction by a measurement at ``work``."""
        flat, deep = self._parts(work)
        ratio = seconds / (flat + deep) if flat + deep > 0 else 1.0
        self.flat_s, self.deep_s, self.work = flat * ratio, deep * ratio, work

    def growth(self, deep: bool) -> float:
        """What was measured over what was planned, for launches that are ``deep`` or not."""
        now, planned = (self.deep_s, self.planned[1]) if deep else (self.flat_s, self.planned[0])
        return now / planned if planned > 0 else 1.0

    @property
    def divisible(self) -> bool:
        """Whether it is more than one workgroup."""
        return len(self.pieces) > 1 or self.pieces[0].box.groups > 1


def cut(costs: Mapping[int, Cost], work: Work, target: float = TARGET_S) -> list[Segment]:
    """The launches, by number and in order, as segments predicted to take at most ``target`` seconds.

    Only a single workgroup that takes longer is a longer segment, by itself. Every workgroup is in exactly one piece.
    """
    segments: list[Segment] = []
    for index, cost in costs.items():
        groups = math.prod(cost.grid)
        most = groups if groups * cost.pace <= target else int(target / cost.pace)
        for box in whole(cost.grid).pieces(most):
            seconds = box.groups * cost.pace
            if not segments or segments[-1].flat_s + segments[-1].deep_s + seconds > target:
                segments.append(Segment([], 0.0, 0.0, work))
            last = segments[-1]
            last.pieces.append(Piece(index, box, cost.pace))
            last.flat_s += 0.0 if cost.deep else seconds
            last.deep_s += seconds if cost.deep else 0.0
    for segment in segments:
        segment.planned = segment.flat_s, segment.deep_s
    return segments


def outgrown(segments: Sequence[Segment], work: Work) -> bool:
    """Whether a program should be cut anew before it runs at ``work``: too coarse, or far finer than it needs to be."""
    predicted = [segment.predict(work) for segment in segments]
    if any(p > RECUT_S and s.divisible for p, s in zip(predicted, segments, strict=True)):
        return True
    return len(segments) > 1 and _FINER * sum(predicted) < TARGET_S * len(segments)


@dataclass
class Pace:
    """What one device has learnt, and what it has submitted.

    Attributes:
        submissions: how many submissions of programs there were.
        longest_s: the longest of them, in seconds, the first one of each kernel left out: some drivers compile in it.
        longest_first_s: the longest of those first ones, each a single workgroup.
    """

    submissions: int = 0
    longest_s: float = 0.0
    longest_first_s: float = 0.0
    _known: dict[Hashable, tuple[float, float]] = field(default_factory=dict)
    _warm: set[Hashable] = field(default_factory=set)

    def knows(self, key: Hashable) -> bool:
        """Whether this key's pace was measured."""
        return key in self._known

    def probe(self, key: Hashable, grid: Grid) -> Probe:
        """What to run a launch of unknown pace by."""
        probe = Probe(grid, key in self._warm)
        self._warm.add(key)
        return probe

    def learn(self, key: Hashable, seconds_per_group: float, amount: float) -> None:
        """Set a key's pace, measured at ``amount`` of work."""
        self._known[key] = seconds_per_group, amount

    def predict(self, key: Hashable, amount: float) -> float:
        """Seconds per workgroup at ``amount`` of work: at least what was measured, and in proportion to more work."""
        seconds, measured = self._known[key]
        return seconds * max(1.0, amount / measured)

    def forget_longest(self) -> None:
        """Begin anew with what the longest submission was."""
        self.longest_s = self.longest_first_s = 0.0

    def submitted(self, seconds: float, first: bool = False) -> None:
        """Count one submission."""
        self.submissions += 1
        if first:
            self.longest_first_s = max(self.longest_first_s, seconds)
        else:
            self.longest_s = max(self.longest_s, seconds)
