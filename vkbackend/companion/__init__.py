"""The companion layer's Python face: what Kompute leaves out, for one open device.

companion.h documents each function. Calls into the library release the GIL.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vkbackend.companion.loading import LAYER, library
from vkbackend.errors import DeviceError, DeviceLostError, OutOfMemoryError

# A lost device rarely says so; no submission of ours is meant to take more than a second, a compilation inside one may
# take tens of them on a CPU device.
DEADLINE_S = 120.0
_SLICE_S = 0.1  # how long a Ctrl-C may have to wait
_TIMEOUT = 2  # VK_TIMEOUT
_OUT_OF_MEMORY = {-1: "host", -2: "device"}  # VK_ERROR_OUT_OF_HOST_MEMORY, VK_ERROR_OUT_OF_DEVICE_MEMORY
_DEVICE_LOST = -4
_DEVICE_LOCAL = 0x1

MEMORY_DEVICE_LOCAL, MEMORY_HOST_CACHED = 0x1, 0x8  # VkMemoryPropertyFlagBits, for prefer_memory


@dataclass(frozen=True)
class HeapUse:
    """One memory heap now. Bytes, but for the two counts ``allocations`` (live ones) and ``failures``.

    ``budget`` is what this process may use in all and ``usage`` what it uses, by the driver's account; without
    VK_EXT_memory_budget they are ``size`` and ``live``. ``live`` and ``peak`` are what this device has allocated.
    """

    size: int
    device_local: bool
    budget: int
    usage: int
    live: int
    peak: int
    allocations: int
    failures: int


_HEAP_NUMBERS = ("size", "budget", "usage", "live", "peak", "allocations", "failures")


class _Heap(ctypes.Structure):
    """companion_heap."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in _HEAP_NUMBERS),
        ("flags", ctypes.c_uint32),
    ]


def messages() -> list[str]:
    """Validation messages since the last call, from every device of this process; LATENTVK_VALIDATE turns them on."""
    lib: Any = library()
    lib.companion_take_message.restype = ctypes.c_uint64
    found = []
    text = ctypes.create_string_buffer(16384)
    while lib.companion_take_message(text, ctypes.c_uint64(len(text))):
        found.append(text.value.decode(errors="replace"))
    return found


def live_devices() -> int:
    """Vulkan devices of this process that exist."""
    lib: Any = library()
    lib.companion_live_devices.restype = ctypes.c_uint64
    return int(lib.companion_live_devices())


