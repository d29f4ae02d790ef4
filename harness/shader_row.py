"""One variant's figures on one chip: RADV's statistics by our names, the waves a SIMD holds, the cost of its work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.chips import Chip
from harness.shader_variants import Variant
from harness.shader_work import UnitCost, unit_cost
from vkbackend.offline import Compiled, OfflineCompiler

# RADV's names of what is kept.
KEPT = {
    "vgprs": "VGPRs",
    "sgprs": "SGPRs",
    "spilled_vgprs": "Spilled VGPRs",
    "spilled_sgprs": "Spilled SGPRs",
    "scratch_bytes": "Scratch size",
    "lds_bytes": "LDS size",
    "code_bytes": "Code size",
    "valu": "VALU",
    "vmem": "VMEM",
    "smem": "SMEM",
    "salu": "SALU",
    "latency": "Latency",
    "inverse_throughput": "Inverse Throughput",
}


@dataclass(frozen=True)
class Row:
    """One variant on one chip: the driver's statistics by our names, waves a SIMD holds, the cost of a unit of work."""

    name: str
    subgroup: int
    statistics: dict[str, int]
    waves: int | None
    cost: UnitCost | None


def compile_row(variant: Variant, compiler: OfflineCompiler, chip: Chip | None, subgroup: int) -> tuple[Row, str]:
    """Compile a kernel's variant for the chip: its figures, and the chip's instructions.

    Raises:
        InputError: it does not compile to SPIR-V.
        DeviceError: RADV's compiler refuses it, crashes or hangs.
    """
    launch = variant.launch
    compiled = compiler.compile_kernel(launch.kernel, launch.spec, subgroup=subgroup, disassemble=True)
    cost = unit_cost(launch, compiled.assembly, compiled.subgroup, chip)
    return make_row(variant.name, compiled, chip, cost), compiled.assembly


def make_row(name: str, compiled: Compiled, chip: Chip | None, cost: UnitCost | None) -> Row:
    """The figures of what was compiled."""
    found = compiled.statistics
    statistics = {ours: int(found[theirs]) for ours, theirs in KEPT.items() if theirs in found}
    waves = None
    if chip is not None:
        waves = chip.waves_per_simd(statistics["vgprs"], compiled.subgroup, statistics["lds_bytes"])
    return Row(name, compiled.subgroup, statistics, waves, cost)


def row_json(row: Row) -> dict[str, Any]:
    """A row as plain values."""
    cost = None
    if row.cost is not None:
        cost = vars(row.cost) | {"governs": row.cost.governs, "share": row.cost.share}
    return {"name": row.name, "subgroup": row.subgroup, **row.statistics, "waves_per_simd": row.waves, "unit": cost}
