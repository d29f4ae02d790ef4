"""Whether two sets of repeats differ: exact rank tests, their correction over many metrics, bootstrap intervals.

A value here is one repeat (or one run) reduced to a figure: what lies closer together, such as the tokens of one decode
run, is correlated, and counting it as independent would find differences that are none.

The tests are exact permutation distributions of ranks, mid-ranks where values tie, counted by convolution: Wilcoxon's
rank sum (Mann-Whitney's U) for two independent sets, his signed rank for turns that were measured in pairs. Both are
two-sided: twice the smaller tail, at most 1.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLES = (
    4000  # the ends of a 95% interval then lie within 0.7% of probability (2 sqrt(0.025 * 0.975 / 4000) = 0.005)
)
_EXACT_UP_TO = 60  # values of one set; beyond it the sums' distribution is normal to far below any level used here


def rank_sum_test(base: Sequence[float], new: Sequence[float]) -> float:
    """p of two independent sets having one distribution; 1 where a set is empty."""
    if not base or not new:
        return 1.0
    ranks = _double_ranks(np.asarray([*base, *new], np.float64))
    count, total = len(new), int(ranks[len(base) :].sum())
    if max(len(base), len(new)) > _EXACT_UP_TO:
        return _normal_p(total, count * ranks.mean(), count * len(base) * ranks.var(ddof=1) / len(ranks))
    # ways[k, s]: subsets of k values whose doubled ranks add up to s.
    ways = np.zeros((count + 1, int(np.sort(ranks)[-count:].sum()) + 1))
    ways[0, 0] = 1.0
    for rank in ranks.tolist():
        ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank].copy()
    return _two_sided(ways[count], total)


def signed_rank_test(differences: Sequence[float]) -> float:
    """p of paired differences lying symmetrically about 0; pairs without a difference are left out, 1 without pairs."""
    values = np.asarray([d for d in differences if d], np.float64)
    if not len(values):
        return 1.0
    ranks = _double_ranks(np.abs(values))
    total = int(ranks[values > 0].sum())
    if len(values) > _EXACT_UP_TO:
        return _normal_p(total, ranks.sum() / 2, float((ranks.astype(np.float64) ** 2).sum()) / 4)
    ways = np.zeros(int(ranks.sum()) + 1)  # sets of pairs whose doubled ranks add up to the index
    ways[0] = 1.0
    for rank in ranks.tolist():
        ways[rank:] += ways[: len(ways) - rank].copy()
    return _two_sided(ways, total)


def least_p(base: int, new: int, paired: bool) -> float:
    """The smallest p that so many values can give: with it, whether a test can find anything at all."""
    if paired:
        return signed_rank_test([1.0 + i for i in range(min(base, new))])
    return rank_sum_test([float(i) for i in range(base)], [float(base + i) for i in range(new)])


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected so that all of a family's false alarms together stay below a level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [1.0] * len(p_values), 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[index]))
        corrected[index] = largest
    return corrected


def ratio_of_medians(base: Sequence[float], new: Sequence[float]) -> float:
    return float(np.median(new) / np.median(base))


def median_ratio(base: Sequence[float], new: Sequence[float]) -> float:
    """The median of the pairs' ratios: a drift that both of a pair share cancels."""
    return float(np.median(np.asarray(new) / np.asarray(base)))


def ratio_interval(
    base: Sequence[float], new: Sequence[float], paired: bool, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """The bootstrap's percentile interval of ``median_ratio`` (paired) or ``ratio_of_medians``, drawing whole repeats
    with replacement, in pairs where they are pairs."""
    rng = np.random.default_rng(seed)
    a, b = np.asarray(base, np.float64), np.asarray(new, np.float64)
    if paired:
        found = np.median((b / a)[rng.integers(len(a), size=(RESAMPLES, len(a)))], axis=1)
    else:
        medians = [np.median(x[rng.integers(len(x), size=(RESAMPLES, len(x)))], axis=1) for x in (a, b)]
        found = medians[1] / medians[0]
    low, high = np.quantile(found, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def _double_ranks(values: Values) -> NDArray[np.int64]:
    """Twice the ranks from 1, mid-ranks for ties, so that all are whole."""
    ordered = np.sort(values)
    return np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") + 1


def _two_sided(ways: Values, total: int) -> float:
    tails = ways[: total + 1].sum(), ways[total:].sum()
    return min(1.0, 2 * float(min(tails) / ways.sum()))


def _normal_p(total: float, mean: float, variance: float) -> float:
    from math import erfc, sqrt

    return erfc(abs(total - mean) / sqrt(2 * variance)) if variance else 1.0
