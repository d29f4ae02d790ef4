"""The tables of `latentvk shaders stats`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from harness.units import significant

if TYPE_CHECKING:
    from harness.chips import Chip
    from harness.shader_row import Row

_COLUMNS = {
    "VGPR": "vgprs",
    "SGPR": "sgprs",
    "spill": "spilled_vgprs",
    "LDS": "lds_bytes",
    "waves": "",
    "code": "code_bytes",
    "VALU": "valu",
    "VMEM": "vmem",
    "SMEM": "smem",
    "SALU": "salu",
    "latency": "latency",
    "1/thr": "inverse_throughput",
}
_WIDEST = 1000  # columns, more than any table has


def print_stats(device: str, driver: str, chip: Chip | None, rows: Sequence[Row]) -> None:
    """Registers and counts of each variant, then what follows for each unit of work."""
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{device}, {driver}, subgroups of {rows[0].subgroup}", title_justify="left"
    )
    table.add_column("variant")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        values = row.statistics | {"": "n/a" if row.waves is None else row.waves}
        spilled = row.statistics["spilled_vgprs"] + row.statistics["spilled_sgprs"]
        cells = [str(spilled if name == "spill" else values.get(key, "n/a")) for name, key in _COLUMNS.items()]
        table.add_row(row.name, *cells, style="red" if spilled else None)
    _print(table)
    costs = [row for row in rows if row.cost is not None]
    if not costs:
        return
    title = "for each unit of work"
    if chip is not None:
        title += f", predicted: {chip.name}, {chip.flops_source}, {chip.bandwidth / 1e9:g} GB/s"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("variant")
    for name in ("unit", "VALU", "loaded B", "memory B", "ALU ps", "memory ps", "bound", "roofline"):
        table.add_column(name, justify="left" if name == "unit" else "right", no_wrap=True)
    for row in costs:
        cost = row.cost
        assert cost is not None
        figures = [significant(value) for value in (cost.valu, cost.loaded_bytes, cost.bytes_read)]
        predicted = ["n/a"] * 4
        if cost.compute_seconds is not None and cost.memory_seconds is not None and cost.share is not None:
            times = [significant(1e12 * s) for s in (cost.compute_seconds, cost.memory_seconds)]
            predicted = [*times, cost.governs or "", f"\u2264 {100 * cost.share:.0f}%"]
        table.add_row(row.name, cost.unit, *figures, *predicted)
    _print(table)


def _print(table: Table) -> None:
    """Whole, also in a pipe and on a narrow terminal, which breaks lines: figures that were cut short say nothing."""
    width = Console(width=_WIDEST).measure(table).maximum
    console = Console(highlight=False)
    console.width = max(console.width, width)
    console.print(table)
