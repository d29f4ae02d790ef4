"""The figures of `latentvk shaders bench`: two lines a variant, its name and shape above its rates."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from harness import stats
from harness.roofline import Peaks
from harness.timing.result import Result
from harness.timing.sweep import Sweep, entry_text
from harness.units import bytes_text, seconds_text, significant
from vkbackend.physical import DeviceInfo

_WIDTH = 80
_COLUMNS = {"time": 14, "spread": 8, "GB/s": 9, "%": 7, "GFLOP/s": 9, " %": 7, "Gunit/s": 9, "bound": 9, "of it": 7}
_CACHED = "*"


def print_results(info: DeviceInfo, peaks: Peaks, results: Sequence[Result]) -> None:
    """The variants, then what the figures are shares of and how they were taken."""
    print(f"measured on {info.name}, {info.driver} {info.driver_version}\n")
    print("".join(f"{name.strip():>{width}}" for name, width in _COLUMNS.items()))
    for result in results:
        print(f"{result.variant.name}: {shape_text(result)}")
        print("".join(f"{cell:>{width}}" for cell, width in zip(figures(result), _COLUMNS.values(), strict=True)))
    print("\n" + "\n".join(textwrap.wrap(" ".join(_explained(peaks, results)), _WIDTH)))


def figures(result: Result) -> tuple[str, ...]:
    """The cells of a variant's second line."""
    flops = (significant(result.flops / 1e9), percent(result.arithmetic_share)) if result.amount.flops else ("", "")
    return (
        seconds_text(result.seconds),
        percent(stats.spread(result.samples) / result.seconds),
        significant(result.bandwidth / 1e9) + (_CACHED if result.timing.from_caches else ""),
        percent(result.memory_share),
        *flops,
        significant(result.unit_rate / 1e9),
        result.bound.governs,
        percent(result.share),
    )


def print_sweep(found: Sweep) -> None:
    """A line for each choice: its time, and that over the present one's."""
    print(f"\n{found.variant.name}, in turns:")
    width = max(len(entry_text(entry)) for entry in found.entries)
    for i, entry in enumerate(found.entries):
        samples = found.timing.samples[i]
        middle = stats.median(samples)
        ratio = "the present choice" if i == 0 else f"{_ratio_text(found.ratio(i))} of it"
        mark = "*" if i == found.best else " "
        spread = percent(stats.spread(samples) / middle)
        print(f"{mark} {entry_text(entry):<{width}}  {seconds_text(middle):>8}  {spread:>6}  {ratio}")
    if found.confirmed is None:
        print("the present choice is the best, or not told from it")
    else:
        said = "is better" if found.better else "is not told from the present choice that time; more --repeats may tell"
        print(f"{entry_text(found.entries[found.best])} once more: {_ratio_text(found.confirmed)}; it {said}")


def _ratio_text(ratio: stats.Ratio) -> str:
    """'0.82 (0.80 to 0.85)', with ~ before it where its interval includes 1."""
    if ratio.low is None or ratio.high is None:
        return f"?{significant(ratio.value)}"
    mark = "" if ratio.distinct else "~"
    return f"{mark}{significant(ratio.value)} ({significant(ratio.low)} to {significant(ratio.high)})"


def _explained(peaks: Peaks, results: Sequence[Result]) -> Iterator[str]:
    yield f"%: of the device's own peaks, {significant(peaks.bandwidth / 1e9)} GB/s and"
    yield f"{significant(peaks.flops / 1e9)} GFLOP/s ({peaks.source}); of it: of the bound that governs."
    yield "GB/s: bytes that must be moved, each once."
    kernels: dict[str, set[str]] = {}
    for result in results:
        kernels.setdefault(result.amount.unit, set()).add(result.variant.name.split()[0])
    yield "Units: " + ", ".join(f"{unit} ({', '.join(sorted(of))})" for unit, of in kernels.items()) + "."
    clocks = " and ".join(sorted({result.timing.clock for result in results}))
    least, most = (f(len(result.samples) for result in results) for f in (min, max))
    samples = f"{most}" if least == most else f"{least} to {most}"
    yield f"Time: of a launch, the median of {samples} samples by {clocks};"
    yield "spread: the median distance from it."
    rotated = bytes_text(max(result.timing.rotated_bytes for result in results))
    yield f"Launches take copies of their inputs in turn, up to {rotated} together."
    if any(result.timing.from_caches for result in results):
        yield f"{_CACHED} inputs that may come from caches: no figure of memory."


def percent(share: float) -> str:
    """'57%', and '0.42%' where it is small."""
    return f"{significant(100 * share, 2)}%"


def shape_text(result: Result) -> str:
    """What the launch works on: of a product its tensor's rows and columns, of others the tokens, the cache."""
    push, tokens = result.variant.launch.push, result.variant.tokens
    parts = []
    if "units" in push and "rows" in push:
        matrices = int(push["matrix_end"]) - int(push["matrix_first"])
        sizes = [matrices] * (matrices > 1) + [int(push["rows"]), 32 * int(push["units"])]
        parts.append(" x ".join(str(n) for n in sizes))
    if result.variant.launch.deep:
        parts.append(f"{result.variant.n_past} cached")
    if tokens > 1 or not parts:
        parts.append(f"{tokens} token{'s' if tokens > 1 else ''}")
    return ", ".join(parts)
