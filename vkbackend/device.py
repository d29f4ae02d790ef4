"""Open a Vulkan device once: the Kompute manager that runs on it, and what it is and allows."""

from __future__ import annotations

import logging
import os

from vkbackend.errors import DeviceError
from vkbackend.physical import DeviceInfo, list_devices, select_device

# VkSubgroupFeatureFlagBits that the shaders build on: basic, arithmetic, ballot, shuffle, quad.
_SUBGROUP_OPERATIONS = 0x1 | 0x4 | 0x8 | 0x10 | 0x80


class Device:
    """An open device: its ``info`` and the Kompute ``manager`` that owns every buffer and program on it.

    ``live_bytes`` counts the buffers that exist, for Vulkan 1.1 does not tell what a heap has left.
    """

    def __init__(self, info: DeviceInfo) -> None:
        import kp  # deferred: importing it must not be needed to list devices or inspect a file

        self.info = info
        self.live_bytes = 0
        self.manager = kp.Manager(info.index)

    @property
    def subgroup_size(self) -> int:
        """Invocations of one subgroup, the workgroup size of every kernel here."""
        return self.info.subgroup_size


def _open(info: DeviceInfo) -> Device:
    """Open one device. DeviceError when its subgroups are not what the kernels are written for."""
    size = info.subgroup_size
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
    device = Device(info)
    from vkbackend.health import require_full_subgroups  # which builds on this module

    require_full_subgroups(device)
    return device


def open_device(selector: str | None = None) -> Device:
    """Open the device named by ``selector``, else by the environment's LATENTVK_DEVICE, else the best one that can.

    Raises:
        DeviceError: there is no loader, no driver, no matching device, or none that the kernels can run on.
    """
    devices = list_devices()
    wanted = selector or os.environ.get("LATENTVK_DEVICE")
    if wanted:
        return _open(select_device(devices, wanted))
    while True:
        info = select_device(devices, None)
        try:
            return _open(info)
        except DeviceError as error:
            devices.remove(info)
            if not devices:
                raise
            logging.getLogger("latentvk").warning("latentvk: passing over a device: %s", error)
