"""One bounded host-visible buffer through which device-local buffers are filled and read, by a copy kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.kernel import Kernel
from vkbackend.memory import Use, buffer_limit
from vkbackend.program import Program

STAGING_BYTES = 32 * 2**20  # large enough that a transfer outlasts its submission on any bus
COPY = Kernel("copy_words.comp", (("source", "r"), ("target", "w")), ("EACH",), ("from", "to", "count"))
ZERO = Kernel("fill_zero.comp", (("target", "w"),), ("EACH",), ("to", "count"))
EACH = 16  # words an invocation


class Staging:
    """``nbytes`` of host-visible memory and the transfers through it. Offsets and sizes are bytes."""

    def __init__(self, device: Device, nbytes: int = STAGING_BYTES) -> None:
        self._device = device
        self._buffer = Buffer(device, min(nbytes, buffer_limit(device)), "staging", use=Use.STAGING)
        self.nbytes = self._buffer.nbytes

    @contextmanager
    def window(self, target: Buffer, offset: int, nbytes: int) -> Iterator[NDArray[np.uint8]]:
        """Bytes that the caller writes whole; they are in ``target`` at ``offset`` when the block ends.

        ``nbytes`` plus 6 must not exceed the staging buffer. Words that the range covers only in part keep the rest.
        """
        first, end = offset // 4, -(-(offset + nbytes) // 4)
        if offset % 4 or (offset + nbytes) % 4:
            self._copy(target, self._buffer, first, 0, end - first)
        view = self._buffer.words().view(np.uint8)
        yield view[offset - 4 * first : offset - 4 * first + nbytes]
        self._copy(self._buffer, target, 0, first, end - first)

    def read(self, source: Buffer, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the first bytes of ``source``."""
        for start in range(0, out.size, self.nbytes):
            count = min(self.nbytes, out.size - start)
            self._copy(source, self._buffer, start // 4, 0, -(-count // 4))
            out[start : start + count] = self._buffer.words().view(np.uint8)[:count]

    def zero(self, target: Buffer) -> None:
        """Zero all of ``target``."""
        program = Program(self._device, "zero")
        for first, count in self._pieces(target.nbytes // 4):
            program.launch(
                ZERO,
                {"target": target},
                self._grid(count),
                spec={"EACH": EACH},
                push={"to": first, "count": count},
                label=f"zero {target.name}",
            )
        program.run()
        program.free()

    def _copy(self, source: Buffer, target: Buffer, start: int, to: int, words: int) -> None:
        program = Program(self._device, "copy")
        for first, count in self._pieces(words):
            program.launch(
                COPY,
                {"source": source, "target": target},
                self._grid(count),
                spec={"EACH": EACH},
                push={"from": start + first, "to": to + first, "count": count},
                label=f"copy {source.name} to {target.name}",
            )
        program.run()
        program.free()

    def _grid(self, words: int) -> tuple[int, int, int]:
        return (-(-words // (EACH * self._device.subgroup_size)), 1, 1)

    def _pieces(self, words: int) -> Iterator[tuple[int, int]]:
        """(first, count) of the launches that the device's grid limit allows."""
        each = self._device.info.max_workgroup_count[0] * EACH * self._device.subgroup_size
        for first in range(0, words, each):
            yield first, min(each, words - first)

    def free(self) -> None:
        """Give the memory back."""
        self._buffer.free()
