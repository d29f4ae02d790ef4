"""Our own diagnosis as text: a verdict for each line, what it rests on, and what would help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.inference import Interval
from harness.own_lines import HELPS
from harness.quants import effect_text
from harness.stats import median
from harness.text_tables import plain_table, show_list
from harness.units import about_text, bytes_text, decimal_bytes_text, rate_text, seconds_text, significant
from harness.verdict import percent
from model.layout import CacheLayout, cache_bytes_per_token

if TYPE_CHECKING:
    from harness.diagnose_run import Diagnosis, Line

_FAR = 4  # times the longest context: a crossing beyond it is not spoken of
_BOUND = {"weights": "weight-bound", "launches": "launch-bound", "arithmetic": "bound by arithmetic"}


def show(found: Diagnosis) -> None:
    """Print the diagnosis: verdicts, evidence, remedies, then the tables."""
    console = Console(highlight=False)
    console.print(Text(f"{found.model}, measured on {found.device.info.name}\n", style="bold"))
    for line in found.lines:
        console.print(Text.assemble((f"Verdict, {_name(found, line)}: ", "bold"), headline(line) + "."))
        show_list(console, [*reasons(line), *remedies(line)])
    if found.effects:
        show_list(
            console,
            [effect_text(e.path, e.context, e.larger, e.smaller, e.effect) for e in found.effects],
            "Quantisations",
        )
    console.print(_decode_table(found), "")
    console.print(_line_table(found), "")
    peaks, cost = found.peaks, found.cost
    console.print(
        Text(
            f"Peaks, measured: {significant(peaks.bandwidth / 1e9)} GB/s and {significant(peaks.flops / 1e9)} GFLOP/s; "
            f"an empty launch {seconds_text(cost.launch)}, a submission {seconds_text(cost.submission)}. "
            "Cache, weights, other: shares of the device's time with one token of that context, by its timestamps.",
            style="dim",
        )
    )


def _name(found: Diagnosis, line: Line) -> str:
    """The line's path, and its file where there are several."""
    several = len({each.subject.file for each in found.lines}) > 1
    return f"{line.subject.path.name}, {line.subject.file}" if several else line.subject.path.name


def headline(line: Line) -> str:
    """'launch-bound up to 2,300 tokens of context, cache-bound from there on'."""
    own = line.own
    if own is None:
        return "no verdict: fewer than two contexts could be measured; choose shorter --contexts"
    part, _ = own.governs
    before = _BOUND[part] if part else "bound by its kernels, not by bandwidth, launches or arithmetic,"
    longest = max(result.entry.context for result in line.results)
    if own.intercept.value / max(own.slope.high, 1e-30) > _FAR * longest:
        return f"{before} at all contexts up to {longest:,}; what the cache costs there does not count"
    if own.crossing is None:
        return f"{before} at first; these samples do not tell from where the cache governs: take more repeats"
    crossing = about_text(max(own.crossing, 1.0))
    if own.crossing > longest:
        return f"{before}, and cache-bound from about {crossing} tokens on, beyond what was measured"
    return f"{before} up to about {crossing} tokens of context, cache-bound from there on"


def reasons(line: Line) -> list[str]:
    """What the verdict rests on, a sentence each."""
    own = line.own
    refused = [f"{result.entry.context:,} tokens: {result.refused}." for result in line.results if result.refused]
    if own is None:
        return refused
    found = [
        f"A token without context takes {_interval_text(own.intercept)}. The weights' "
        f"{decimal_bytes_text(line.subject.active_bytes)} at the measured bandwidth explain "
        f"{percent(own.share('weights'))} of it, {line.subject.launches} launches "
        f"{percent(own.share('launches'))}, arithmetic at its peak "
        f"{percent(own.share('arithmetic'))}."
    ]
    if own.slope.low > 0:
        least, by = max((own.slope_memory, "its bytes"), (own.slope_arithmetic, "arithmetic on it"))
        found.append(
            f"Each cached token adds {_interval_text(own.slope)}; {by} at the measured peak would take "
            f"{seconds_text(least)}, {percent(min(least / own.slope.value, 1.0))} of that."
        )
    else:
        found.append(f"Each cached token adds {_interval_text(own.slope)}: these samples do not tell it from nothing.")
    return [*found, *refused]


def remedies(line: Line) -> list[str]:
    """What would help along this path, a sentence each."""
    own, config, path = line.own, line.subject.config, line.subject.path
    if own is None:
        return []
    shortest = min(result.entry.context for result in line.results)
    longest = max(result.entry.context for result in line.results)
    gains = [own.gain_of_half_the_weights(context) for context in (shortest, longest)]
    found = [_quant_sentence(gains, shortest, longest)]
    if path.layout is CacheLayout.PER_HEAD and own.slope.low > 0:
        right = cache_bytes_per_token(config, CacheLayout.LATENT, path.cache_type)
        times = cache_bytes_per_token(config, path.layout, path.cache_type) / right
        found.append(f"Its cache is {significant(times)} times larger than the latent one's: --path mla.")
    return found


def _quant_sentence(gains: list[float], shortest: int, longest: int) -> str:
    worth = f"{_times(gains[0])} at {shortest:,} and {_times(gains[1])} at {longest:,}"
    if max(gains) < HELPS:
        return f"A quant of half the size would not help: {worth}, predicted from the bytes."
    return f"A quant of half the size would help by {worth}, predicted from the bytes."


def _times(value: float) -> str:
    return f"{significant(value)}x"


def _interval_text(value: Interval) -> str:
    return f"{seconds_text(value.value)} ({seconds_text(value.low)} to {seconds_text(value.high)})"


def _decode_table(found: Diagnosis) -> Table:
    columns = ("context", "cache", "tok/s", "a token", "cache\n%", "weights\n%", "other\n%")
    table = plain_table("measured", *columns, labels=1)
    for line in found.lines:
        for result in line.results:
            cells = [_name(found, line), f"{result.entry.context:,}"]
            if result.measured is None:
                table.add_row(*cells, "does not fit")
                continue
            seconds = median([x for repeat in result.samples for x in repeat])
            profile = result.measured.profile
            table.add_row(
                *cells,
                bytes_text(result.measured.cache_bytes),
                rate_text(1 / seconds),
                seconds_text(seconds),
                *(f"{100 * profile[kind]:.0f}" for kind in ("cache", "weights", "other")),
            )
    return table


def _line_table(found: Diagnosis) -> Table:
    table = plain_table(
        "line", "at context 0", "slope", "slope's\nB/token", "cache\nB/token", "weights\nB/token", labels=1
    )
    for line in found.lines:
        own = line.own
        if own is None:
            continue
        subject = line.subject
        formula = cache_bytes_per_token(subject.config, subject.path.layout, subject.path.cache_type)
        table.add_row(
            _name(found, line),
            seconds_text(own.intercept.value),
            seconds_text(own.slope.value),
            f"{own.slope.value * found.peaks.bandwidth:,.0f}",
            f"{formula:,}",
            decimal_bytes_text(subject.active_bytes),
        )
    return table
