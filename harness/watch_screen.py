"""The one screen of `shaders watch`: each variant's state and figures, or in place of them what does not compile.

A figure stands with its difference from the save before and, in brackets where it is another, from the baseline; a time
from the first one. Green is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.shader_cycle import COLUMNS, HIGHER_IS_BETTER, MEASURED, TIME_NOISE, Answer
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
        self.waiting.discard(answer.name)

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
        parts.append(_Fitting(board, max(room, 3)))
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


@dataclass(frozen=True)
class _Fitting:
    """The table with as many columns as the screen is wide, of ``most`` variants."""

    board: Board
    most: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = _in_sight(self.board, self.most)
        known = [self.board.answers[name].figures for name in names if name in self.board.answers]
        columns = [column for column in COLUMNS if any(column in figures for figures in known)]
        table = _table(self.board, names, columns)
        while columns and console.measure(table, options=options.update(width=1000)).maximum > options.max_width:
            columns.pop()
            table = _table(self.board, names, columns)
        yield table


def _in_sight(board: Board, most: int) -> list[str]:
    """The variants that are shown: what is wrong and what changed last stays."""
    wrong = [name for name in board.names if name in board.answers and board.answers[name].wrong]
    recent = [name for name in board.names if name in board.before or name in board.waiting]
    chosen = list(dict.fromkeys((*wrong, *recent, *board.names)))[:most]
    return [name for name in board.names if name in chosen]


def _table(board: Board, names: list[str], columns: list[str]) -> Table:
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
    text, told = Text(_shown(value)), ""
    for difference, form in zip(_differences(board, answer, column, value), (" {}", " ({})"), strict=True):
        if difference is None:
            continue
        sign, shown = difference
        if shown != told:
            better = (sign > 0) == (column in HIGHER_IS_BETTER)
            text.append(form.format(shown), style="dim" if shown == "=" else "green" if better else "red")
        told = shown
    return text


def _differences(board: Board, answer: Answer, column: str, value: float) -> list[tuple[float, str] | None]:
    """From the save before and from the baseline: a sign, and as text. Of measured figures in per cent of the save
    before and of the first one, where it is more than noise."""
    if column in MEASURED:
        if answer.name not in board.before:
            return [None, None]
        shares = [(1 / change if column in HIGHER_IS_BETTER else change) - 1 for change in answer.changes]
        return [(share, "=" if abs(share) <= TIME_NOISE else f"{100 * share:+.0f}%") for share in shares]
    found: list[tuple[float, str] | None] = []
    for reference in (board.before.get(answer.name, {}), board.baseline.get(answer.name, {})):
        if column not in reference:
            found.append(None)
            continue
        was = reference[column]
        sign = "+" if value > was else "-"
        found.append((value - was, "=" if _shown(value) == _shown(was) else sign + _shown(abs(value - was))))
    return found


def _shown(value: float) -> str:
    """Counts whole, all else in three digits."""
    return f"{value:,}" if isinstance(value, int) else significant(value)
