"""What a physical device says of itself, and which one is chosen."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vkbackend.device
import vkbackend.health
from tests.null.imaginary import INFO
from vkbackend import physical
from vkbackend.device import open_device
from vkbackend.errors import DeviceError
from vkbackend.matrix_shapes import MatrixShape
from vkbackend.physical import FEATURES, Heap, MemoryType, chip_family, require_usable, select_device

ROOT = Path(__file__).parents[2]
RADV = Path("/usr/share/vulkan/icd.d/radeon_icd.json")


class Driver:
    """Entry points that answer as a driver would: ``structs`` has each structure's fields by the structure's name."""

    def __init__(self, vk: Any, ffi: Any, structs: dict[str, dict[str, Any]], extensions: list[str]) -> None:
        self.vk, self.ffi, self.structs, self.extensions = vk, ffi, structs, extensions
        self.asked: set[str] = set()

    def _fill(self, handle: object, first: Any) -> None:
        kinds = {
            getattr(self.vk, f"VkPhysicalDevice{name}")().sType: name
            for name in (*self.structs, "Properties2", "Features2", "MemoryProperties2")
        }
        address = self.ffi.cast("VkBaseOutStructure *", first)
        while address:
            name = kinds[address.sType]
            self.asked.add(name)
            struct = self.ffi.cast(f"VkPhysicalDevice{name} *", address)
            for path, value in self.structs.get(name, {}).items():
                target, parts = struct, path.split(".")
                for part in parts[:-1]:
                    target = target[int(part)] if part.isdigit() else getattr(target, part)
                setattr(target, parts[-1], value)
            address = address.pNext and self.ffi.cast("VkBaseOutStructure *", address.pNext)

    vkGetPhysicalDeviceProperties2 = vkGetPhysicalDeviceFeatures2 = vkGetPhysicalDeviceMemoryProperties2 = _fill

    def vkGetInstanceProcAddr(self, instance: object, name: bytes) -> Any:
        assert name == b"vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"
        kind = "VkResult(VkPhysicalDevice, uint32_t *, VkCooperativeMatrixPropertiesKHR *)"
        self._kept = self.ffi.callback(kind, self._matrices)
        return self._kept

    def _matrices(self, handle: object, count: Any, found: Any) -> int:
        count[0] = len(MATRICES)
        for i, values in enumerate(MATRICES if found else ()):
            names = ("MSize", "NSize", "KSize", "AType", "BType", "CType", "ResultType", "scope")
            for name, value in zip(names, values, strict=True):
                setattr(found[i], name, value)
        return 0

    def vkEnumerateDeviceExtensionProperties(self, handle: object, layer: object, count: Any, found: Any) -> None:
        count[0] = len(self.extensions)
        for i, name in enumerate(self.extensions if found else ()):
            found[i].extensionName = name.encode()

    def vkGetPhysicalDeviceQueueFamilyProperties(self, handle: object, count: Any, found: Any) -> None:
        count[0] = 2
        if found:
            found[0].queueFlags, found[0].timestampValidBits = 0x4, 36  # transfer only
            found[1].queueFlags, found[1].timestampValidBits = 0x2 | 0x4, 48


def describe(structs: dict[str, dict[str, Any]], extensions: list[str]) -> tuple[physical.DeviceInfo, set[str]]:
    """What is read of a driver that answers so, and the structures that it was asked for."""
    vulkan = pytest.importorskip("vulkan")
    ffi = vulkan.ffi
    driver = Driver(vulkan, ffi, structs, extensions)
    info = physical._describe(vulkan, SimpleNamespace(ffi=ffi, lib=driver), ffi.NULL, ffi.NULL, 3)
    return info, driver.asked


# Sizes; types of factors, sums and results; scope. The last ones: integers, mixed types, a workgroup's.
MATRICES = [
    (16, 16, 16, 0, 0, 1, 1, 3),
    (16, 8, 32, 0, 0, 0, 0, 3),
    (16, 16, 16, 3, 3, 5, 5, 3),
    (16, 16, 16, 0, 0, 0, 1, 3),
    (16, 16, 16, 0, 0, 1, 1, 2),
]
# A Radeon 780M as RADV shows it: one memory in two heaps, of which the first is not called the device's own.
PHOENIX: dict[str, dict[str, Any]] = {
    "Properties2": {
        "properties.deviceName": b"AMD Radeon 780M (RADV PHOENIX)",
        "properties.deviceType": 1,
        "properties.apiVersion": 1 << 22 | 3 << 12 | 274,
        "properties.vendorID": 0x1002,
        "properties.deviceID": 0x15BF,
        "properties.limits.maxStorageBufferRange": 2**32 - 1,
        "properties.limits.maxTexelBufferElements": 2**27,
        "properties.limits.minStorageBufferOffsetAlignment": 4,
        "properties.limits.maxComputeSharedMemorySize": 65536,
        "properties.limits.maxComputeWorkGroupCount": [2**32 - 1, 65535, 65535],
        "properties.limits.maxComputeWorkGroupSize": [1024, 1024, 1024],
        "properties.limits.maxComputeWorkGroupInvocations": 1024,
        "properties.limits.timestampPeriod": 10.0,
    },
    "SubgroupProperties": {"subgroupSize": 64, "supportedStages": 0x20, "supportedOperations": 0x6FF},
    "DriverProperties": {"driverName": b"radv", "driverInfo": b"Mesa 25.0.7"},
    "SubgroupSizeControlProperties": {
        "minSubgroupSize": 32,
        "maxSubgroupSize": 64,
        "requiredSubgroupSizeStages": 0x20,
    },
    "Maintenance3Properties": {"maxMemoryAllocationSize": 2**32 - 4},
    "Maintenance4Properties": {"maxBufferSize": 2**32 - 4},
    "ShaderIntegerDotProductProperties": {"integerDotProduct4x8BitPackedSignedAccelerated": 1},
    "PCIBusInfoPropertiesEXT": {"pciBus": 0xC1},
    "16BitStorageFeatures": {"storageBuffer16BitAccess": 1},
    "8BitStorageFeatures": {"storageBuffer8BitAccess": 1},
    "ShaderFloat16Int8Features": {"shaderFloat16": 1, "shaderInt8": 1},
    "ShaderIntegerDotProductFeatures": {"shaderIntegerDotProduct": 1},
    "SubgroupSizeControlFeatures": {"subgroupSizeControl": 1, "computeFullSubgroups": 1},
    "VulkanMemoryModelFeatures": {"vulkanMemoryModel": 1},
    "CooperativeMatrixFeaturesKHR": {"cooperativeMatrix": 1},
    "PipelineExecutablePropertiesFeaturesKHR": {"pipelineExecutableInfo": 1},
    "Synchronization2Features": {"synchronization2": 1},
    "Maintenance4Features": {"maintenance4": 1},
    "BufferDeviceAddressFeatures": {"bufferDeviceAddress": 1},
    "Features2": {"features.shaderInt16": 1, "features.shaderInt64": 1},
    "MemoryProperties2": {
        "memoryProperties.memoryHeapCount": 2,
        "memoryProperties.memoryHeaps.0.size": 5 * 2**30,
        "memoryProperties.memoryHeaps.1.size": 10 * 2**30,
        "memoryProperties.memoryHeaps.1.flags": 1,
        "memoryProperties.memoryTypeCount": 3,
        "memoryProperties.memoryTypes.0.propertyFlags": 0x1,
        "memoryProperties.memoryTypes.0.heapIndex": 1,
        "memoryProperties.memoryTypes.1.propertyFlags": 0x6,
        "memoryProperties.memoryTypes.1.heapIndex": 0,
        "memoryProperties.memoryTypes.2.propertyFlags": 0x7,
        "memoryProperties.memoryTypes.2.heapIndex": 1,
    },
    "MemoryBudgetPropertiesEXT": {"heapBudget": [4 * 2**30, 9 * 2**30], "heapUsage": [4096, 8192]},
}
EXTENSIONS = [
    "VK_EXT_memory_budget",
    "VK_EXT_pci_bus_info",
    "VK_KHR_cooperative_matrix",
    "VK_KHR_pipeline_executable_properties",
]


def test_everything_a_driver_offers_is_read() -> None:
    info, _ = describe(PHOENIX, EXTENSIONS)
    assert info == physical.DeviceInfo(
        index=3,
        name="AMD Radeon 780M (RADV PHOENIX)",
        kind="integrated",
        driver="radv",
        driver_version="Mesa 25.0.7",
        api_version="1.3.274",
        vendor_id=0x1002,
        device_id=0x15BF,
        chip="phoenix",
        pci_address="0000:c1:00.0",
        heaps=(Heap(5 * 2**30, False, True), Heap(10 * 2**30, True, True)),
        memory_types=(MemoryType(1, 0x1), MemoryType(0, 0x6), MemoryType(1, 0x7)),
        host_heap=0,
        subgroup_size=64,
        subgroup_sizes=(32, 64),
        subgroup_operations=0x6FF,
        features=FEATURES,
        max_storage_buffer_range=2**32 - 1,
        max_texels=2**27,
        storage_buffer_alignment=4,
        max_allocation=2**32 - 4,
        max_buffer_size=2**32 - 4,
        shared_memory=65536,
        max_workgroup_count=(2**32 - 1, 65535, 65535),
        max_workgroup_size=(1024, 1024, 1024),
        max_workgroup_invocations=1024,
        timestamp_bits=48,
        timestamp_period_ns=10.0,
        matrix_shapes=(MatrixShape(16, 16, 16, "f16", "f32"), MatrixShape(16, 8, 32, "f16", "f16")),
        packed_dot_products=True,
    )
    # Budget and use are of the moment and take no part in the comparison above.
    assert [(heap.budget, heap.usage) for heap in info.heaps] == [(4 * 2**30, 4096), (9 * 2**30, 8192)]
    assert info.unified and info.cooperative_matrix and info.memory == 15 * 2**30
    assert json.loads(json.dumps(info.as_dict()))["heaps"][1] == {
        "size": 10 * 2**30,
        "device_local": True,
        "host_visible": True,
        "budget": 9 * 2**30,
        "usage": 8192,
    }


def test_only_what_a_driver_offers_is_asked_for() -> None:
    version = {"properties.apiVersion": 1 << 22 | 1 << 12}
    info, asked = describe(PHOENIX | {"Properties2": PHOENIX["Properties2"] | version}, ["VK_KHR_8bit_storage"])
    assert info.features == ("storageBuffer16BitAccess", "storageBuffer8BitAccess", "shaderInt16", "shaderInt64")
    assert asked == {
        *("Properties2", "SubgroupProperties", "Maintenance3Properties"),
        *("Features2", "16BitStorageFeatures", "8BitStorageFeatures", "MemoryProperties2"),
    }
    assert (info.driver, info.driver_version) == ("unknown driver", "0")
    assert (info.subgroup_size, info.subgroup_sizes) == (64, (64, 64))
    assert (info.pci_address, info.max_buffer_size, info.max_allocation) == (None, None, 2**32 - 4)
    assert [(heap.budget, heap.usage) for heap in info.heaps] == [(None, None), (None, None)]


def test_a_null_device_has_nothing_to_allocate_from() -> None:
    nothing: dict[str, dict[str, Any]] = {
        "MemoryProperties2": {},
        "Properties2": {"properties.limits.timestampPeriod": float("inf")},
    }
    info, asked = describe(PHOENIX | nothing, EXTENSIONS)
    assert "MemoryBudgetPropertiesEXT" not in asked  # RADV crashes
    assert (info.heaps, info.memory_types, info.host_heap, info.memory) == ((), (), None, 0)
    assert not replace(info, kind="discrete").unified
    assert "Infinity" not in json.dumps(info.as_dict())


@pytest.mark.skipif(not RADV.is_file(), reason="RADV is not installed")
@pytest.mark.parametrize(
    ("family", "kind", "sizes"),
    [
        ("phoenix", "integrated", [32, 64]),
        ("gfx1151", "integrated", [32, 64]),
        ("navi31", "discrete", [32, 64]),
        ("renoir", "integrated", [64, 64]),
    ],
)
def test_radv_null_devices_are_read(family: str, kind: str, sizes: list[int]) -> None:
    # In a child, as the loader and RADV read the environment once.
    code = "import json; from vkbackend.physical import list_devices as d; print(json.dumps(d()[0].as_dict()))"
    environment = os.environ | {
        "RADV_FORCE_FAMILY": family,
        "VK_DRIVER_FILES": str(RADV),
        "VK_ICD_FILENAMES": str(RADV),
    }
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert (found["chip"], found["kind"], found["subgroup_sizes"]) == (family, kind, sizes)
    assert found["heaps"] == [] and found["memory"] == 0 and found["timestamp_period_ns"] == 0
    assert set(found["features"]) >= {"shaderIntegerDotProduct", "computeFullSubgroups", "pipelineExecutableInfo"}
    assert found["cooperative_matrix"] is found["packed_dot_products"] is (family != "renoir")


@pytest.mark.parametrize(
    ("name", "vendor", "family"),
    [
        ("AMD Radeon 780M (RADV PHOENIX)", 0x1002, "phoenix"),
        ("Radeon 8060S Graphics (RADV GFX1151)", 0x1002, "gfx1151"),
        ("AMD Radeon RX 6600 (RADV NAVI23)", 0x1002, "navi23"),
        ("AMD Radeon Graphics (RADV RAPHAEL_MENDOCINO)", 0x1002, "raphael_mendocino"),
        ("AMD Radeon 780M Graphics", 0x1002, None),  # AMD's own driver
        ("NVIDIA GeForce RTX 3060 (NVK GA106)", 0x10DE, "ga106"),
        ("NVIDIA H100 80GB HBM3", 0x10DE, None),
        ("Intel(R) Xe Graphics (TGL GT2)", 0x8086, "tgl"),
        ("Intel(R) Iris(R) Xe Graphics (RPL-P)", 0x8086, "rpl-p"),
        ("llvmpipe (LLVM 15.0.6, 256 bits)", 0x10005, None),
    ],
)
def test_chip_family_is_what_the_driver_calls_it(name: str, vendor: int, family: str | None) -> None:
    assert chip_family(name, vendor) == family


def test_a_card_whose_whole_memory_the_host_maps_is_unified() -> None:
    card = replace(INFO, kind="discrete", heaps=(Heap(2**30, True, True), Heap(2**31, True, True)))
    assert card.unified and card.memory == 3 * 2**30
    assert not replace(card, heaps=(Heap(2**30, True, True), Heap(2**31, True, False))).unified
    assert not replace(card, heaps=(Heap(2**30, True, True), Heap(2**31, False, True))).unified
    assert not replace(card, heaps=()).unified


def test_a_device_that_only_compiles_is_refused() -> None:
    require_usable(INFO)
    with pytest.raises(DeviceError) as caught:
        require_usable(replace(INFO, heaps=()))
    assert str(caught.value) == (
        "Imaginary iGPU has no memory heaps; expected at least one (a null device only compiles): "
        "choose another --device"
    )


def test_device_is_chosen_by_kind_number_or_name() -> None:
    cpu = replace(INFO, index=0, name="llvmpipe (CPU)", kind="cpu")
    apu, card = replace(INFO, index=1, name="Radeon 780M"), replace(INFO, index=2, name="Radeon 7900", kind="discrete")
    everything = [cpu, apu, card]
    assert select_device(everything, None) is card
    assert select_device([cpu, apu], None) is apu
    assert select_device(everything, "0") is cpu
    assert select_device(everything, "780m") is apu
    listing = "0: llvmpipe (CPU), 1: Radeon 780M, 2: Radeon 7900"
    for selector, number in (("radeon", "more than one"), ("3", "no"), ("arc", "no")):
        with pytest.raises(DeviceError) as caught:
            select_device(everything, selector)
        assert str(caught.value) == (
            f"{number} Vulkan device matches {selector!r}; expected one of {listing}: pass its number"
        )


def test_memory_is_every_heap_that_the_host_maps_where_host_and_device_share_it() -> None:
    assert INFO.unified and INFO.memory == 3 * 2**30
    card = replace(INFO, kind="discrete")
    assert not card.unified and card.memory == 2**30
    assert card.as_dict()["memory"] == 2**30 and card.as_dict()["unified"] is False


def test_without_a_wish_an_unusable_device_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    odd = replace(INFO, index=0, name="Odd GPU", subgroup_size=4)
    bare = replace(INFO, index=1, name="Bare GPU", kind="discrete", subgroup_operations=0x7FF & ~0x80)
    cpu = replace(INFO, index=2, name="llvmpipe", kind="cpu")
    monkeypatch.setattr(vkbackend.device, "list_devices", lambda: [odd, bare, cpu])
    monkeypatch.setattr(vkbackend.device, "Device", lambda info, *_: SimpleNamespace(info=info))
    monkeypatch.setattr(vkbackend.health, "require_full_subgroups", lambda device: None)
    monkeypatch.delenv("LATENTVK_DEVICE", raising=False)
    lacks = (
        "Bare GPU lacks subgroup operations 0x80 (VkSubgroupFeatureFlagBits) in compute shaders; expected 0x9d: "
        "update its driver or choose another --device"
    )
    narrow = "Odd GPU has subgroups of 4; expected a power of two from 8 to 128: choose another --device"

    assert open_device().info is cpu
    assert [record.getMessage() for record in caplog.records] == [
        f"latentvk: passing over a device: {message}" for message in (lacks, narrow)
    ]
    for selector, message in (("bare", lacks), ("odd", narrow)):  # but one that was asked for is an error
        with pytest.raises(DeviceError) as caught:
            open_device(selector)
        assert str(caught.value) == message
    monkeypatch.setattr(vkbackend.device, "list_devices", lambda: [odd])
    with pytest.raises(DeviceError) as caught:
        open_device()
    assert str(caught.value) == narrow
