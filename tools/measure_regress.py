"""How often `latentvk regress` raises a false alarm, and how often it finds a slowdown, over simulated comparisons.

The noise is real: repeats of `bench` as recorded in tests/null/repeats_llvmpipe.json, with their drift and their heavy
tails, drawn anew for every comparison. `python tools/measure_regress.py` prints the figures; a test holds them.

Turns (`--run`): of a run drawn for each turn, six consecutive repeats, three for each side, which side is first drawn
too. Files: for each side one run, a stretch of it, or several runs merged.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from harness.bench import REPETITIONS
from harness.judging import FASTER, NOISY, SLOWER, Rules, judge, noise_of
from harness.metrics import Side, Timed
from harness.regress import TURNS
from harness.regress_run import AT_ONCE, MIN_AA

RECORDED = Path(__file__).resolve().parent.parent / "tests" / "null" / "repeats_llvmpipe.json"
SLOWDOWN = 0.05

Rng = np.random.Generator
Draw = Callable[[Rng], tuple[Side, Side]]


@dataclass(frozen=True)
class Rates:
    """Shares of the simulated comparisons: a false alarm in any metric, by metric the slowdown found and refused."""

    false_alarms: float
    found: dict[str, float]
    noisy: dict[str, float]


def recorded() -> dict[str, np.ndarray]:
    """Seconds of each recorded repeat: [runs, repeats], by test."""
    runs = json.loads(RECORDED.read_text())["runs"]
    return {test: 1e-9 * np.array(values, np.float64) for test, values in runs.items()}


def turns(runs: dict[str, np.ndarray], count: int) -> Draw:
    """Both sides of `regress --run`, one median of ``AT_ONCE`` repeats a turn."""

    def draw(rng: Rng) -> tuple[Side, Side]:
        times: tuple[dict[str, list[float]], ...] = ({test: [] for test in runs}, {test: [] for test in runs})
        some = next(iter(runs.values()))
        for _ in range(count):
            run, start = rng.integers(some.shape[0]), rng.integers(some.shape[1] - 2 * AT_ONCE + 1)
            first = int(rng.integers(2))
            for test, values in runs.items():
                stretch = values[run, start : start + 2 * AT_ONCE]
                times[first][test].append(median(stretch[:AT_ONCE].tolist()))
                times[1 - first][test].append(median(stretch[AT_ONCE:].tolist()))
        return _side([times[0]]), _side([times[1]])

    return draw


def files(runs: dict[str, np.ndarray], repeats: int, merged: int) -> Draw:
    """Both sides of a comparison of records, each of `merged` runs of `repeats` repeats, no run on both sides."""

    def draw(rng: Rng) -> tuple[Side, Side]:
        some = next(iter(runs.values()))
        chosen = rng.permutation(some.shape[0])
        sides = []
        for which in (chosen[:merged], chosen[merged : 2 * merged]):
            starts = rng.integers(some.shape[1] - repeats + 1, size=merged)
            pairs = list(zip(which, starts, strict=True))
            sides.append(_side([{t: v[run, s : s + repeats].tolist() for t, v in runs.items()} for run, s in pairs]))
        return sides[0], sides[1]

    return draw


def simulate(draw: Draw, names: list[str], comparisons: int, paired: bool, aa: Draw | None, seed: int) -> Rates:
    """Judge `comparisons` of equal code, then each with one metric slower by ``SLOWDOWN``, for every metric."""
    rng = np.random.default_rng(seed)
    rules = Rules()
    alarms = 0
    found, noisy = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for _ in range(comparisons):
        noise = noise_of(*aa(rng)) if aa is not None else {}
        base, new = draw(rng)
        alarms += any(f.verdict in (SLOWER, FASTER) for f in judge(base, new, rules, paired, noise))
        for name in names:
            base, new = draw(rng)
            verdict = next(f.verdict for f in judge(base, _slower(new, name), rules, paired, noise) if f.name == name)
            found[name] += verdict == SLOWER
            noisy[name] += verdict == NOISY
    share = {name: count / comparisons for name, count in found.items()}
    return Rates(alarms / comparisons, share, {name: count / comparisons for name, count in noisy.items()})


def turns_rates(comparisons: int, seed: int = 1) -> Rates:
    """Of `regress --run` with its default turns, an A/A run before each comparison."""
    runs = recorded()
    aa = turns(runs, max(MIN_AA, TURNS // 2))
    return simulate(turns(runs, TURNS), list(runs), comparisons, True, aa, seed)


def files_rates(comparisons: int, merged: int, quieter: float = 1.0, seed: int = 1) -> Rates:
    """Of records with `bench`'s default repetitions; the recorded noise is divided by `quieter`."""
    runs = {test: np.exp(np.log(v / np.median(v)) / quieter) for test, v in recorded().items()}
    return simulate(files(runs, REPETITIONS, merged), list(runs), comparisons, False, None, seed)


def _side(runs: list[dict[str, list[float]]]) -> Side:
    return Side("", "", "", {name: Timed(tuple(tuple(run[name]) for run in runs), True) for name in runs[0]}, {})


def _slower(side: Side, name: str) -> Side:
    scaled = tuple(tuple(x * (1 + SLOWDOWN) for x in run) for run in side.timed[name].runs)
    return Side("", "", "", side.timed | {name: Timed(scaled, True)}, {})


def _show(what: str, rates: Rates) -> None:
    print(what)
    print(f"  false alarms in any metric   {rates.false_alarms:.1%}")
    for name in rates.found:
        print(f"  {SLOWDOWN:.0%} found in {name:<16} {rates.found[name]:.1%}, not judged {rates.noisy[name]:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=200)
    count = parser.parse_args().comparisons
    print(f"{count} simulated comparisons each; noise as recorded: {json.loads(RECORDED.read_text())['about']}\n")
    _show(f"in turns (--run, {TURNS} turns of {AT_ONCE} repeats):", turns_rates(count))
    _show(f"single records ({REPETITIONS} repeats a side):", files_rates(count, 1))
    _show("six records merged on each side:", files_rates(count, 6))
    _show("single records, the noise divided by 4:", files_rates(count, 1, 4.0))


if __name__ == "__main__":
    main()
