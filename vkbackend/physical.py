"""What each physical device is and allows, read without opening it.

Kompute shows neither limits nor heaps and aborts the process when there is no driver at all, so the
physical devices are read through the ``vulkan`` package first and Kompute is started only on one that exists.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from vkbackend.errors import DeviceError
from vkbackend.matrix_shapes import MATRIX_EXTENSION, MatrixShape, read_matrix_shapes

# VkPhysicalDeviceType, Vulkan 1.3 specification, "VkPhysicalDeviceType".
_KINDS = {0: "other", 1: "integrated", 2: "discrete", 3: "virtual", 4: "cpu"}
# Best first when nothing was asked for.
_PREFERENCE = ("discrete", "integrated", "virtual", "other", "cpu")
# VkSubgroupFeatureFlagBits that the shaders build on: basic, arithmetic, ballot, shuffle, quad.
_SUBGROUP_OPERATIONS = 0x1 | 0x4 | 0x8 | 0x10 | 0x80
_COMPUTE_STAGE = 0x20  # VkShaderStageFlagBits
_COMPUTE_QUEUE = 0x2  # VkQueueFlagBits
_DEVICE_LOCAL_HEAP = 0x1  # VkMemoryHeapFlagBits
_HOST_COHERENT = 0x2 | 0x4  # VkMemoryPropertyFlagBits, host-visible and -coherent: what Kompute asks for
_INTEL = 0x8086
_API_VERSION = 1 << 22 | 3 << 12  # Vulkan 1.3: a device of any version may be read under it
# Feature: the structure that has it, the version that made it core (None: never), the extension before that.
_FEATURES: dict[str, tuple[str, tuple[int, int] | None, str | None]] = {
    "storageBuffer16BitAccess": ("16BitStorageFeatures", (1, 1), "VK_KHR_16bit_storage"),
    "storageBuffer8BitAccess": ("8BitStorageFeatures", (1, 2), "VK_KHR_8bit_storage"),
    "shaderFloat16": ("ShaderFloat16Int8Features", (1, 2), "VK_KHR_shader_float16_int8"),
    "shaderInt8": ("ShaderFloat16Int8Features", (1, 2), "VK_KHR_shader_float16_int8"),
    "shaderInt16": ("Features2", (1, 0), None),
    "shaderInt64": ("Features2", (1, 0), None),
    "shaderIntegerDotProduct": ("ShaderIntegerDotProductFeatures", (1, 3), "VK_KHR_shader_integer_dot_product"),
    "subgroupSizeControl": ("SubgroupSizeControlFeatures", (1, 3), "VK_EXT_subgroup_size_control"),
    "computeFullSubgroups": ("SubgroupSizeControlFeatures", (1, 3), "VK_EXT_subgroup_size_control"),
    "vulkanMemoryModel": ("VulkanMemoryModelFeatures", (1, 2), "VK_KHR_vulkan_memory_model"),
    "cooperativeMatrix": ("CooperativeMatrixFeaturesKHR", None, MATRIX_EXTENSION),
    "pipelineExecutableInfo": (
        "PipelineExecutablePropertiesFeaturesKHR",
        None,
        "VK_KHR_pipeline_executable_properties",
    ),
    "synchronization2": ("Synchronization2Features", (1, 3), "VK_KHR_synchronization2"),
    "maintenance4": ("Maintenance4Features", (1, 3), "VK_KHR_maintenance4"),
    "bufferDeviceAddress": ("BufferDeviceAddressFeatures", (1, 2), "VK_KHR_buffer_device_address"),
}
_MEMORY_BUDGET = "VK_EXT_memory_budget"  # an extension that has no feature, listed as one
FEATURES = (*_FEATURES, "memoryBudget")
# The same for properties.
_PROPERTIES: dict[str, tuple[tuple[int, int] | None, str | None]] = {
    "SubgroupProperties": ((1, 1), None),
    "Maintenance3Properties": ((1, 1), "VK_KHR_maintenance3"),
    "DriverProperties": ((1, 2), "VK_KHR_driver_properties"),
    "SubgroupSizeControlProperties": ((1, 3), "VK_EXT_subgroup_size_control"),
    "Maintenance4Properties": ((1, 3), "VK_KHR_maintenance4"),
    "ShaderIntegerDotProductProperties": ((1, 3), "VK_KHR_shader_integer_dot_product"),
    "PCIBusInfoPropertiesEXT": (None, "VK_EXT_pci_bus_info"),
}

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
    """One memory heap: ``size`` in bytes, whether it is device-local and whether the host can map it.

    ``budget`` and ``usage`` are bytes as they were when read, None where VK_EXT_memory_budget is missing: what this
    process may use of the heap in all, and what it uses. They change from moment to moment and do not make two
    readings of one device different.
    """

    size: int
    device_local: bool
    host_visible: bool
    budget: int | None = field(default=None, compare=False)
    usage: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class MemoryType:
    """One memory type: the index of its ``heap`` and its ``flags`` (VkMemoryPropertyFlags)."""

    heap: int
    flags: int


@dataclass(frozen=True)
class DeviceInfo:
    """What one physical device is and allows. Sizes in bytes, times in nanoseconds."""

    index: int
    name: str
    kind: str  # integrated, discrete, virtual, cpu, other
    driver: str
    driver_version: str
    api_version: str
    vendor_id: int
    device_id: int
    chip: str | None  # the chip's family as its driver names it, in lower case: "phoenix", "gfx1151", "navi31"
    pci_address: str | None  # "0000:c1:00.0", as sysfs writes it
    heaps: tuple[Heap, ...]  # none on a null device, which only compiles
    memory_types: tuple[MemoryType, ...]
    host_heap: int | None  # where Kompute's host-visible buffers go: the heap of the first such memory type
    subgroup_size: int
    subgroup_sizes: tuple[int, int]  # least and largest that a pipeline can require; both the one size where none can
    subgroup_operations: int  # VkSubgroupFeatureFlags that compute shaders may use
    features: tuple[str, ...]  # what the device supports of the features that latentvk knows how to use
    max_storage_buffer_range: int
    max_texels: int  # of a texel buffer
    storage_buffer_alignment: int  # of an offset into a buffer where a binding begins
    max_allocation: int
    max_buffer_size: int | None  # None where VK_KHR_maintenance4 is missing: no limit is stated
    shared_memory: int
    max_workgroup_count: tuple[int, int, int]
    max_workgroup_size: tuple[int, int, int]
    max_workgroup_invocations: int
    timestamp_bits: int  # valid ones on the first queue family that computes, which Kompute takes; 0: no timestamps
    timestamp_period_ns: float  # 0 on a null device, whose clock has no frequency
    matrix_shapes: tuple[MatrixShape, ...] = ()  # floating-point products of a subgroup (VK_KHR_cooperative_matrix)
    packed_dot_products: bool = False  # whether it has instructions for those of four signed bytes in a word

    @property
    def unified(self) -> bool:
        """Whether host and device share one memory, so that weights need no second copy.

        So it is on integrated and CPU devices, and where every heap is the device's own and the host's as well.
        """
        if self.kind in ("integrated", "cpu"):
            return True
        return bool(self.heaps) and all(h.device_local and h.host_visible for h in self.heaps)

    @property
    def whole_texel_buffers(self) -> bool:
        """Whether texels of 16 bytes can cover all that a binding of a storage buffer covers."""
        return 16 * self.max_texels >= self.max_storage_buffer_range

    @property
    def cooperative_matrix(self) -> bool:
        """Whether the device multiplies matrices across a subgroup (VK_KHR_cooperative_matrix)."""
        return "cooperativeMatrix" in self.features

    @property
    def memory(self) -> int:
        """Bytes that buffers can use: of the heaps that the host can map on unified memory, else of the device's own.

        Unified memory is one however many heaps show it: on AMD's integrated GPUs RADV reports two thirds of it as
        device-local and one third as not, and lets an allocation from either grow past its heap.
        """
        return sum(h.size for h in self.heaps if (h.host_visible if self.unified else h.device_local))

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, with ``unified``, ``cooperative_matrix`` and ``memory`` among them."""
        derived = {"unified": self.unified, "cooperative_matrix": self.cooperative_matrix, "memory": self.memory}
        return {**asdict(self), **derived}


