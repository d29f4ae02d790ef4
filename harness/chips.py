"""Chips whose figures a prediction can use: bandwidth and f32 arithmetic, each with where the number comes from.

Arithmetic is compute units x 64 lanes x 2 (multiply and add) x clock, times 2 on RDNA3 and later, which issue two f32
operations a cycle. Bandwidth is what a program was seen to reach where somebody measured it, else bus width x data
rate.
"""

from dataclasses import dataclass

from vkbackend.errors import InputError

GB = 10**9
GIB = 2**30
TFLOPS = 10**12


@dataclass(frozen=True)
class Chip:
    """bandwidth in bytes/s, flops in f32 operations/s, memory in bytes (None: depends on the machine it sits in)."""

    key: str
    name: str
    bandwidth: float
    bandwidth_source: str
    flops: float
    flops_source: str
    memory: int | None = None

    @property
    def balance(self) -> float:
        """FLOP the chip can do in the time it reads one byte: work above this is bound by arithmetic."""
        return self.flops / self.bandwidth


CHIPS = {
    chip.key: chip
    for chip in (
        Chip(
            "780m",
            "Radeon 780M",
            80 * GB,
            "reported by a user of DDR5-5600 on two channels (89.6 by the bus)",
            8.3 * TFLOPS,
            "12 units, RDNA3, 2.7 GHz",
            96 * GIB,  # the reporting user's machine
        ),
        Chip("680m", "Radeon 680M", 76.8 * GB, "DDR5-4800 on two channels", 3.7 * TFLOPS, "12 units, RDNA2, 2.4 GHz"),
        Chip("890m", "Radeon 890M", 120 * GB, "LPDDR5X-7500 on 128 bits", 11.9 * TFLOPS, "16 units, RDNA3.5, 2.9 GHz"),
        Chip(
            "8060s",
            "Radeon 8060S",
            236 * GB,
            "best published Vulkan read rate (256 by the bus)",
            29.7 * TFLOPS,
            "40 units, RDNA3.5, 2.9 GHz",
        ),
        Chip(
            "7900xtx",
            "Radeon RX 7900 XTX",
            960 * GB,
            "GDDR6, 20 Gbit/s on 384 bits",
            61.4 * TFLOPS,
            "96 units, RDNA3, 2.5 GHz",
            24 * GIB,
        ),
    )
}


def get_chip(key: str) -> Chip:
    """The chip of that key, any case. Raises InputError listing the keys."""
    chip = CHIPS.get(key.lower())
    if chip is None:
        raise InputError(f"unknown chip '{key}'; expected one of {', '.join(CHIPS)}; choose one of them")
    return chip
