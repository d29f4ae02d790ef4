"""Tell whether this machine has a Vulkan device that latentvk can use, before any package of ours is installed.

Runs on the system's Python with nothing but ctypes, so that ``setup.sh`` can decide whether a driver is missing or
too old. Prints one line per device. Exit code 0: at least one is usable; 3: none is; 4: there is no Vulkan loader.
`--layer NAME` asks for a layer in place of devices: 0 when the loader offers it, 3 when not.

Structures and numbers: Vulkan 1.3 specification, "Devices and Queues" and "Limits"; offsets are the 64-bit ABI's.
"""

import ctypes
import re
import struct
import sys

OLDEST_MESA = 24
# VkSubgroupFeatureFlagBits that the shaders build on: basic, arithmetic, ballot, shuffle, quad.
NEEDED_SUBGROUP_OPERATIONS = 0x1 | 0x4 | 0x8 | 0x10 | 0x80
COMPUTE_STAGE = 0x20
KINDS = {0: "other", 1: "integrated", 2: "discrete", 3: "virtual", 4: "cpu"}

APPLICATION_INFO, INSTANCE_CREATE_INFO = 0, 1
PROPERTIES_2, SUBGROUP_PROPERTIES, DRIVER_PROPERTIES = 1000059001, 1000094000, 1000196000
API_1_1 = 1 << 22 | 1 << 12


def text(raw: bytes) -> str:
    """The C string at the start of ``raw``."""
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def objection(driver: str, stages: int, operations: int) -> str:
    """Why a device cannot be used; empty when it can. ``driver`` is the driver's own description of its version."""
    mesa = re.search(r"Mesa (\d+)\.", driver)
    if mesa and int(mesa.group(1)) < OLDEST_MESA:
        return f"Mesa is older than {OLDEST_MESA}"
    if not stages & COMPUTE_STAGE or operations & NEEDED_SUBGROUP_OPERATIONS != NEEDED_SUBGROUP_OPERATIONS:
        return "the driver lacks subgroup operations in compute shaders"
    return ""


def describe(vulkan: ctypes.CDLL, device: int | None) -> tuple[str, bool]:
    """One line about a physical device, and whether it is usable."""
    # VkPhysicalDeviceDriverProperties: sType, pNext, driverID, driverName[256], driverInfo[256], conformance[4]
    driver = ctypes.create_string_buffer(struct.pack("@iPi", DRIVER_PROPERTIES, 0, 0), 1024)
    # VkPhysicalDeviceSubgroupProperties: sType, pNext, size, stages, operations, quad
    subgroup = ctypes.create_string_buffer(struct.pack("@iPI", SUBGROUP_PROPERTIES, ctypes.addressof(driver), 0), 64)
    # VkPhysicalDeviceProperties2: sType, pNext, then apiVersion, driverVersion, vendor, device, type, name[256], ...
    properties = ctypes.create_string_buffer(struct.pack("@iP", PROPERTIES_2, ctypes.addressof(subgroup)), 2048)
    vulkan.vkGetPhysicalDeviceProperties2(ctypes.c_void_p(device), properties)
    api, _, _, _, kind = struct.unpack_from("@IIIIi", properties.raw, 16)
    name = text(properties.raw[36 : 36 + 256])
    if api < API_1_1:
        return f"{name} ({KINDS.get(kind, 'other')}): not usable: Vulkan is older than 1.1", False
    _, stages, operations = struct.unpack_from("@III", subgroup.raw, 16)
    info = text(driver.raw[276 : 276 + 256])
    why = objection(info, stages, operations)
    verdict = f"not usable: {why}" if why else "usable"
    return f"{name} ({KINDS.get(kind, 'other')}, {info or text(driver.raw[20:276])}): {verdict}", not why


def has_layer(vulkan: ctypes.CDLL, name: str) -> bool:
    """Whether the loader offers the layer ``name``."""
    count = ctypes.c_uint32()
    vulkan.vkEnumerateInstanceLayerProperties(ctypes.byref(count), None)
    # VkLayerProperties: layerName[256], specVersion, implementationVersion, description[256]
    layers = ctypes.create_string_buffer(520 * count.value + 1)
    vulkan.vkEnumerateInstanceLayerProperties(ctypes.byref(count), layers)
    return any(text(layers.raw[520 * i : 520 * i + 256]) == name for i in range(count.value))


def main() -> int:
    """Print what the loader offers; the exit code is described at the top of this file."""
    try:
        vulkan = ctypes.CDLL("libvulkan.so.1")
    except OSError:
        print("no Vulkan loader (libvulkan.so.1)")
        return 4
    if sys.argv[1:2] == ["--layer"]:
        found_layer = has_layer(vulkan, sys.argv[2])
        print(f"{sys.argv[2]}: {'there' if found_layer else 'missing'}")
        return 0 if found_layer else 3
    application = ctypes.create_string_buffer(struct.pack("@iPPIPII", APPLICATION_INFO, 0, 0, 0, 0, 0, API_1_1))
    create = ctypes.create_string_buffer(
        struct.pack("@iPIPIPIP", INSTANCE_CREATE_INFO, 0, 0, ctypes.addressof(application), 0, 0, 0, 0)
    )
    instance = ctypes.c_void_p()
    count = ctypes.c_uint32()
    if vulkan.vkCreateInstance(create, None, ctypes.byref(instance)) != 0:
        print("no Vulkan driver")
        return 3
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    devices = (ctypes.c_void_p * count.value)()
    if count.value and vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices) < 0:
        count.value = 0
    found = [describe(vulkan, device) for device in devices[: count.value]]
    for line, _ in found:
        print(line)
    if not found:
        print("no Vulkan device")
    return 0 if any(usable for _, usable in found) else 3


if __name__ == "__main__":
    sys.exit(main())
