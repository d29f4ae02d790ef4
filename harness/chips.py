"""Chips whose figures a prediction can use: what they compute and read in a second, and where the numbers come from."""

from __future__ import annotations

from dataclasses import dataclass

from vkbackend.errors import InputError

GB = 10**9
GIB = 2**30
GHZ = 10**9
# A compute unit starts 64 lanes' instructions in a cycle: two SIMDs of 32 lanes (AMD, RDNA white paper, 2019).
LANES_PER_UNIT = 64
# A product of two matrices of 16 x 16 halves takes a SIMD 32 cycles (AMD, "How to accelerate AI applications on RDNA 3
# using WMMA", 2023), a unit 16 of all its lanes.
LANE_INSTRUCTIONS_OF_A_MATRIX = 16 * LANES_PER_UNIT
MOST_WAVES = 16  # of a SIMD, from RDNA2 on (Mesa, src/amd/common/ac_gpu_info.c: max_waves_per_simd)
SHARED_BYTES_PER_SIMD = 32 * 1024  # lds_size_per_workgroup over num_simd_per_compute_unit, the same file


@dataclass(frozen=True)
class Chip:
    """A GPU: ``units`` compute units at ``clock`` Hz, ``bandwidth`` in bytes/s, ``memory`` in bytes (None: depends on
    the machine that it sits in).

    ``family`` is the chip as RADV names it. ``dual_issue``: two f32 operations a lane and cycle, from RDNA3 on.
    ``registers`` are a SIMD's vector registers for waves of 64 (ac_gpu_info.c: num_physical_wave64_vgprs_per_simd).
    """

    key: str
    name: str
    family: str
    architecture: str
    units: int
    clock: float
    dual_issue: bool
    registers: int
    bandwidth: float
    bandwidth_source: str
    memory: int | None = None

    @property
    def lane_instructions(self) -> float:
        """Vector instructions times lanes that the chip starts in a second."""
        return self.units * LANES_PER_UNIT * self.clock

    @property
    def flops(self) -> float:
        """f32 operations a second: a multiply-add is two."""
        return self.lane_instructions * 2 * (2 if self.dual_issue else 1)

    @property
    def flops_source(self) -> str:
        """What ``flops`` is made of."""
        return f"{self.units} units, {self.architecture}, {self.clock / GHZ:g} GHz"

    @property
    def balance(self) -> float:
        """FLOP the chip can do in the time it reads one byte: work above this is bound by arithmetic."""
        return self.flops / self.bandwidth

    def waves_per_simd(self, registers: int, subgroup: int, shared_bytes: int = 0) -> int:
        """Waves that a SIMD holds at once of a shader with so many registers, and shared memory a wave.

        Registers are handed out in 64ths of the file (ac_gpu_info.c: wave64_vgpr_alloc_granularity), two of a wave of
        32 in the place of one of 64.
        """
        scale = 64 // subgroup
        file, step = self.registers * scale, self.registers * scale // 64
        waves = file // max(step, -(-registers // step) * step)
        if shared_bytes:
            waves = min(waves, SHARED_BYTES_PER_SIMD // shared_bytes)
        return min(MOST_WAVES, waves)


CHIPS = {
    chip.key: chip
    for chip in (
        Chip(
            key="780m",
            name="Radeon 780M",
            family="phoenix",
            architecture="RDNA3",
            units=12,
            clock=2.7 * GHZ,
            dual_issue=True,
            registers=512,
            bandwidth=80 * GB,
            bandwidth_source="reported by a user of DDR5-5600 on two channels (89.6 by the bus)",
            memory=96 * GIB,  # the reporting user's machine
        ),
        Chip(
            key="680m",
            name="Radeon 680M",
            family="rembrandt",
            architecture="RDNA2",
            units=12,
            clock=2.4 * GHZ,
            dual_issue=False,
            registers=512,
            bandwidth=76.8 * GB,
            bandwidth_source="DDR5-4800 on two channels",
        ),
        Chip(
            key="890m",
            name="Radeon 890M",
            family="gfx1150",
            architecture="RDNA3.5",
            units=16,
            clock=2.9 * GHZ,
            dual_issue=True,
            registers=512,
            bandwidth=120 * GB,
            bandwidth_source="LPDDR5X-7500 on 128 bits",
        ),
        Chip(
            key="8060s",
            name="Radeon 8060S",
            family="gfx1151",
            architecture="RDNA3.5",
            units=40,
            clock=2.9 * GHZ,
            dual_issue=True,
            registers=768,
            bandwidth=236 * GB,
            bandwidth_source="best published Vulkan read rate (256 by the bus)",
        ),
        Chip(
            key="7900xtx",
            name="Radeon RX 7900 XTX",
            family="navi31",
            architecture="RDNA3",
            units=96,
            clock=2.5 * GHZ,
            dual_issue=True,
            registers=768,
            bandwidth=960 * GB,
            bandwidth_source="GDDR6, 20 Gbit/s on 384 bits",
            memory=24 * GIB,
        ),
    )
}


def get_chip(key: str) -> Chip:
    """The chip of that key, or of that family, any case. Raises InputError listing the keys."""
    for chip in CHIPS.values():
        if key.lower() in (chip.key, chip.family):
            return chip
    raise InputError(f"unknown chip '{key}'; expected one of {', '.join(CHIPS)}; choose one of them")


def find_chip(name: str) -> Chip | None:
    """As ``get_chip``; None for a chip that is not in the table: RADV compiles for more families."""
    try:
        return get_chip(name)
    except InputError:
        return None
