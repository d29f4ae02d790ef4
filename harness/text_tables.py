"""What printed reports are made of: plain tables, and sentences as a list."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, OverflowMethod
from rich.table import Table
from rich.text import Text


def plain_table(*columns: str, labels: int = 0, overflow: OverflowMethod = "fold") -> Table:
    """A table whose first ``labels`` columns are text and the others figures; ``overflow`` says what happens to cells
    that are too wide."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < labels else "right", overflow=overflow)
    return table


def show_list(console: Console, sentences: Sequence[str], title: str = "") -> None:
    """The sentences, a dash before each, and an empty line; nothing where there is none."""
    if not sentences:
        return
    if title:
        console.print(Text(title, style="bold"))
    grid = Table.grid(padding=(0, 1))
    for sentence in sentences:
        grid.add_row("-", Text(sentence))
    console.print(grid, "")
