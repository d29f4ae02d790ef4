"""Device memory: one allocation a buffer, uploaded from arrays or memory maps, downloaded to arrays.

On unified memory a buffer is host-visible and the upload is the only copy. On a discrete device Kompute
keeps a staging copy beside the device-local one; transfers then go through it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vkbackend.device import Device
from vkbackend.errors import DeviceError

# Kompute counts a tensor's bytes in 32 bits and wraps silently, so nothing larger is asked of it.
_KOMPUTE_LIMIT = 2**32 - 4


class Buffer:
    """``nbytes`` of memory on a device, a multiple of 4; ``name`` appears in errors and reports.

    ``host`` asks for memory that the host reads and writes without a transfer (parameters, results); on unified
    memory every buffer is of that kind.

    Raises:
        DeviceError: the size exceeds what one storage buffer binding may cover on the device.
    """

    def __init__(
        self,
        device: Device,
        nbytes: int,
        name: str,
        *,
        host: bool = False,
        initial: NDArray[np.uint32] | None = None,
    ) -> None:
        import kp

        limit = min(device.info.max_storage_buffer_range, _KOMPUTE_LIMIT)
        size = max(4, -(-nbytes // 4) * 4)
        if size > limit:
            raise DeviceError(
                f"buffer {name} needs {size} bytes; {device.info.name} binds at most {limit}: "
                "use a shorter context or a smaller chunk"
            )
        self.device = device
        self.name = name
        self.nbytes = size
        self.mapped = host or device.info.unified
        data = np.zeros(size // 4, np.uint32) if initial is None else initial
        kind = kp.TensorTypes.host if self.mapped else kp.TensorTypes.device
        self.tensor = device.manager.tensor_t(data, kind)
        device.live_bytes += size
        if initial is not None or not self.mapped:
            self._push()

    def words(self) -> NDArray[np.uint32]:
        """The host's view of the memory (the staging copy on a discrete device), as u32 words."""
        view: NDArray[np.uint32] = self.tensor.data()
        return view

    def view(self, dtype: DTypeLike) -> NDArray[np.generic]:
        """The host's view of the memory as ``dtype``."""
        return self.words().view(dtype)

    def _push(self) -> None:
        import kp

        if not self.mapped:
            self.device.manager.sequence().record(kp.OpTensorSyncDevice([self.tensor])).eval()

    def upload(self, array: NDArray[np.generic], offset: int = 0) -> None:
        """Copy ``array``'s bytes to ``offset`` (bytes)."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.words().view(np.uint8)[offset : offset + flat.size] = flat
        self._push()

    def fill(self, write: Callable[[NDArray[np.uint32]], None]) -> None:
        """Let ``write`` put the contents straight into the host's view of the memory, then transfer it if need be."""
        write(self.words())
        self._push()

    def download(self, dtype: DTypeLike, count: int | None = None) -> NDArray[np.generic]:
        """A copy of the first ``count`` elements as ``dtype``."""
        import kp

        if not self.mapped:
            self.device.manager.sequence().record(kp.OpTensorSyncLocal([self.tensor])).eval()
        return self.view(dtype)[:count].copy()

    def free(self) -> None:
        """Give the memory back now; the buffer must not be used afterwards."""
        self.tensor.destroy()
        self.device.live_bytes -= self.nbytes
