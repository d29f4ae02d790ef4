"""A device that allocates and runs nothing: what would be launched can be listed, for a chip that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vkbackend.buffer import PIECE_BYTES
from vkbackend.device import Device
from vkbackend.memory import Room, Use
from vkbackend.pace import Pace
from vkbackend.physical import DeviceInfo
from vkbackend.tuning import Tuning

if TYPE_CHECKING:
    from vkbackend.buffer import Buffer


class DryDevice(Device):
    """Buffers on it have a size and no memory; programs on it hold their launches and cannot run.

    What is uploaded is dropped, what is downloaded is zero.
    """

    keeps_data = False

    def __init__(self, info: DeviceInfo, tuning: Tuning | None = None) -> None:
        self.info = info
        self.tuning = tuning or Tuning()
        self.memory_fraction = None
        self.pace = Pace()
        self.manager = _Tensors()
        self.companion: Any = _Companion()
        self.memory: Any = _Memory()

    def close(self) -> None:
        """Nothing was opened."""


class _Tensor:
    def __init__(self, words: int) -> None:
        self._words = words

    def data(self) -> NDArray[np.uint32]:
        return np.zeros(self._words, np.uint32)

    def destroy(self) -> None:
        """Nothing was allocated."""


class _Tensors:
    def tensor_t(self, template: NDArray[np.uint32], kind: Any) -> _Tensor:
        return _Tensor(template.size)


class _Companion:
    @contextmanager
    def creating(self, what: str) -> Iterator[None]:
        yield

    @contextmanager
    def texel_bindings(self, bindings: int) -> Iterator[None]:
        yield

    def prefer_memory(self, flags: int) -> None:
        """No memory is chosen."""

    def live_bytes(self) -> int:
        return 0


class _Memory:
    """As on a discrete device, so that uploads go through staging, which here leads nowhere."""

    def __init__(self) -> None:
        self.staging = _Staging()

    def mapped(self, use: Use) -> bool:
        return use.host

    def preference(self, use: Use, nbytes: int) -> int:
        return 0

    def room(self) -> Room:
        return Room(2**62, "of no memory at all")

    def close(self) -> None:
        """Nothing was allocated."""


class _Staging:
    nbytes = 2 * PIECE_BYTES

    def __init__(self) -> None:
        self._piece = np.zeros(PIECE_BYTES, np.uint8)

    @contextmanager
    def window(self, target: Buffer, offset: int, nbytes: int) -> Iterator[NDArray[np.uint8]]:
        yield self._piece[:nbytes]

    def read(self, source: Buffer, out: NDArray[np.uint8]) -> None:
        out[:] = 0

    def zero(self, target: Buffer) -> None:
        """There is nothing to zero."""