class Companion:
    """The layer's side of one open device, from ``take`` until its Manager is destroyed."""

    def __init__(self, handle: int, device_name: str) -> None:
        self._lib: Any = library()
        self._handle = ctypes.c_void_p(handle)
        self._name = device_name
        for function, result in (
            ("companion_feature_name", ctypes.c_char_p),
            ("companion_object_name", ctypes.c_char_p),
            ("companion_feature_enabled", ctypes.c_bool),
            ("companion_feature_supported", ctypes.c_bool),
            ("companion_heap_use", ctypes.c_bool),
            ("companion_lost", ctypes.c_bool),
            ("companion_abandoned", ctypes.c_bool),
            ("companion_object_count", ctypes.c_uint64),
            ("companion_fallible_calls", ctypes.c_uint64),
        ):
            getattr(self._lib, function).restype = result
        # Requests speak of what is recorded next, so one thread at a time records or submits.
        self.lock = threading.RLock()

    @classmethod
    def take(cls, device_name: str) -> Companion:
        """The face of the device that this thread has just created.

        Raises:
            DeviceError: the loader did not load the layer for it.
        """
        lib: Any = library()
        lib.companion_take_device.restype = ctypes.c_void_p
        handle = lib.companion_take_device()
        if not handle:
            raise DeviceError(
                f"the companion layer {LAYER} did not load for {device_name}, and without it nothing orders dependent "
                "kernels; expected a Vulkan loader of 1.3.207 or newer in a process without raised privileges: "
                "update libvulkan1, and unset VK_LOADER_LAYERS_DISABLE if it is set"
            )
        return cls(handle, device_name)

    # ---- what the device is ------------------------------------------------------------------------------------------

    @cached_property
    def features(self) -> frozenset[str]:
        """Device features that are on."""
        return self._features("companion_feature_enabled")

    @cached_property
    def supported(self) -> frozenset[str]:
        """Device features, of those that the layer knows, that the device offers."""
        return self._features("companion_feature_supported")

    def _features(self, test: str) -> frozenset[str]:
        found, index = set(), 0
        while name := self._lib.companion_feature_name(index):
            if getattr(self._lib, test)(self._handle, index):
                found.add(name.decode())
            index += 1
        return frozenset(found)

    @cached_property
    def api_version(self) -> str:
        """Vulkan version that may be used, e.g. "1.3"."""
        packed = self._lib.companion_api_version(self._handle)
        return f"{packed >> 22 & 0x7F}.{packed >> 12 & 0x3FF}"

    @cached_property
    def subgroup_sizes(self) -> tuple[int, int]:
        """The smallest and largest subgroup that may be required; (0, 0) where none may."""
        smallest, largest = ctypes.c_uint32(), ctypes.c_uint32()
        self._lib.companion_subgroup_sizes(self._handle, ctypes.byref(smallest), ctypes.byref(largest))
        return smallest.value, largest.value

    # ---- recording ---------------------------------------------------------------------------------------------------

    def overlap(self) -> None:
        """The next dispatch recorded needs no barrier before it; without this call it gets one."""
        self._lib.companion_overlap(self._handle)

    def dispatch_box(self, base: tuple[int, int, int], count: tuple[int, int, int]) -> None:
        """The next dispatch recorded covers these ``count`` workgroups from ``base`` on, in place of its own."""
        self._lib.companion_dispatch_box(self._handle, (ctypes.c_uint32 * 3)(*base), (ctypes.c_uint32 * 3)(*count))

    def require_subgroup_size(self, size: int) -> None:
        """Subgroup size of the pipelines created from now on; 0: the driver's choice."""
        self._lib.companion_require_subgroup_size(self._handle, size)

    @contextmanager
    def texel_bindings(self, bindings: int) -> Iterator[None]:
        """Within: bindings of what Kompute creates, bit i for binding i, that are texel buffers of 16 bytes a texel."""
        self._lib.companion_texel_bindings(self._handle, bindings)
        try:
            yield
        finally:
            self._lib.companion_texel_bindings(self._handle, 0)

    def prefer_memory(self, flags: int) -> None:
        """VkMemoryPropertyFlags that the next allocations should have beside those that Kompute asks for."""
        self._lib.companion_prefer_memory(self._handle, flags)

    @contextmanager
    def creating(self, what: str) -> Iterator[None]:
        """Around Kompute calls that create objects or record commands: on failure all that was created is destroyed.

        Raises:
            OutOfMemoryError, DeviceLostError, DeviceError: a Vulkan call failed; ``what`` is named in the message.
        """
        self._lib.companion_begin_creating(self._handle)
        keep = False
        try:
            yield
            self.check(what)
            keep = True
        except RuntimeError as error:  # Kompute's, for those calls whose result it looks at
            self.check(what)
            raise DeviceError(f"{self._name}: {what} failed ({error}); expected success: update the driver") from error
        finally:
            self._lib.companion_end_creating(self._handle, ctypes.c_bool(keep))

    def check(self, what: str) -> None:
        """Raise the error of the first Vulkan call that failed since the last check, if one did."""
        call = ctypes.c_char_p()
        result = self._lib.companion_take_error(self._handle, ctypes.byref(call))
        if result < 0:
            raise self._error(what, result, (call.value or b"").decode())

    def _error(self, what: str, result: int, call: str) -> DeviceError:
        if result in _OUT_OF_MEMORY:
            return OutOfMemoryError(
                f"{self._name}: {what} failed, {call} is out of {_OUT_OF_MEMORY[result]} memory with "
                f"{self.live_bytes()} bytes allocated here; expected enough: use a shorter context or a smaller "
                "quantisation, or close other programs"
            )
        if result == _DEVICE_LOST:
            return DeviceLostError(
                f"{self._name} was lost at {what} ({call}); expected it to finish: results so far are kept, "
                "see the kernel log (dmesg) for a reset, then run the command again"
            )
        return DeviceError(
            f"{self._name}: {what} failed, {call} returned VkResult {result}; expected success: update the driver"
        )

    # ---- running -----------------------------------------------------------------------------------------------------

    def wait(self, what: str = "a submission", deadline_s: float = DEADLINE_S) -> float:
        """Wait for everything submitted. Returns seconds from the oldest submission to completion.

        A KeyboardInterrupt is raised once the device is done: what it works on must not be freed under it.

        Raises:
            DeviceLostError: the device is lost, or did not finish within ``deadline_s``.
            DeviceError: a submission failed.
        """
        elapsed = ctypes.c_uint64()
        interrupt: KeyboardInterrupt | None = None
        waited = 0.0
        while True:
            try:
                step = min(_SLICE_S, deadline_s - waited)
                result = self._lib.companion_wait(self._handle, ctypes.c_uint64(int(step * 1e9)), ctypes.byref(elapsed))
            except KeyboardInterrupt as error:
                interrupt, result = error, _TIMEOUT
            if result != _TIMEOUT:
                break
            waited += step
            if waited >= deadline_s:
                self._lib.companion_abandon(self._handle)
                raise DeviceLostError(
                    f"{self._name} did not finish {what} in {deadline_s:g} s; expected less than 1 s: results so far "
                    "are kept, see the kernel log (dmesg) for a hang, then run the command again"
                )
        self.check(what)
        if interrupt is not None:
            raise interrupt
        return elapsed.value * 1e-9

    @property
    def lost(self) -> bool:
        """Whether the device was lost, or given up after a deadline."""
        return bool(self._lib.companion_lost(self._handle))

    @property
    def abandoned(self) -> bool:
        """Whether it was given up while work may still run: nothing of it is destroyed any more."""
        return bool(self._lib.companion_abandoned(self._handle))

    # ---- accounting --------------------------------------------------------------------------------------------------

    def heaps(self) -> tuple[HeapUse, ...]:
        """Every memory heap as it is now."""
        found: list[HeapUse] = []
        heap = _Heap()
        while self._lib.companion_heap_use(self._handle, len(found), ctypes.byref(heap)):
            values = {name: int(getattr(heap, name)) for name in _HEAP_NUMBERS}
            found.append(HeapUse(device_local=bool(heap.flags & _DEVICE_LOCAL), **values))
        return tuple(found)

    def live_bytes(self) -> int:
        """Bytes of Vulkan memory allocated now."""
        return sum(heap.live for heap in self.heaps())

    def objects(self) -> dict[str, int]:
        """Live Vulkan objects by type; a pipeline that several algorithms share counts once."""
        counts: dict[str, int] = {}
        while name := self._lib.companion_object_name(len(counts)):
            counts[name.decode()] = int(self._lib.companion_object_count(self._handle, len(counts)))
        return counts

    def pipeline_counts(self) -> tuple[int, int]:
        """Pipelines created so far, and those handed out again for identical create-infos."""
        created, shared = ctypes.c_uint64(), ctypes.c_uint64()
        self._lib.companion_pipeline_counts(self._handle, ctypes.byref(created), ctypes.byref(shared))
        return created.value, shared.value

    # ---- for tests ---------------------------------------------------------------------------------------------------

    def fail_call(self, n: int, result: int = -2) -> None:
        """The ``n``-th fallible Vulkan call from now returns ``result`` without being made; 0: none does."""
        self._lib.companion_fail_call(self._handle, ctypes.c_uint64(n), result)

    def fallible_calls(self) -> int:
        """Fallible Vulkan calls made so far."""
        return int(self._lib.companion_fallible_calls(self._handle))

    def slow_down(self, seconds_per_workgroup: float) -> None:
        """Make the device artificially slow: a submission takes at least this long for each of its workgroups."""
        self._lib.companion_slow_down(self._handle, ctypes.c_uint64(int(seconds_per_workgroup * 1e9)))

    def share_pipelines(self, share: bool) -> None:
        """Whether identical pipelines are shared, as they are unless told otherwise."""
        self._lib.companion_share_pipelines(self._handle, ctypes.c_bool(share))

    def lose(self) -> None:
        """Let the next wait report that the device is lost."""
        self._lib.companion_lose(self._handle)
