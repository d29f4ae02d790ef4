"""Device memory: one allocation a buffer, uploaded from arrays or memory maps, downloaded to arrays.

``vkbackend/memory.py`` decides where a buffer lives. A mapped one is written and read in place; any other through the
device's staging buffer, in bounded pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vkbackend.device import Device
from vkbackend.errors import DeviceError
from vkbackend.memory import Use, buffer_limit

PIECE_BYTES = 16 * 2**20  # of a transfer: at most half a staging buffer, and what a memory map keeps resident at once


class Buffer:
    """``nbytes`` of memory on a device, a multiple of 4 and zeroed; ``name`` appears in errors and reports.

    ``allocated`` is what it takes of the device's memory, in bytes, counted where Vulkan allocates.

    ``use`` decides where it lives; ``host`` is short for results, which the host reads without a transfer.
    ``zeroed=False`` spares a device the zeroing of what the caller will write whole.

    Raises:
        OutOfMemoryError: the allocation failed.
        DeviceError: the size exceeds what one storage buffer binding may cover on the device.
    """

    def __init__(
        self,
        device: Device,
        nbytes: int,
        name: str,
        *,
        use: Use = Use.SCRATCH,
        host: bool = False,
        initial: NDArray[np.uint32] | None = None,
        zeroed: bool = True,
    ) -> None:
        import kp

        limit = buffer_limit(device)
        size = max(4, -(-nbytes // 4) * 4)
        if size > limit:
            raise DeviceError(
                f"buffer {name} needs {size} bytes; {device.info.name} binds at most {limit}: "
                "use a shorter context or a smaller chunk"
            )
        self.device = device
        self.name = name
        self.nbytes = size
        memory = device.memory
        use = Use.RESULTS if host else use
        self.mapped = memory.mapped(use)
        self._live = True
        # Kompute copies a host tensor's template and takes a storage tensor's size from it. np.zeros of a large size
        # is untouched address space, so no template is ever resident.
        template = initial if self.mapped and initial is not None else _zeros(device, size // 4)
        kind = kp.TensorTypes.host if self.mapped else kp.TensorTypes.storage
        with device.companion.creating(f"buffer {name} of {size} bytes"):
            device.companion.prefer_memory(memory.preference(use, size))
            before = device.companion.live_bytes()
            self.tensor = device.manager.tensor_t(template, kind)
            self.allocated = device.companion.live_bytes() - before  # a driver rounds up
        if self.mapped:
            return
        try:
            if initial is not None:
                self.upload(initial)
            elif zeroed:
                memory.staging.zero(self)
        except BaseException:
            self.free()
            raise

    def words(self) -> NDArray[np.uint32]:
        """The host's view of a mapped buffer's memory, as u32 words. ValueError for one that is not mapped."""
        if not self.mapped:
            raise ValueError(f"buffer {self.name} is not mapped; expected a mapped one: use window or download")
        view: NDArray[np.uint32] = self.tensor.data()
        return view

    @contextmanager
    def window(self, offset: int, nbytes: int) -> Iterator[NDArray[np.uint8]]:
        """At most ``piece`` bytes from ``offset`` (bytes), which the caller writes whole before the block ends.

        Raises:
            ValueError: the range leaves the buffer or is longer than ``piece``.
        """
        if not 0 <= offset <= offset + nbytes <= self.nbytes or nbytes > self.piece:
            raise ValueError(
                f"bytes {offset} to {offset + nbytes} of buffer {self.name}; expected at most {self.piece} of its "
                f"{self.nbytes}"
            )
        if self.mapped:
            yield self.words().view(np.uint8)[offset : offset + nbytes]
            return
        with self.device.memory.staging.window(self, offset, nbytes) as view:
            yield view

    def upload(self, array: NDArray[np.generic], offset: int = 0) -> None:
        """Copy ``array``'s bytes to ``offset`` (bytes). ValueError when they leave the buffer."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, flat.size, self.piece):
            part = flat[start : start + self.piece]
            with self.window(offset + start, part.size) as target:
                target[:] = part

    @property
    def piece(self) -> int:
        """Bytes that one window may have: PIECE_BYTES, or less where a small staging buffer must hold it."""
        return PIECE_BYTES if self.mapped else min(PIECE_BYTES, self.device.memory.staging.nbytes // 2)

    def download(self, dtype: DTypeLike, count: int | None = None) -> NDArray[np.generic]:
        """A copy of the first ``count`` elements as ``dtype``."""
        item = np.dtype(dtype).itemsize
        size = self.nbytes // item if count is None else min(count, self.nbytes // item)
        out = np.empty(size, dtype)
        if self.mapped:
            out[:] = self.words().view(dtype)[:size]
        else:
            self.device.memory.staging.read(self, out.view(np.uint8))
        return out

    def free(self) -> None:
        """Give the memory back now, once; the buffer must not be used afterwards."""
        if self._live:
            self._live = False
            self.tensor.destroy()


def _zeros(device: Device, words: int) -> NDArray[np.uint32]:
    """A template of so many words. Where they lead to no memory they take none either: planning makes thousands."""
    return np.zeros(words, np.uint32) if device.keeps_data else np.broadcast_to(np.uint32(0), words)
