"""Which cache layout explains a runtime's tokens a second at several contexts: a posterior over the candidates.

The model of one decoded token with C tokens cached:

    seconds = intercept + slope * C,  intercept = slowdown * weights / bandwidth,  slope = slowdown * cache / bandwidth

where `weights` are the bytes that a token reads whatever the context, `cache` a layout's bytes per cached token, and
each slowdown says how many times longer than the bandwidth allows the runtime takes: 1 at best, nothing reads faster.
They differ for weights and cache, since different kernels read them, and the intercept's holds launch overhead too. So
neither bandwidth nor cache bytes follow from a line alone, and a layout's likelihood integrates over what slowdowns
runtimes are known to have. What the measured rates say about the line is the same for all layouts: their errors are
relative, of a size that is estimated with everything else, and the rounding of what was printed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.layouts import Candidate

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One measured rate, tokens a second, with `context` tokens cached on average while it was measured.

    `rounding` is half of the last digit that was printed, `deviation` the standard error that was printed with it.
    """

    context: float
    rate: float
    rounding: float = 0.0
    deviation: float = 0.0

    @property
    def seconds(self) -> float:
        return 1 / self.rate

    @property
    def known_error(self) -> float:
        """Relative standard error of the rate as far as the print tells it; a rounding error is uniform."""
        return math.hypot(self.rounding / math.sqrt(3), self.deviation) / self.rate


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Likely:
    """A candidate, its share of the posterior, and what it would mean: `bandwidth` is all bytes that it reads at the
    points over the line's seconds there, `bytes_per_token` the slope times that bandwidth, for the formula to match."""

    candidate: Candidate
    probability: float
    bandwidth: float
    bytes_per_token: Interval


@dataclass(frozen=True)
class Inference:
    """`none` is the probability that no candidate explains the line; `error` the relative error of a point that the
    line leaves, as a median; `intercept` in seconds, `slope` in seconds per cached token."""

    likely: tuple[Likely, ...]
    none: float
    intercept: Interval
    slope: Interval
    error: float

    @property
    def best(self) -> Likely:
        return max(self.likely, key=lambda likely: likely.probability)


@dataclass(frozen=True)
class Slowdown:
    """How many times longer than its bytes at full bandwidth a part of a token takes, as a density over its logarithm:
    two half normals that meet at `typical`, cut off below 1."""

    typical: float
    faster: float  # standard deviations of the logarithm, on either side
    slower: float

    def density(self, slowdown: Array) -> Array:
        """Density over the logarithm of ``slowdown``; 0 below 1."""
        log = np.log(slowdown / self.typical)
        sides = np.where(log < 0, self.faster, self.slower)
        cut = 0.5 * math.erf(math.log(self.typical) / (self.faster * math.sqrt(2)))
        mass = math.sqrt(2 * math.pi) * (self.faster * cut + self.slower / 2)
        return np.where(slowdown >= 1, np.exp(-0.5 * (log / sides) ** 2) / mass, 0.0)


@dataclass(frozen=True)
class Slowdowns:
    """What to expect of a processor: of weights, of a cache per head and of a latent one."""

    weights: Slowdown
    per_head: Slowdown
    latent: Slowdown


# What runtimes were seen to take. On GPUs: weights at depth 0 1.6 (8060S, llama.cpp Vulkan, Q4_K_M and Q8), 3.3 (7900
# XTX); a cache per head 2.2 (780M, Ollama), 1.3 (lavapipe, this project); a latent cache 2.7 to 3.0 (8060S), 13 (7900
# XTX), 7 (lavapipe, this project): every row is worked on by all heads, so arithmetic or repeated reads may govern.
# On CPUs that arithmetic governs, and by how much depends on the program: 22 to 44 (llama.cpp on one core of 10 to 20
# GB/s, three layers of GLM-4.7-Flash), about 1 (ik_llama.cpp as a user reported it).
DEFAULT_PROCESSOR = "gpu"
SLOWDOWNS = {
    "gpu": Slowdowns(Slowdown(1.7, 0.35, 0.9), Slowdown(1.9, 0.4, 0.5), Slowdown(2.8, 0.6, 0.8)),
    "cpu": Slowdowns(Slowdown(1.7, 0.35, 0.9), Slowdown(2.2, 0.5, 0.7), Slowdown(10.0, 1.2, 1.2)),
}

