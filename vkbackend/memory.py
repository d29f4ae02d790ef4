"""Where buffers live: one policy for devices that share the host's memory and for those with memory of their own.

Unified: every buffer is a Kompute ``host`` tensor, mapped for its whole life, so nothing exists twice. Discrete: what
only kernels touch (weights, cache, scratch) is a ``storage`` tensor, device-local without a staging copy, filled and
read through one bounded staging buffer; what the host writes or reads for every token stays host-visible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import psutil

from vkbackend.companion import MEMORY_DEVICE_LOCAL, MEMORY_HOST_CACHED, HeapUse

if TYPE_CHECKING:
    from vkbackend.device import Device
    from vkbackend.staging import Staging

# Kompute counts a tensor's bytes in 32 bits and wraps silently, so nothing larger is asked of it.
_KOMPUTE_LIMIT = 2**32 - 4
# What may be used of all memory. Unified: 0.80 of it was reported to starve the desktop and 0.50 to be comfortable, and
# a model of 18 GB must load in 32 GB. A discrete card keeps a little for the compositor.
FRACTION_UNIFIED, FRACTION_DISCRETE = 0.65, 0.95
_HOST_RESERVE = 512 * 2**20  # of what the host has free, for the page cache and for programs that grow


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


@dataclass(frozen=True)
class Room:
    """Bytes that new buffers may take, which limit allows no more (words that follow "left"), and what would raise it
    (words that follow "use")."""

    nbytes: int
    limit: str
    remedy: str = ""


class Memory:
    """The policy applied to one open device, and the device's one staging buffer.

    ``fraction`` is the share of the host's memory (unified) or of the device's budget (discrete) that may be taken in
    all: the device's ``memory_fraction``, or the default above where that is None.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        default = FRACTION_UNIFIED if device.info.unified else FRACTION_DISCRETE
        self.fraction = default if device.memory_fraction is None else device.memory_fraction
        self._staging: Staging | None = None

    def mapped(self, use: Use) -> bool:
        """Whether a buffer for ``use`` is a mapped ``host`` tensor; otherwise it is a ``storage`` one."""
        return use.host or self._device.info.unified

    def preference(self, use: Use, nbytes: int) -> int:
        """VkMemoryPropertyFlags that a buffer of ``nbytes`` should have beside those that Kompute asks for.

        An integrated GPU's driver may show its one memory as two heaps, of which Kompute alone would fill only the
        first host-visible one; device-local memory comes first while its budget lasts. What the host reads should be
        cached: reads of write-combined memory are slower by far.
        """
        if use in (Use.RESULTS, Use.STAGING):
            return MEMORY_HOST_CACHED
        if not self._device.info.unified:
            return 0
        heaps = self._device.companion.heaps()
        return MEMORY_DEVICE_LOCAL if any(h.device_local and h.budget - h.usage >= nbytes for h in heaps) else 0

    def _heaps(self) -> list[HeapUse]:
        """The heaps that weights and cache may fill."""
        heaps, info = self._device.companion.heaps(), self._device.info
        if info.unified:
            return [use for use, heap in zip(heaps, info.heaps, strict=False) if heap.host_visible]
        return [use for use in heaps if use.device_local]

    def room(self) -> Room:
        """What is left now under the narrowest limit: the device's budget, the host's free memory, or the fraction."""
        info, host, heaps = self._device.info, psutil.virtual_memory(), self._heaps()
        budget, used = sum(h.budget for h in heaps), sum(h.usage for h in heaps)
        share, larger = f"under --memory-fraction {self.fraction:g} of the", "a larger --memory-fraction"
        rooms = [Room(budget - used, f"of the device's memory budget of {budget} bytes")]
        if info.unified:
            live = self._device.companion.live_bytes()
            rooms.append(Room(int(self.fraction * host.total) - live, f"{share} host's {host.total} bytes", larger))
            free = host.available - _HOST_RESERVE
            kept = f"of the {host.available} bytes that the host has free, {_HOST_RESERVE} kept back"
            rooms.append(Room(free, kept, "fewer other programs"))
        else:  # of the host's memory only parameters, results and the bounded staging buffer are taken
            whole = f"{share} device's memory budget of {budget} bytes"
            rooms.append(Room(int(self.fraction * budget) - used, whole, larger))
        least = min(rooms, key=lambda room: room.nbytes)
        return replace(least, nbytes=max(0, least.nbytes))

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


def buffer_limit(device: Device) -> int:
    """Bytes that one buffer may have: what a binding covers, an allocation holds, and Kompute can count."""
    return min(device.info.max_storage_buffer_range, device.info.max_allocation, _KOMPUTE_LIMIT)
