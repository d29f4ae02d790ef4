"""What `regress` prints: a table for a terminal, Markdown for a pull request, JSON with every figure and sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from harness.judging import (
    ADDED,
    EQUAL,
    FASTER,
    FEW,
    GONE,
    LESS,
    MISSING,
    MORE,
    NOISY,
    SAME,
    SLOWER,
    Finding,
    Rules,
)
from harness.metrics import Side
from harness.report_tables import Grid, markdown_grid
from harness.text_tables import plain_table
from harness.units import bytes_text, rate_text, seconds_text

SCHEMA, SCHEMA_VERSION = "latentvk.regress", 1
Comparison = tuple[Side, Side, list[Finding]]

_ORDER = (SLOWER, MORE, GONE, FASTER, LESS, SAME, EQUAL, NOISY, FEW, MISSING, ADDED)
_STYLE = {SLOWER: "bold red", MORE: "bold red", GONE: "bold red", FASTER: "bold green", LESS: "bold green"}
_COLUMNS = ("metric", "BASE", "NEW", "change", "95% interval", "p", "verdict")


def show(comparisons: Sequence[Comparison], rules: Rules) -> None:
    console = Console(highlight=False)
    for base, new, findings in comparisons:
        console.print(Text(f"{new.model} on {new.device}", style="bold"), end="\n\n")
        table = plain_table(*_COLUMNS, labels=1)
        table.columns[-1].justify = "left"
        for finding in _worth_a_row(findings):
            *figures, verdict = cells(finding)
            table.add_row(*figures, Text(verdict, style=_STYLE.get(finding.verdict, "")))
        if table.rows:
            console.print(table, "")
        for note in _notes(base, new, findings, rules):
            console.print(Text(note, style="dim"))
        console.print(Text(summary(findings), style="bold"))


def markdown(comparisons: Sequence[Comparison], rules: Rules) -> str:
    """The verdict in the first line, the tables, and what was measured folded away below."""
    parts = []
    for base, new, findings in comparisons:
        parts.append(f"**{summary(findings)}** ({new.model} on {new.device})")
        rows = tuple(cells(finding) for finding in _worth_a_row(findings))
        if rows:
            parts.append(markdown_grid(Grid(_COLUMNS, rows, labels=1)))
        facts = tuple(
            (key, base.facts.get(key, ""), new.facts.get(key, "")) for key in dict.fromkeys((*base.facts, *new.facts))
        )
        notes = "\n".join(f"- {note}" for note in _notes(base, new, findings, rules))
        table = markdown_grid(Grid(("what", "BASE", "NEW"), (("record", base.label, new.label), *facts), labels=3))
        parts.append(f"<details><summary>How it was judged</summary>\n\n{notes}\n\n{table}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def to_json(comparisons: Sequence[Comparison], rules: Rules) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "rules": asdict(rules),
        "comparisons": [
            {
                "base": _side_json(base),
                "new": _side_json(new),
                "findings": [asdict(finding) for finding in findings],
                "regressions": [finding.name for finding in findings if finding.regression],
            }
            for base, new, findings in comparisons
        ],
    }


def summary(findings: Sequence[Finding]) -> str:
    """'1 slower, 3 no difference; 12 equal'; 'regression: ' before it where there is one."""
    counts = Counter(finding.verdict for finding in findings)
    parts = [f"{counts[verdict]} {verdict}" for verdict in _ORDER if counts[verdict]]
    worse = any(finding.regression for finding in findings)
    return ("regression: " if worse else "no regression: ") + (", ".join(parts) or "nothing in common")


def _side_json(side: Side) -> dict[str, object]:
    samples = {name: [list(run) for run in metric.runs] for name, metric in side.timed.items()}
    return {"label": side.label, "device": side.device, "model": side.model, "facts": side.facts, "seconds": samples}


def _worth_a_row(findings: Sequence[Finding]) -> list[Finding]:
    """All but the exact figures that are equal, which are counted."""
    return [finding for finding in findings if finding.verdict != EQUAL]


def cells(finding: Finding) -> tuple[str, ...]:
    """A finding as text: metric, BASE, NEW, change, interval, p, verdict."""
    change = interval = p = ""
    if finding.ratio is not None and (finding.new is not None):
        change = (
            _percent(finding.ratio) if finding.timed or finding.unit else f"{finding.new - (finding.base or 0):+,.0f}"
        )
    if finding.low is not None and finding.high is not None:
        interval = f"{_percent(finding.low)} to {_percent(finding.high)}"
    if finding.p is not None:
        p = f"{finding.p:.2g}" if finding.p >= 1e-4 else "< 0.0001"
    figures = (_figure(finding, value) for value in (finding.base, finding.new))
    return finding.name, *figures, change, interval, p, finding.verdict


def _figure(finding: Finding, value: float | None) -> str:
    if value is None:
        return "n/a"
    if finding.timed:
        return f"{rate_text(1 / value)} tok/s" if finding.rate else seconds_text(value)
    if finding.unit == "perplexity":
        return f"{value:.4f}"
    return bytes_text(value) if finding.unit == "B" else f"{value:,.0f}"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}%"


def _notes(base: Side, new: Side, findings: Sequence[Finding], rules: Rules) -> list[str]:
    notes = []
    timed = [finding for finding in findings if finding.p is not None]
    if timed:
        noise = max(finding.noise or 0.0 for finding in timed)
        notes.append(
            "Change is of time, so + is slower. It counts where the corrected rank test is below "
            f"{rules.level:g}, the interval excludes 0, and it is at least {rules.effect:.0%} and above the noise, "
            f"which is what equal code differs by: at most {noise:.1%} here."
        )
    for verdict in (NOISY, FEW, GONE):
        why: dict[str, list[str]] = {}
        for finding in findings:
            if finding.verdict == verdict:
                why.setdefault(finding.why, []).append(finding.name)
        notes += [f"{verdict.capitalize()}: {_names(names)} {reason}." for reason, names in why.items()]
    equal = Counter(_kind(finding.name) for finding in findings if finding.verdict == EQUAL)
    if equal:
        parts = [f"{name} ({count})" for name, count in equal.items()]
        notes.append(f"Equal in both: {', '.join(parts)}.")
    for key in ("driver", "shader compiler", "power"):
        one, other = base.facts.get(key), new.facts.get(key)
        if one != other and one and other:
            notes.append(f"The {key} differs: {one} in BASE, {other} in NEW.")
    return notes


def _names(names: Sequence[str]) -> str:
    """'a', or 'each of a, b, c': what 'has' and 'differs' can follow."""
    return names[0] if len(names) == 1 else f"each of {', '.join(names)}"


def _kind(name: str) -> str:
    """'cache of mla at 512' -> 'cache': what a figure is of."""
    for word in ("cache", "device memory", "allocations", "launches", "perplexity"):
        if name.startswith(word):
            return word
    return name
