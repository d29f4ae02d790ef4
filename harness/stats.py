"""Samples to figures: medians, spreads, and ratios that say when two sets of samples do not tell a difference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000
_SEED = 20  # fixed: the same samples always give the same interval
_LOW, _HIGH = 2.5, 97.5


@dataclass(frozen=True)
class Ratio:
    """`value` with its 95% interval; `low` and `high` are None where one side has a single sample."""

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


def deviation(samples: Sequence[float]) -> float:
    """Standard deviation of a sample (n - 1), 0 for one sample, as llama-bench prints it."""
    return float(np.std(np.asarray(samples, dtype=np.float64), ddof=1)) if len(samples) > 1 else 0.0


def ratio_of_medians(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """median(numerator) / median(denominator), with a percentile bootstrap interval when both have two samples or
    more."""
    value = median(numerator) / median(denominator)
    if min(len(numerator), len(denominator)) < 2:
        return Ratio(value)
    rng = np.random.default_rng(_SEED)
    upper, lower = (
        np.median(rng.choice(np.asarray(samples, dtype=np.float64), (_RESAMPLES, len(samples))), axis=1)
        for samples in (numerator, denominator)
    )
    low, high = np.percentile(upper / lower, [_LOW, _HIGH])
    return Ratio(value, float(low), float(high))