# A cache is f16 unless its user asked for another type, in every runtime known here.
_TYPE_WEIGHTS = {"f32": 0.02, "f16": 0.8, "q8_0": 0.14, "q4_0": 0.06}
_NONE_WEIGHT = 0.05  # that something else governs: the prior of `none`, spread evenly over the whole grid of slopes
_RAN_THOUGH_TOO_LARGE, _REFUSED_THOUGH_IT_FITS = 0.05, 0.1
_BANDWIDTH_ERROR = 0.06  # standard deviation of a stated bandwidth's logarithm: by the bus or as read, warm or cold
_ANY_BANDWIDTH = (5e9, 4e12)  # bytes/s, where none is stated: an old laptop's memory to a data centre's card
_ERROR_TYPICAL, _ERROR_SPREAD = 0.04, 0.8  # a measured rate's relative error: median and deviation of its logarithm
_ERRORS = np.geomspace(0.003, 0.6, 18)
_SLOPES_LOG = math.log(1e5)  # how far apart the slopes are, as a logarithm, over which `none` is spread
_QUANTILES = (0.025, 0.5, 0.975)
_COARSE, _FINE = 60, 120  # cells a side
_WIDE = 1.5  # half a side of the coarse grid, in logarithms of seconds


def infer(
    points: Sequence[Point],
    weight_bytes: float,
    found: Sequence[Candidate],
    bandwidth: float | None = None,
    factors: Sequence[float] | None = None,
    processor: str = DEFAULT_PROCESSOR,
) -> Inference:
    """The posterior over the candidates ``found``, and the line given the best of them.

    ``weight_bytes`` are read per decoded token; ``bandwidth`` in bytes/s is what the memory gives at most, None where
    it is not known; ``factors`` are likelihoods of what else is known, candidate by candidate; ``processor``
    is one of SLOWDOWNS. Needs two different contexts.
    """
    line, expected = _Line.from_points(points), SLOWDOWNS[processor]
    peaks = _bandwidths(bandwidth)
    by_weights = [share * expected.weights.density(line.intercepts * peak / weight_bytes) for peak, share in peaks]
    posteriors = []
    for candidate, factor in zip(found, factors or [1.0] * len(found), strict=True):
        slowdown = expected.latent if candidate.latent else expected.per_head
        prior = sum(
            weights * slowdown.density(line.slopes * peak / candidate.bytes_per_token)
            for (peak, _), weights in zip(peaks, by_weights, strict=True)
        )
        posteriors.append(_prior_weight(candidate, found) * factor * prior * line.likelihood)
    anything = _NONE_WEIGHT / _SLOPES_LOG * sum(by_weights) * line.likelihood
    masses = np.array([posterior.sum() for posterior in posteriors])
    nothing = anything.sum()
    total = masses.sum() + nothing
    chosen = posteriors[int(masses.argmax())] if masses.max() >= nothing else anything
    chosen = chosen / chosen.sum()
    intercept, slope = _interval(line.intercepts, chosen), _interval(line.slopes, chosen)
    sum_contexts = sum(point.context for point in points)
    seconds = len(points) * line.intercepts + sum_contexts * line.slopes
    likely = []
    for candidate, mass in zip(found, masses, strict=True):
        # By the line's seconds, not the points': a rate printed as 0.6 is known to 8% only, the line better.
        rates = (len(points) * weight_bytes + sum_contexts * candidate.bytes_per_token) / seconds
        per_token = _interval(np.multiply(line.slopes, rates, out=np.zeros_like(rates), where=chosen > 0), chosen)
        likely.append(Likely(candidate, float(mass / total), _interval(rates, chosen).value, per_token))
    return Inference(tuple(likely), float(nothing / total), intercept, slope, float((chosen * line.errors).sum()))


def memory_factors(
    found: Sequence[Candidate], weight_bytes: int, memory: int, ran: Sequence[float], refused: Sequence[int]
) -> list[float]:
    """For each candidate, how likely its ``memory`` bytes would have led to what was seen: contexts that ran and others
    that ran out of memory. A runtime may keep part of a cache elsewhere, or refuse what would fit."""
    factors = []
    for candidate in found:
        room = (memory - weight_bytes) / candidate.bytes_per_token
        odd = (_RAN_THOUGH_TOO_LARGE if max(ran) > room else 1.0) * (
            _REFUSED_THOUGH_IT_FITS if refused and min(refused) <= room else 1.0
        )
        factors.append(odd)
    return factors


