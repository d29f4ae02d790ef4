"""Where buffers live: one policy for devices that share the host's memory and for those with memory of their own.

Unified: every buffer is a Kompute ``host`` tensor, mapped for its whole life, so nothing exists twice. Discrete: what
only kernels touch (weights, cache, scratch) is a ``storage`` tensor, device-local without a staging copy, filled and
read through one bounded staging buffer; what the host writes or reads for every token stays host-visible.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vkbackend.device import Device
    from vkbackend.staging import Staging

# Kompute counts a tensor's bytes in 32 bits and wraps silently, so nothing larger is asked of it.
_KOMPUTE_LIMIT = 2**32 - 4


class Use(Enum):
    """What a buffer is for; the value says whether the host touches it while programs run."""

    WEIGHTS = "weights", False
    CACHE = "cache", False
    SCRATCH = "scratch", False
    PARAMETERS = "parameters", True  # written by the host for every token
    RESULTS = "results", True  # read by the host
    STAGING = "staging", True

    @property
    def host(self) -> bool:
        """Whether the buffer must be mapped on every device."""
        return self.value[1]


class Memory:
    """The policy applied to one open device, and the device's one staging buffer."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._staging: Staging | None = None

    def mapped(self, use: Use) -> bool:
        """Whether a buffer for ``use`` is a mapped ``host`` tensor; otherwise it is a ``storage`` one."""
        return use.host or self._device.info.unified

    @property
    def staging(self) -> Staging:
        """What buffers without a mapping are filled and read through, made when first needed."""
        if self._staging is None:
            from vkbackend.staging import Staging  # which builds on this module

            self._staging = Staging(self._device)
        return self._staging

    def close(self) -> None:
        """Give the staging buffer back; it is made again when needed."""
        if self._staging is not None:
            self._staging.free()
            self._staging = None


def memory_of(device: Device) -> Memory:
    """The memory policy of ``device``, made when first asked for."""
    found = device.__dict__.get("memory")
    if found is None:
        found = device.__dict__["memory"] = Memory(device)
    memory: Memory = found
    return memory


def buffer_limit(device: Device) -> int:
    """Bytes that one buffer may have: what a storage buffer binding covers, and what Kompute can count."""
    return min(device.info.max_storage_buffer_range, _KOMPUTE_LIMIT)