def chip_family(name: str, vendor_id: int = 0) -> str | None:
    """The chip's family out of the device's ``name``, in lower case; None where its driver does not say it there.

    RADV and NVK write "AMD Radeon 780M (RADV PHOENIX)", Intel's driver "Intel(R) Graphics (RPL-P)" or "(TGL GT2)".
    """
    found = re.search(r"\((?:RADV|NVK) ([^()]+)\)", name)
    if not found and vendor_id == _INTEL:
        found = re.search(r" \(([A-Z0-9-]+)(?: GT\S+)?\)$", name)
    return found[1].strip().lower().replace(" ", "_") if found else None


def _version(packed: int) -> str:
    return f"{packed >> 22 & 0x7F}.{packed >> 12 & 0x3FF}.{packed & 0xFFF}"


class _Physical:
    """One physical device under the package's raw entry points, whose wrappers lose what a structure chains."""

    def __init__(self, vk: Any, raw: Any, handle: Any) -> None:
        self.vk, self.ffi, self.lib, self.handle = vk, raw.ffi, raw.lib, handle
        # The whole structure is kept: what is inside one does not keep its memory.
        self._whole = self._filled("Properties2", [], raw.lib.vkGetPhysicalDeviceProperties2)["Properties2"]
        self.properties = self._whole.properties
        packed = self.properties.apiVersion
        self.version = packed >> 22 & 0x7F, packed >> 12 & 0x3FF
        self.extensions = self._extensions()

    def _extensions(self) -> set[str]:
        call, count = self.lib.vkEnumerateDeviceExtensionProperties, self.ffi.new("uint32_t *")
        call(self.handle, self.ffi.NULL, count, self.ffi.NULL)
        found = self.ffi.new("VkExtensionProperties[]", max(count[0], 1))
        call(self.handle, self.ffi.NULL, count, found)
        return {self.ffi.string(found[i].extensionName).decode() for i in range(count[0])}

    def offers(self, core: tuple[int, int] | None, extension: str | None) -> bool:
        """Whether what became core in version ``core`` and was ``extension`` before is there."""
        return (core is not None and self.version >= core) or extension in self.extensions

    def _filled(self, head: str, names: Iterable[str], call: Any) -> dict[str, Any]:
        """Structures VkPhysicalDevice<name>, those of ``names`` chained to ``head``, as ``call`` fills them."""
        made = {name: getattr(self.vk, f"VkPhysicalDevice{name}")() for name in dict.fromkeys([head, *names])}
        for name in made:
            if name != head:
                made[name].pNext, made[head].pNext = made[head].pNext, self.ffi.addressof(made[name])
        call(self.handle, self.ffi.addressof(made[head]))
        return made

    def read_properties(self) -> dict[str, Any]:
        """What the device offers of _PROPERTIES."""
        names = [name for name, (core, extension) in _PROPERTIES.items() if self.offers(core, extension)]
        return self._filled("Properties2", names, self.lib.vkGetPhysicalDeviceProperties2)

    def read_features(self) -> tuple[str, ...]:
        """The names of the features that the device supports."""
        offered = {name: chain for name, (chain, core, ext) in _FEATURES.items() if self.offers(core, ext)}
        made = self._filled("Features2", offered.values(), self.lib.vkGetPhysicalDeviceFeatures2)
        core = made["Features2"].features
        found = [n for n, chain in offered.items() if getattr(core if chain == "Features2" else made[chain], n)]
        return (*found, *(["memoryBudget"] if _MEMORY_BUDGET in self.extensions else []))

    def read_memory(self) -> tuple[tuple[Heap, ...], tuple[MemoryType, ...]]:
        """The heaps, with budget and use where the device tells them, and the memory types."""
        read = self.lib.vkGetPhysicalDeviceMemoryProperties2
        whole = self._filled("MemoryProperties2", [], read)["MemoryProperties2"]
        memory = whole.memoryProperties
        types = tuple(
            MemoryType(int(t.heapIndex), int(t.propertyFlags))
            for t in (memory.memoryTypes[i] for i in range(memory.memoryTypeCount))
        )
        budget = None
        # RADV of Mesa 25.0 crashes when asked for the budgets of a null device, which has no heaps.
        if memory.memoryHeapCount and _MEMORY_BUDGET in self.extensions:
            budget = self._filled("MemoryProperties2", ["MemoryBudgetPropertiesEXT"], read)["MemoryBudgetPropertiesEXT"]
        heaps = tuple(
            Heap(
                size=int(memory.memoryHeaps[i].size),
                device_local=bool(memory.memoryHeaps[i].flags & _DEVICE_LOCAL_HEAP),
                host_visible=any(t.heap == i and t.flags & _HOST_COHERENT == _HOST_COHERENT for t in types),
                budget=None if budget is None else int(budget.heapBudget[i]),
                usage=None if budget is None else int(budget.heapUsage[i]),
            )
            for i in range(memory.memoryHeapCount)
        )
        return heaps, types

    def read_timestamp_bits(self) -> int:
        """Valid bits of a timestamp on the first queue family that computes, which Kompute takes; 0 without one."""
        call, count = self.lib.vkGetPhysicalDeviceQueueFamilyProperties, self.ffi.new("uint32_t *")
        call(self.handle, count, self.ffi.NULL)
        families = self.ffi.new("VkQueueFamilyProperties[]", max(count[0], 1))
        call(self.handle, count, families)
        bits = (int(f.timestampValidBits) for f in families[0 : count[0]] if f.queueFlags & _COMPUTE_QUEUE)
        return next(bits, 0)


