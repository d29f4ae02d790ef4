"""An AMD shader's instructions as RADV prints them: counted by class, and the loops that they stand in.

Classes follow the instruction names of AMD's RDNA3 ISA reference (2023), chapter "Microcode formats", and of its
predecessors: v_ vector, s_ scalar, buffer_/global_/flat_ vector memory, ds_ shared memory, scratch_ spills.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

_BLOCK = re.compile(r"(BB\d+):")
_BRANCH = re.compile(r"s_c?branch\S*\s+(BB\d+)")
_NO_WORK = ("s_delay", "s_waitcnt", "s_wait_", "s_clause", "s_nop", "s_sendmsg", "s_inst_prefetch", "s_set_inst")
# Bytes a lane loads, by the suffix of the name: RDNA3's and, after it, the older ones.
_WIDTHS = {"b128": 16, "b96": 12, "b64": 8, "b32": 4, "b16": 2, "u16": 2, "i16": 2, "u8": 1, "i8": 1}
_WIDTHS |= {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "sshort": 2, "ubyte": 1, "sbyte": 1}


@dataclass(frozen=True)
class Counts:
    """Instructions of each class. A dual-issued pair (RDNA3's v_dual_) is one; ``loaded_bytes`` are a lane's; of
    ``valu`` some are products of ``matrices``."""

    valu: float = 0
    matrices: float = 0
    salu: float = 0
    vmem_loads: float = 0
    vmem_stores: float = 0
    smem: float = 0
    lds: float = 0
    scratch: float = 0
    loaded_bytes: float = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, n: float) -> Counts:
        """The counts of ``n`` passes."""
        return Counts(*(n * getattr(self, f.name) for f in fields(self)))


@dataclass
class Loop:
    """Blocks ``first`` to ``last``; ``own`` counts one pass through those in no inner loop."""

    first: int
    last: int
    own: Counts = field(default_factory=Counts)
    inner: list[Loop] = field(default_factory=list)

    def total(self, inner_passes: Sequence[float] = ()) -> Counts:
        """One pass in which the inner loops, in order, make so many each; one where none is given."""
        counts = self.own
        for index, loop in enumerate(self.inner):
            counts += loop.total().times(inner_passes[index] if index < len(inner_passes) else 1)
        return counts


def hottest(loops: Sequence[Loop]) -> list[Loop]:
    """From an outermost loop inwards to the one without inner loops that has most products of matrices, or, where none
    has any, most vector instructions."""

    def ways(loop: Loop) -> list[list[Loop]]:
        return [[loop, *way] for inner in loop.inner for way in ways(inner)] or [[loop]]

    return max(
        (way for loop in loops for way in ways(loop)),
        key=lambda way: (way[-1].own.matrices, way[-1].own.valu),
        default=[],
    )


def find_loops(assembly: str) -> list[Loop]:
    """The outermost loops of ``assembly``, in order; a loop is a branch back to an earlier block."""
    blocks = _blocks(assembly)
    at = {name: index for index, (name, _) in enumerate(blocks)}
    ends: dict[int, int] = {}
    for index, (_, lines) in enumerate(blocks):
        for line in lines:
            branch = _BRANCH.match(line)
            target = at.get(branch[1]) if branch else None
            if target is not None and target <= index:
                ends[target] = max(index, ends.get(target, 0))
    outermost: list[Loop] = []
    open_loops: list[Loop] = []
    for index, (_, lines) in enumerate(blocks):
        while open_loops and index > open_loops[-1].last:
            open_loops.pop()
        if index in ends:
            loop = Loop(index, ends[index])
            (open_loops[-1].inner if open_loops else outermost).append(loop)
            open_loops.append(loop)
        if open_loops:
            for line in lines:
                open_loops[-1].own += _count(line)
    return outermost


def _blocks(assembly: str) -> list[tuple[str, list[str]]]:
    blocks: list[tuple[str, list[str]]] = []
    for line in assembly.splitlines():
        label = _BLOCK.match(line)
        if label:
            blocks.append((label[1], []))
        elif blocks and line.strip():
            blocks[-1][1].append(line.split(";")[0].strip())
    return blocks


def _count(line: str) -> Counts:
    name = line.split()[0] if line else ""
    if name.startswith("v_"):
        return Counts(valu=1, matrices=int(name.startswith("v_wmma")))
    if name.startswith(("buffer_", "global_", "flat_")):
        if "_load" not in name:
            return Counts(vmem_stores=1)
        width = next((size for suffix, size in _WIDTHS.items() if suffix in name), 4)
        return Counts(vmem_loads=1, loaded_bytes=width)
    if name.startswith("scratch_"):
        return Counts(scratch=1)
    if name.startswith("ds_"):
        return Counts(lds=1)
    if name.startswith(("s_load", "s_buffer_load")):
        return Counts(smem=1)
    if name.startswith("s_") and not name.startswith(_NO_WORK):
        return Counts(salu=1)
    return Counts()