@dataclass(frozen=True)
class _Line:
    """The likelihood of the points for every line of a grid, and the error of a point that each leaves; the grid is
    even in the logarithms of the seconds at the shortest and at the longest context, which the points determine."""

    intercepts: Array
    slopes: Array
    likelihood: Array  # times the cell's size in logarithms of intercept and slope; 0 where either is not positive
    errors: Array

    @classmethod
    def from_points(cls, points: Sequence[Point]) -> _Line:
        contexts = np.array([point.context for point in points])
        logs = np.log([point.seconds for point in points])
        known = np.array([point.known_error for point in points])
        first, last = logs[contexts.argmin()], logs[contexts.argmax()]
        starts, ends = (np.linspace(at - _WIDE, at + _WIDE, _COARSE) for at in (first, last))
        # The coarse grid finds where the likelihood lies, the fine one covers that.
        for cells in (_COARSE, _FINE):
            likelihood, _ = _likelihood(contexts, logs, known, starts, ends)
            starts = _around(starts, likelihood.sum(axis=1), cells)
            ends = _around(ends, likelihood.sum(axis=0), cells)
        likelihood, errors = _likelihood(contexts, logs, known, starts, ends)
        first_seconds, last_seconds = np.exp(starts)[:, None], np.exp(ends)[None, :]
        reach = contexts.max() - contexts.min()
        slopes = (last_seconds - first_seconds) / reach
        intercepts = first_seconds - slopes * contexts.min()
        positive = (slopes > 0) & (intercepts > 0)
        slopes, intercepts = np.where(positive, slopes, np.inf), np.where(positive, intercepts, np.inf)
        cell = first_seconds * last_seconds / (reach * intercepts * slopes)
        return cls(intercepts, slopes, np.where(positive, likelihood * cell, 0.0), errors)


def _likelihood(contexts: Array, logs: Array, known: Array, starts: Array, ends: Array) -> tuple[Array, Array]:
    """For lines by the logarithms of their seconds at the shortest and the longest context: their likelihood over the
    prior of the points' relative error, at most 1, and that error's mean."""
    reach = contexts.max() - contexts.min()
    share = (contexts - contexts.min()) / reach
    first, last = np.exp(starts)[:, None], np.exp(ends)[None, :]
    prior = np.exp(-0.5 * (np.log(_ERRORS / _ERROR_TYPICAL) / _ERROR_SPREAD) ** 2)
    exponents = np.repeat(np.log(prior)[:, None, None], len(starts), axis=1).repeat(len(ends), axis=2)
    for log, own, part in zip(logs, known, share, strict=True):
        line = first + (last - first) * part
        residual = log - np.log(np.maximum(line, 1e-300))
        variance = _ERRORS**2 + own**2
        exponents -= (0.5 * np.log(variance))[:, None, None] + residual**2 / (2 * variance)[:, None, None]
    each = np.exp(exponents - exponents.max())
    likelihood = each.sum(axis=0)
    errors = np.tensordot(_ERRORS, each, axes=1) / np.maximum(likelihood, 1e-300)
    return likelihood, errors


def _around(axis: Array, mass: Array, cells: int) -> Array:
    """An even axis over all that has mass, one cell more on either side."""
    step = axis[1] - axis[0]
    inside = axis[mass > 1e-7 * mass.max()]
    return np.linspace(inside[0] - step, inside[-1] + step, cells)


def _bandwidths(stated: float | None) -> list[tuple[float, float]]:
    """Bandwidths to integrate over, each with its probability."""
    if stated is None:
        return [(float(peak), 1 / 30) for peak in np.geomspace(*_ANY_BANDWIDTH, 30)]
    steps = np.linspace(-2, 2, 5)
    shares = np.exp(-0.5 * steps**2)
    return [
        (stated * math.exp(_BANDWIDTH_ERROR * step), share / shares.sum())
        for step, share in zip(steps, shares, strict=True)
    ]


def _prior_weight(candidate: Candidate, found: Sequence[Candidate]) -> float:
    """A candidate's probability before any point is seen: every layout alike, the cache types as their users are."""
    of_layout = sum(_TYPE_WEIGHTS[other.cache_type] for other in found if other.layout is candidate.layout)
    layouts = len({other.layout for other in found})
    return (1 - _NONE_WEIGHT) * _TYPE_WEIGHTS[candidate.cache_type] / of_layout / layouts


def _interval(values: Array, mass: Array) -> Interval:
    order = values.ravel().argsort()
    ordered, share = values.ravel()[order], mass.ravel()[order].cumsum()
    low, middle, high = (float(ordered[min(int(share.searchsorted(q)), len(ordered) - 1)]) for q in _QUANTILES)
    return Interval(middle, low, high)
