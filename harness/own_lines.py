"""What governs our own decoding along a path: its line in context, and what the device's peaks and launches explain.

    seconds = intercept + slope * C

is fitted repeat by repeat; repeats of all contexts are measured in turns, so that the spread of the repeats' lines is
what the samples say about them. The intercept is held against three parts that were measured apart: the weights'
bytes at the device's bandwidth, the path's arithmetic at its peak, and its launches at what an empty one costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.inference import Interval
from harness.roofline import Peaks, attention_flops_per_row, fit_line
from harness.stats import median, median_interval
from model.config import ModelConfig
from model.layout import Path, active_parameters, cache_bytes_per_token
from vkbackend.peaks import LaunchCost

Part = Literal["weights", "launches", "arithmetic"]
SMALL = 0.2  # a part that explains less of a token without context than this does not govern it
HELPS = 1.05  # a smaller quant that makes a token less faster than this does not help


@dataclass(frozen=True)
class Measured:
    """One file along one path at one context: each repeat's median seconds a token, and what was counted."""

    context: float
    seconds: tuple[float, ...]
    cache_bytes: int
    profile: Mapping[str, float]  # share of device time: "cache", "weights", "other"


@dataclass(frozen=True)
class Subject:
    """What was measured, as far as the arithmetic needs it."""

    file: str
    config: ModelConfig
    path: Path
    active_bytes: int
    launches: int


@dataclass(frozen=True)
class OwnLine:
    """The line with its intervals, and the seconds that each part of the intercept takes."""

    intercept: Interval
    slope: Interval
    parts: Mapping[Part, float]
    slope_memory: float  # seconds per cached token that the cache's bytes take at the measured bandwidth
    slope_arithmetic: float  # and that the arithmetic on them takes at the measured peak

    @property
    def crossing(self) -> float | None:
        """The context from which more than half of a token's time comes with it; None where it is not seen to."""
        return max(0.0, self.intercept.value) / self.slope.value if self.slope.low > 0 else None

    @property
    def governs(self) -> tuple[Part | None, float]:
        """The part that explains most of a token without context, and its share; None where none explains much."""
        part = max(self.parts, key=lambda name: self.parts[name])
        return (part if self.share(part) >= SMALL else None), self.share(part)

    def share(self, part: Part) -> float:
        """How much of a token without context that part explains, at most 1."""
        return min(1.0, self.parts[part] / max(self.intercept.value, self.parts[part]))

    def seconds(self, context: float) -> float:
        return self.intercept.value + self.slope.value * context

    def gain_of_half_the_weights(self, context: float) -> float:
        """How many times faster a token would be if the weights' bytes, read at the measured bandwidth, were halved."""
        total = max(self.seconds(context), self.parts["weights"])
        return total / (total - self.parts["weights"] / 2)


def own_line(subject: Subject, rows: Sequence[Measured], peaks: Peaks, cost: LaunchCost) -> OwnLine | None:
    """The line through all repeats of rows at two contexts or more; None for fewer."""
    lines = []
    for repeat in zip(*(row.seconds for row in rows), strict=True):
        line = fit_line([row.context for row in rows], repeat, relative=True)
        if line is None:
            return None
        lines.append(line)
    weights = subject.active_bytes / peaks.bandwidth
    return OwnLine(
        Interval(*median_interval([line.intercept for line in lines])),
        Interval(*median_interval([line.slope for line in lines])),
        {
            "weights": weights,
            "launches": subject.launches * cost.launch + cost.submission,
            "arithmetic": 2 * active_parameters(subject.config) / peaks.flops,
        },
        cache_bytes_per_token(subject.config, subject.path.layout, subject.path.cache_type) / peaks.bandwidth,
        attention_flops_per_row(subject.config, subject.path) / peaks.flops,
    )


def medians(repeats: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Each repeat's median."""
    return tuple(median(repeat) for repeat in repeats)
