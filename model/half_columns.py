"""How lanes share the columns of rows of halves (shaders/include/half_columns.glsl)."""

from __future__ import annotations

from dataclasses import dataclass

from model import kernels
from model.weights import reads_texels
from vkbackend.device import Device
from vkbackend.kernel import Kernel

EIGHT = 8  # halves that a lane loads at once; rows are whole eights


def eights(width: int) -> int:
    """Eights of halves that a row of ``width`` numbers is."""
    return -(-width // EIGHT)


@dataclass(frozen=True)
class HalfColumns:
    """``each`` columns a lane, 4 or 8, read as texels or not; ``block`` columns a subgroup."""

    each: int
    texels: bool
    block: int

    @classmethod
    def choose(cls, device: Device, columns: int) -> HalfColumns:
        """For rows of which ``columns`` are wanted: eight a lane, or four where a subgroup has them all by that."""
        lanes = device.subgroup_size
        each = 4 if columns <= 4 * lanes else EIGHT
        return cls(each, each == EIGHT and reads_texels(device.info), each * lanes)

    def kernel(self, kernel: Kernel, binding: str) -> Kernel:
        """The form of ``kernel`` whose ``binding`` holds the rows."""
        if self.each < EIGHT:
            return kernel.variant(FOURS="1")
        return kernels.with_texels(kernel, binding) if self.texels else kernel

    def takes(self, n_eights: int) -> int:
        """So many eights, counted by what a lane takes."""
        return n_eights * (EIGHT // self.each)
