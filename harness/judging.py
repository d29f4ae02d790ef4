"""The verdicts of `regress`: each metric of two sides faster, slower, no different, or not to be judged, and why.

A timed metric is slower or faster only where all of this holds: the rank test, corrected over all metrics (Holm), finds
it below ``level``; the bootstrap's interval of the ratio excludes 1; the difference is at least ``effect``; and it is
larger than the noise, that is what equal code was found to differ by: in an A/A run, between the runs of one side, or
among the repeats where a side is a single run. There is no difference only where the interval rules out a change as
large as ``noise``; else the machine was too noisy to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot, log
from statistics import median

from harness.metrics import Side, Timed
from harness.significance import (
    holm,
    least_p,
    median_ratio,
    rank_sum_test,
    ratio_interval,
    ratio_of_medians,
    signed_rank_test,
)
from harness.stats import deviation
from vkbackend.errors import DeviceError, InputError, LatentvkError

LEVEL = 0.05  # false alarms in all metrics of a comparison together
EFFECT = 0.02  # below it a difference is not worth a word
NOISE = 0.05  # the least slowdown that must be found: a machine noisier than this cannot find it
BUSY = 0.25  # processors that other programs may keep busy meanwhile
# A single run says nothing of how far runs of one code lie apart. On a machine that drifts its median may lie anywhere
# among its repeats: so their scatter stands in, this many standard deviations of both sides' together. With 4.5 of them
# recorded runs of one code raised false alarms in 9% of comparisons, with 5 in 5%, with 5.5 in 2%. Those runs had a
# program of the lowest priority beside them; where both records say that nothing was, fewer are enough.
_SCATTER, _SCATTER_ALONE = 5.5, 2.5
_RUNS = 6  # from so many runs a side on the run is the unit, as repeats within a run are not independent
_SEED = 1

SLOWER, FASTER, SAME = "slower", "faster", "no difference"
NOISY, FEW = "too noisy", "too few repeats"
MORE, LESS, EQUAL, GONE, MISSING, ADDED = "more", "less", "equal", "gone", "not in NEW", "not in BASE"
REGRESSIONS = (SLOWER, MORE, GONE)


@dataclass(frozen=True)
class Rules:
    """What counts as a difference; all but ``busy`` (processors) are shares."""

    level: float = LEVEL
    effect: float = EFFECT
    noise: float = NOISE
    busy: float = BUSY


@dataclass(frozen=True)
class Finding:
    """One metric's verdict. ``base`` and ``new``: median seconds of a timed metric, the figure of an exact one.

    ``ratio`` is new over base (above 1: slower, or more), ``low`` and ``high`` its 95% interval, ``noise`` the share by
    which equal code differed, ``p`` corrected over all metrics. None where there is no such figure.
    """

    name: str
    verdict: str
    base: float | None
    new: float | None
    timed: bool
    rate: bool = False
    unit: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    noise: float | None = None
    why: str = ""

    @property
    def regression(self) -> bool:
        return self.verdict in REGRESSIONS


@dataclass(frozen=True)
class _Test:
    """A timed metric before the correction over all of them."""

    name: str
    rate: bool
    base: tuple[float, ...]
    new: tuple[float, ...]
    paired: bool
    noise: float
    p: float


def judge(
    base: Side,
    new: Side,
    rules: Rules,
    paired: bool = False,
    noise: dict[str, float] | None = None,
    timed: bool = True,
) -> list[Finding]:
    """All metrics of both sides, timed ones first.

    Args:
        paired: run i of the one side was measured beside run i of the other.
        noise: by metric, what an A/A run of its own found (``noise_of``).
        timed: whether times are judged at all.
    """
    return (
        (_judge_times(base, new, rules, paired, noise or {}) if timed else [])
        + exact_findings(base, new)
        + _missing(base, new)
    )


def _judge_times(base: Side, new: Side, rules: Rules, paired: bool, noise: dict[str, float]) -> list[Finding]:
    busy = any(side.busy is not None and side.busy > rules.busy for side in (base, new))
    alone = not busy and base.busy is not None and new.busy is not None
    scatter = _SCATTER_ALONE if alone else _SCATTER
    tests = [
        _tested(name, base.timed[name], new.timed[name], paired, noise.get(name, 0.0), scatter)
        for name in base.timed
        if name in new.timed
    ]
    family = _family(tests, rules.level)
    corrected = dict(zip(family, holm([test.p for test in family]), strict=True))
    return [_timed(test, corrected.get(test), len(tests), rules, busy) for test in tests]


def refusal(sides: Sequence[Side], findings: Sequence[Finding], rules: Rules) -> LatentvkError | None:
    """Why no time was judged, as an error to raise: other programs kept the machine busy, every metric is noisy, or
    none has repeats enough. None where one was judged, or there is none."""
    for side in sides:
        if side.busy is not None and side.busy > rules.busy:
            return DeviceError(
                f"{side.label}: other programs kept {side.busy:.2f} processors busy while it was measured, expected at "
                f"most {rules.busy:g}; measure again on a quiet machine, or allow more with --busy"
            )
    timed = [finding for finding in findings if finding.timed and finding.verdict not in (GONE, MISSING, ADDED)]
    noisy = [finding for finding in timed if finding.verdict == NOISY]
    if any(finding.verdict not in (NOISY, FEW) for finding in timed) or not timed:
        return None
    if noisy:
        return DeviceError(
            f"the machine is too noisy to judge times: {noisy[0].name} {noisy[0].why}, expected at most "
            f"{rules.noise:.0%}; close other programs, or measure more repeats or turns"
        )
    return InputError(f"no time can be judged: {timed[0].name} {timed[0].why}; measure more repeats (-r)")


def noise_of(one: Side, other: Side) -> dict[str, float]:
    """By metric, the share by which two sides of the same code differ: an A/A run."""
    found = {}
    for name in one.timed.keys() & other.timed.keys():
        a, b = one.timed[name].seconds, other.timed[name].seconds
        ratio = median_ratio(a, b) if len(a) == len(b) else ratio_of_medians(a, b)
        found[name] = max(ratio, 1 / ratio) - 1
    return found


def _tested(name: str, base: Timed, new: Timed, paired: bool, noise: float, scatter: float) -> _Test:
    if paired:
        a, b = base.seconds, new.seconds
        return _Test(
            name, base.rate, a, b, True, noise, signed_rank_test([log(y / x) for x, y in zip(a, b, strict=True)])
        )
    if min(len(base.runs), len(new.runs)) >= _RUNS:
        a, b = (tuple(median(run) for run in side.runs) for side in (base, new))
    else:
        a, b = base.seconds, new.seconds
        noise = max(noise, _unseen(base, new, scatter))
    return _Test(name, base.rate, a, b, False, noise, rank_sum_test(a, b))


def _unseen(base: Timed, new: Timed, scatter: float) -> float:
    """What two sides of fewer runs than ``_RUNS`` may differ by though their code is equal."""
    medians = [[median(run) for run in side.runs] for side in (base, new)]
    between = max(max(found) / min(found) - 1 for found in medians)
    if min(len(base.runs), len(new.runs)) > 1:
        return between
    return max(between, scatter * hypot(_scatter(base), _scatter(new)))


def _scatter(metric: Timed) -> float:
    """The standard deviation of the repeats' logarithms without the slowest tenth: one hiccup is no noise."""
    kept = sorted(metric.seconds)[: len(metric.seconds) - len(metric.seconds) // 10]
    return deviation([log(x) for x in kept])


def _family(tests: Sequence[_Test], level: float) -> list[_Test]:
    """The tests whose repeats can tell anything once corrected: chosen by their number alone, not by their values."""
    family = list(tests)
    while family and (largest := max(map(_least_p, family))) * len(family) > level:
        family = [test for test in family if _least_p(test) < largest]
    return family


def _least_p(test: _Test) -> float:
    return least_p(len(test.base), len(test.new), test.paired)


def _timed(test: _Test, p: float | None, count: int, rules: Rules, busy: bool) -> Finding:
    """A test's verdict; ``p`` is corrected, None where the repeats are too few of ``count`` tests."""
    ratio = median_ratio(test.base, test.new) if test.paired else ratio_of_medians(test.base, test.new)
    facts = Finding(test.name, FEW, median(test.base), median(test.new), True, test.rate, "s", ratio)
    if busy:
        return replace(facts, verdict=NOISY, why="was measured beside other programs")
    if p is None:
        few, needed = min(len(test.base), len(test.new)), _needed(count, test.paired, rules)
        return replace(facts, why=f"has {few}, expected {needed} to tell {count} metric{'s' * (count > 1)} apart")
    low, high = ratio_interval(test.base, test.new, test.paired, _SEED)
    facts = replace(facts, low=low, high=high, p=p, noise=test.noise)
    change = max(ratio, 1 / ratio) - 1
    if p <= rules.level and not low <= 1 <= high and change >= max(rules.effect, test.noise):
        return replace(facts, verdict=SLOWER if ratio > 1 else FASTER)
    if test.noise > rules.noise:
        return replace(facts, verdict=NOISY, why=f"differs by {test.noise:.1%} where the code is equal")
    if max(high, 1 / low) - 1 > rules.noise:
        return replace(facts, verdict=NOISY, why=f"may have changed by {low - 1:+.1%} to {high - 1:+.1%}")
    return replace(facts, verdict=SAME)


def _needed(count: int, paired: bool, rules: Rules) -> int:
    return next(n for n in range(2, 100) if least_p(n, n, paired) * count <= rules.level)


def exact_findings(base: Side, new: Side) -> list[Finding]:
    """The verdicts of the exact figures that both sides have."""
    found = []
    for name in dict.fromkeys((*base.exact, *new.exact)):
        one, other = base.exact.get(name), new.exact.get(name)
        if one is None or other is None:
            continue
        equal = abs(other.value - one.value) <= one.slack * one.value
        verdict = EQUAL if equal else MORE if other.value > one.value else LESS
        ratio = other.value / one.value if one.value else None
        found.append(Finding(name, verdict, one.value, other.value, False, unit=one.unit, ratio=ratio))
    return found


def _missing(base: Side, new: Side) -> list[Finding]:
    """Timed metrics that one side alone has; gone is a regression: the other side says that it could not run."""
    found = []
    for name, metric in base.timed.items():
        if name not in new.timed:
            why = next((why for row, why in new.not_run.items() if name.endswith(f" {row}")), "")
            found.append(
                Finding(name, GONE if why else MISSING, median(metric.seconds), None, True, metric.rate, why=why)
            )
    for name, metric in new.timed.items():
        if name not in base.timed:
            found.append(Finding(name, ADDED, None, median(metric.seconds), True, metric.rate))
    return found


def regressions(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.regression]