def _triple(values: Any) -> tuple[int, int, int]:
    return int(values[0]), int(values[1]), int(values[2])


def _describe(vk: Any, raw: Any, instance: Any, handle: Any, index: int) -> DeviceInfo:
    device = _Physical(vk, raw, handle)
    made = device.read_properties()
    core, limits = device.properties, device.properties.limits
    heaps, types = device.read_memory()
    subgroup, driver = made.get("SubgroupProperties"), made.get("DriverProperties")
    control, pci = made.get("SubgroupSizeControlProperties"), made.get("PCIBusInfoPropertiesEXT")
    third, fourth = made.get("Maintenance3Properties"), made.get("Maintenance4Properties")
    dot = made.get("ShaderIntegerDotProductProperties")
    features = device.read_features()
    products = read_matrix_shapes(vk, raw, instance, handle) if MATRIX_EXTENSION in device.extensions else ()
    size = int(subgroup.subgroupSize) if subgroup else 0
    in_compute = subgroup is not None and subgroup.supportedStages & _COMPUTE_STAGE
    sizes = (size, size)
    if control and "subgroupSizeControl" in features and control.requiredSubgroupSizeStages & _COMPUTE_STAGE:
        sizes = int(control.minSubgroupSize), int(control.maxSubgroupSize)
    text, name = raw.ffi.string, raw.ffi.string(core.deviceName).decode()
    return DeviceInfo(
        index=index,
        name=name,
        kind=_KINDS.get(core.deviceType, "other"),
        driver=text(driver.driverName).decode() if driver else "unknown driver",
        driver_version=(text(driver.driverInfo).decode() if driver else "") or str(core.driverVersion),
        api_version=_version(core.apiVersion),
        vendor_id=int(core.vendorID),
        device_id=int(core.deviceID),
        chip=chip_family(name, int(core.vendorID)),
        pci_address=f"{pci.pciDomain:04x}:{pci.pciBus:02x}:{pci.pciDevice:02x}.{pci.pciFunction:x}" if pci else None,
        heaps=heaps,
        memory_types=types,
        host_heap=next((t.heap for t in types if t.flags & _HOST_COHERENT == _HOST_COHERENT), None),
        subgroup_size=size,
        subgroup_sizes=sizes,
        subgroup_operations=int(subgroup.supportedOperations) if subgroup and in_compute else 0,
        features=features,
        max_storage_buffer_range=int(limits.maxStorageBufferRange),
        max_texels=int(limits.maxTexelBufferElements),
        storage_buffer_alignment=int(limits.minStorageBufferOffsetAlignment),
        max_allocation=int(third.maxMemoryAllocationSize) if third else 2**30,  # the least that Vulkan 1.1 promises
        max_buffer_size=int(fourth.maxBufferSize) if fourth else None,
        shared_memory=int(limits.maxComputeSharedMemorySize),
        max_workgroup_count=_triple(limits.maxComputeWorkGroupCount),
        max_workgroup_size=_triple(limits.maxComputeWorkGroupSize),
        max_workgroup_invocations=int(limits.maxComputeWorkGroupInvocations),
        timestamp_bits=device.read_timestamp_bits(),
        timestamp_period_ns=float(limits.timestampPeriod) if math.isfinite(limits.timestampPeriod) else 0.0,
        matrix_shapes=products,
        packed_dot_products=bool(dot and dot.integerDotProduct4x8BitPackedSignedAccelerated),
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
        apiVersion=_API_VERSION,
    )
    try:
        instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
    except vk.VkError as error:
        raise DeviceError(_NO_DEVICE) from error
    try:
        devices = [_describe(vk, raw, instance, p, i) for i, p in enumerate(vk.vkEnumeratePhysicalDevices(instance))]
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


def require_usable(info: DeviceInfo) -> None:
    """Check what shows without opening the device.

    Raises:
        DeviceError: it has no memory, or its subgroups are not what the kernels are written for.
    """
    size = info.subgroup_size
    if not info.heaps:
        raise DeviceError(
            f"{info.name} has no memory heaps; expected at least one (a null device only compiles): "
            "choose another --device"
        )
    if not 8 <= size <= 128 or size & (size - 1):
        raise DeviceError(
            f"{info.name} has subgroups of {size}; expected a power of two from 8 to 128: choose another --device"
        )
    missing = _SUBGROUP_OPERATIONS & ~info.subgroup_operations
    if missing:
        raise DeviceError(
            f"{info.name} lacks subgroup operations {missing:#x} (VkSubgroupFeatureFlagBits) in compute shaders; "
            f"expected {_SUBGROUP_OPERATIONS:#x}: update its driver or choose another --device"
        )
