"""What each physical device is and allows, read without opening it.

Kompute shows neither limits nor heaps and aborts the process when there is no driver at all, so the
physical devices are read through the ``vulkan`` package first and Kompute is started only on one that exists.
"""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass
from typing import Any

from vkbackend.errors import DeviceError

# VkPhysicalDeviceType, Vulkan 1.3 specification, "VkPhysicalDeviceType".
_KINDS = {0: "other", 1: "integrated", 2: "discrete", 3: "virtual", 4: "cpu"}
# Best first when nothing was asked for.
_PREFERENCE = ("discrete", "integrated", "virtual", "other", "cpu")
_COMPUTE_STAGE = 0x20  # VkShaderStageFlagBits
_DEVICE_LOCAL = 0x1
_HOST_COHERENT = 0x2 | 0x4

_NO_LOADER = (
    "no Vulkan loader (libvulkan.so.1) on this machine; expected one: "
    "install libvulkan1 and a driver (mesa-vulkan-drivers), or run `make demo`, which does both"
)
_NO_DEVICE = (
    "the Vulkan loader found no device; expected at least one: install a driver (mesa-vulkan-drivers has AMD's, "
    "Intel's and the CPU's), and check VK_DRIVER_FILES and VK_ICD_FILENAMES if they are set"
)


@dataclass(frozen=True)
class Heap:
    """One memory heap: ``size`` in bytes, whether it is device-local and whether the host can map it."""

    size: int
    device_local: bool
    host_visible: bool


@dataclass(frozen=True)
class DeviceInfo:
    """What one physical device is and allows. Sizes in bytes, times in nanoseconds."""

    index: int
    name: str
    kind: str
    driver: str
    driver_version: str
    api_version: str
    vendor_id: int
    device_id: int
    heaps: tuple[Heap, ...]
    host_heap: int  # where Kompute's host-visible buffers go: the heap of the first such memory type
    subgroup_size: int
    subgroup_operations: int  # VkSubgroupFeatureFlags that compute shaders may use
    max_storage_buffer_range: int
    shared_memory: int
    max_workgroup_count: tuple[int, int, int]
    max_workgroup_size: int
    timestamp_period_ns: float

    @property
    def unified(self) -> bool:
        """Whether host and device share one memory, so that weights need no second copy."""
        return self.kind in ("integrated", "cpu")

    @property
    def memory(self) -> int:
        """Bytes that buffers can use: the host-visible heap on unified memory, the device-local ones elsewhere."""
        if self.unified:
            return self.heaps[self.host_heap].size
        return sum(h.size for h in self.heaps if h.device_local)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, with ``unified`` and ``memory`` among them."""
        return {**asdict(self), "unified": self.unified, "memory": self.memory}


def _version(packed: int) -> str:
    return f"{packed >> 22 & 0x7F}.{packed >> 12 & 0x3FF}.{packed & 0xFFF}"


def _describe(vk: Any, raw: Any, physical: Any, index: int) -> DeviceInfo:
    subgroup = vk.VkPhysicalDeviceSubgroupProperties()
    driver = vk.VkPhysicalDeviceDriverProperties(pNext=subgroup)
    properties = vk.VkPhysicalDeviceProperties2(pNext=driver)
    # The package's wrapper returns a fresh struct without pNext; the raw entry point fills the chain.
    raw.lib.vkGetPhysicalDeviceProperties2(physical, raw.ffi.addressof(properties))
    core = properties.properties
    limits = core.limits
    memory = vk.vkGetPhysicalDeviceMemoryProperties(physical)
    types = [memory.memoryTypes[i] for i in range(memory.memoryTypeCount)]
    heaps = tuple(
        Heap(
            size=int(memory.memoryHeaps[i].size),
            device_local=bool(memory.memoryHeaps[i].flags & _DEVICE_LOCAL),
            host_visible=any(t.heapIndex == i and t.propertyFlags & _HOST_COHERENT == _HOST_COHERENT for t in types),
        )
        for i in range(memory.memoryHeapCount)
    )
    host_heap = next((t.heapIndex for t in types if t.propertyFlags & _HOST_COHERENT == _HOST_COHERENT), 0)
    in_compute = subgroup.supportedStages & _COMPUTE_STAGE
    text = raw.ffi.string
    return DeviceInfo(
        index=index,
        name=text(core.deviceName).decode(),
        kind=_KINDS.get(core.deviceType, "other"),
        driver=text(driver.driverName).decode(),
        driver_version=text(driver.driverInfo).decode() or str(core.driverVersion),
        api_version=_version(core.apiVersion),
        vendor_id=int(core.vendorID),
        device_id=int(core.deviceID),
        heaps=heaps,
        host_heap=int(host_heap),
        subgroup_operations=int(subgroup.supportedOperations) if in_compute else 0,
        subgroup_size=int(subgroup.subgroupSize),
        max_storage_buffer_range=int(limits.maxStorageBufferRange),
        shared_memory=int(limits.maxComputeSharedMemorySize),
        max_workgroup_count=(
            int(limits.maxComputeWorkGroupCount[0]),
            int(limits.maxComputeWorkGroupCount[1]),
            int(limits.maxComputeWorkGroupCount[2]),
        ),
        max_workgroup_size=int(limits.maxComputeWorkGroupInvocations),
        timestamp_period_ns=float(limits.timestampPeriod),
    )


def list_devices() -> list[DeviceInfo]:
    """Every physical device that the loader offers, in the loader's order.

    Raises:
        DeviceError: there is no loader or no device.
    """
    try:
        vk = importlib.import_module("vulkan")
        raw = importlib.import_module("vulkan._vulkan")
    except OSError as error:
        raise DeviceError(_NO_LOADER) from error
    application = vk.VkApplicationInfo(
        pApplicationName="latentvk",
        applicationVersion=1,
        pEngineName="latentvk",
        engineVersion=1,
        apiVersion=1 << 22 | 1 << 12,
    )
    try:
        instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
    except vk.VkError as error:
        raise DeviceError(_NO_DEVICE) from error
    try:
        devices = [_describe(vk, raw, p, i) for i, p in enumerate(vk.vkEnumeratePhysicalDevices(instance))]
    except vk.VkError as error:
        raise DeviceError(_NO_DEVICE) from error
    finally:
        vk.vkDestroyInstance(instance, None)
    if not devices:
        raise DeviceError(_NO_DEVICE)
    return devices


def select_device(devices: list[DeviceInfo], selector: str | None) -> DeviceInfo:
    """The device that ``selector`` names (an index, or part of a name); without one the most capable kind.

    Raises:
        DeviceError: no device matches, or a part of a name matches several.
    """
    if not selector:
        return min(devices, key=lambda d: (_PREFERENCE.index(d.kind), d.index))
    listing = ", ".join(f"{d.index}: {d.name}" for d in devices)
    if selector.isdigit():
        found = [d for d in devices if d.index == int(selector)]
    else:
        found = [d for d in devices if selector.lower() in d.name.lower()]
    if len(found) != 1:
        number = "no" if not found else "more than one"
        raise DeviceError(f"{number} Vulkan device matches {selector!r}; expected one of {listing}: pass its number")
    return found[0]
