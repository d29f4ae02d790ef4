"""Samples to figures: medians, spreads, and ratios that say when two sets of samples do not tell a difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Student's t, two-sided 95%, by degrees of freedom from 1; beyond the table the last entry, which is a little too wide.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Ratio:
    """`value` with its 95% interval; `low` and `high` are None where there are fewer than two pairs of repeats."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def distinct(self) -> bool | None:
        """Whether the interval excludes 1; None when there is no interval to say so."""
        if self.low is None or self.high is None:
            return None
        return not self.low <= 1.0 <= self.high


def median(samples: Sequence[float]) -> float:
    return float(np.median(np.asarray(samples, dtype=np.float64)))


def mean(samples: Sequence[float]) -> float:
    return float(np.mean(np.asarray(samples, dtype=np.float64)))


def spread(samples: Sequence[float]) -> float:
    """The median distance from the median, which a few samples taken while the machine was busy do not move."""
    middle = median(samples)
    return median([abs(x - middle) for x in samples])


def deviation(samples: Sequence[float]) -> float:
    """Standard deviation of a sample (n - 1), 0 for one sample, as llama-bench prints it."""
    return float(np.std(np.asarray(samples, dtype=np.float64), ddof=1)) if len(samples) > 1 else 0.0


def half_width(samples: Sequence[float]) -> float:
    """Half of the 95% interval of the samples' mean, Student's; two samples at least."""
    return _T95[min(len(samples) - 1, len(_T95)) - 1] * deviation(samples) / math.sqrt(len(samples))


def median_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the order statistics around it that hold the true median with at least 95%, whatever the
    distribution; with fewer than six samples, where all of them hold it with less, Student's around the mean."""
    ordered = sorted(samples)
    count = len(ordered)
    if count < 6:
        half, middle = half_width(ordered), mean(ordered)
        return middle, middle - half, middle + half
    outside = 0.0  # probability that the median lies below the order statistic `skipped`
    skipped = -1
    while outside + math.comb(count, skipped + 1) / 2**count <= 0.025:
        skipped += 1
        outside += math.comb(count, skipped) / 2**count
    return median(ordered), ordered[skipped], ordered[count - 1 - skipped]


def paired_ratio(numerator: Sequence[Sequence[float]], denominator: Sequence[Sequence[float]]) -> Ratio:
    """Ratio of the medians of all samples; the interval comes from repeat i of the one over repeat i of the other.

    Repeats are measured in turns, so a drift of the machine's speed falls on both sides of a pair and cancels. The
    interval is Student's over the logarithms of the pairs' ratios (of medians); no interval without two pairs.
    """
    value = median([x for repeat in numerator for x in repeat]) / median([x for repeat in denominator for x in repeat])
    if len(numerator) != len(denominator) or len(numerator) < 2:
        return Ratio(value)
    logs = [math.log(median(a) / median(b)) for a, b in zip(numerator, denominator, strict=True)]
    half = half_width(logs)
    return Ratio(value, math.exp(mean(logs) - half), math.exp(mean(logs) + half))
