"""The one screen of `shaders watch`: each variant's state and figures, or in place of them what does not compile.

A figure stands with its difference from the save before and, in brackets, from the baseline, a time from the first one;
green is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.shader_cycle import HIGHER_IS_BETTER, MEASURED, TIME_NOISE, Answer
from harness.units import significant

_MOST_FAILURES = 12  # lines of what is wrong below the table


@dataclass
class Board:
    """What the screen knows: the answers to the last save, the figures of the save before, those of the baseline."""

    title: str
    names: list[str]
    baseline: Mapping[str, Mapping[str, float]]
    answers: dict[str, Answer] = field(default_factory=dict)
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    first_times: dict[str, dict[str, float]] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    status: str = ""

    def begin(self, names: list[str]) -> None:
        """These are to be answered anew."""
        self.waiting |= set(names)

    def put(self, answer: Answer) -> None:
        """An answer takes the place of the one before, whose figures it is compared with."""
        last = self.answers.get(answer.name)
        if last is not None and last.figures:
            self.before[answer.name] = last.figures
        self.answers[answer.name] = answer
        times = {column: value for column, value in answer.figures.items() if column in MEASURED}
        self.first_times.setdefault(answer.name, times or self.first_times.get(answer.name, {}))
        self.waiting.discard(answer.name)

    def reference(self, name: str) -> dict[str, float]:
        """What a variant's figures are held against: the baseline's, and the first times, as a baseline has none."""
        return {**self.baseline.get(name, {}), **self.first_times.get(name, {})}

    @property
    def bad(self) -> list[Answer]:
        """What is wrong since the last save, as far as it is known."""
        known = [self.answers[name] for name in self.names if name in self.answers and name not in self.waiting]
        return [answer for answer in known if answer.wrong]


def render(board: Board, height: int = 0) -> RenderableType:
    """The screen; ``height`` lines at most where it is not 0: then variants that are right are left out first."""
    bad = board.bad
    parts: list[RenderableType] = [Text(board.title, style="bold")]
    uncompiled = [answer for answer in bad if answer.module.compiled]
    if uncompiled:
        parts.append(_compile_errors(uncompiled))
    else:
        details = _failures(bad)
        room = height - 6 - len(details) if height else len(board.names)
        parts.append(_table(board, max(room, 3)))
        parts += [Text(line, style="red") for line in details]
    parts.append(Text(board.status, style="dim"))
    return Group(*parts)


def _compile_errors(uncompiled: list[Answer]) -> RenderableType:
    """Each error once, though several variants have it."""
    told = dict.fromkeys(text for answer in uncompiled for text in answer.module.compiled)
    text = Text()
    for index, error in enumerate(told):
        first, _, excerpt = error.partition("\n")
        text.append(("\n" if index else "") + first + "\n", style="bold red")
        for line in excerpt.splitlines():
            text.append(line + "\n", style="yellow" if line.startswith(">") else "")
    names = ", ".join(answer.name for answer in uncompiled[:3]) + (", ..." if len(uncompiled) > 3 else "")
    text.append(f"does not compile: {names}", style="red")
    return text


def _failures(bad: list[Answer]) -> list[str]:
    lines = [f"{answer.name}: {text}" for answer in bad for text in answer.wrong]
    if len(lines) > _MOST_FAILURES:
        lines = [*lines[: _MOST_FAILURES - 1], f"and {len(lines) - _MOST_FAILURES + 1} more"]
    return lines


def _table(board: Board, most: int) -> Table:
    names = board.names
    if len(names) > most:  # what changed last and what is wrong stays in sight
        wrong = [name for name in names if name in board.answers and board.answers[name].wrong]
        recent = [name for name in names if name in board.before or name in board.waiting]
        chosen = list(dict.fromkeys((*wrong, *recent, *names)))[:most]
        names = [name for name in board.names if name in chosen]
    columns = list(dict.fromkeys(c for name in names if name in board.answers for c in board.answers[name].figures))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("variant", overflow="fold")
    table.add_column("check")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name in names:
        answer = board.answers.get(name)
        cells = [_figure(board, answer, column) for column in columns] if answer else [Text("")] * len(columns)
        table.add_row(name, _state(board, name), *cells)
    if len(names) < len(board.names):
        table.caption = f"{len(board.names) - len(names)} more variants are not shown"
    return table


def _state(board: Board, name: str) -> Text:
    answer = board.answers.get(name)
    if name in board.waiting:
        return Text("...", style="dim")
    if answer is None:
        return Text("")
    if answer.wrong:
        return Text("FAIL", style="bold red")
    if answer.verdict is None:
        return Text("compiles", style="green")
    return Text(f"ok, {answer.verdict.cases} cases", style="green")


def _figure(board: Board, answer: Answer, column: str) -> Text:
    value = answer.figures.get(column)
    if value is None:
        return Text("")
    text = Text(_shown(value))
    for reference, form in ((board.before.get(answer.name), " {}"), (board.reference(answer.name), " ({})")):
        if reference is not None and column in reference:
            change = value - reference[column]
            shown = _difference(column, value, reference[column])
            better = (change > 0) == (column in HIGHER_IS_BETTER)
            text.append(form.format(shown), style="dim" if shown == "=" else "green" if better else "red")
    return text


def _difference(column: str, value: float, reference: float) -> str:
    """Of measured figures in per cent, where it is more than their noise."""
    if column in MEASURED:
        share = value / reference - 1
        return "=" if abs(share) <= TIME_NOISE else f"{100 * share:+.0f}%"
    if _shown(value) == _shown(reference):
        return "="
    return ("+" if value > reference else "-") + _shown(abs(value - reference))


def _shown(value: float) -> str:
    """Counts whole, all else in three digits."""
    return f"{value:,}" if isinstance(value, int) else significant(value)
