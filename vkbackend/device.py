"""Open a Vulkan device once: the Kompute manager that runs on it, the companion layer that completes it."""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
from typing import Any

from vkbackend.companion import Companion
from vkbackend.companion.loading import layers_enabled
from vkbackend.errors import DeviceError
from vkbackend.memory import Memory
from vkbackend.pace import Pace
from vkbackend.physical import DeviceInfo, list_devices, require_usable, select_device
from vkbackend.tuning import Tuning, load_tuning


class Device:
    """An open device: its ``info``, the Kompute ``manager`` that owns every buffer and program on it, the
    ``companion`` layer, the ``memory`` policy, the ``pace`` that its kernels were seen to run at, and the ``tuning``
    that they are chosen by.

    Args:
        memory_fraction: the share of the device's memory that may be used, 0 to 1; None for the default.

    Raises:
        DeviceError: the driver does not create the device, or the companion layer did not load for it.
    """

    keeps_data = True  # False where buffers have no memory (vkbackend/dry.py): then nothing need be uploaded

    def __init__(self, info: DeviceInfo, memory_fraction: float | None = None) -> None:
        import kp  # deferred: importing it must not be needed to list devices or inspect a file

        self.info = info
        self.pace = Pace()
        self.tuning = Tuning()
        self.memory_fraction = memory_fraction
        self.manager: Any = None
        with layers_enabled():
            _require_creation(info)
            self.manager = kp.Manager(info.index)
        self.companion = Companion.take(info.name)
        smallest, largest = self.companion.subgroup_sizes
        if smallest <= info.subgroup_size <= largest:
            self.companion.require_subgroup_size(info.subgroup_size)
        self.memory = Memory(self)

    @property
    def subgroup_size(self) -> int:
        """Invocations of one subgroup, the workgroup size of every kernel here."""
        return self.info.subgroup_size

    def as_dict(self) -> dict[str, Any]:
        """What ``info`` says, and ``tuning``: for each purpose in it the kernel that it chose, and its constants."""
        tuned = {name: {"kernel": e.kernel, **e.constants} for name, e in self.tuning.entries.items()}
        return self.info.as_dict() | {"tuning": tuned}

    def sequence(self, what: str, timestamps: int = 0) -> Any:
        """A new Kompute sequence, with room for ``timestamps``; call it within ``companion.creating``.

        Raises:
            DeviceError: it could not be made; recording into a half-made one would dereference a null handle.
        """
        made = self.manager.sequence(0, timestamps)
        try:
            self.companion.check(what)
        except DeviceError:
            made.destroy()
            raise
        return made

    def run(self, sequence: Any, what: str = "a submission") -> float:
        """Submit a recorded Kompute sequence and wait for it, the GIL released. Returns its seconds.

        Raises:
            DeviceLostError: the device was lost or did not finish before the deadline.
            DeviceError: the submission failed.
        """
        with self.companion.lock:
            try:
                sequence.eval()
            except RuntimeError as error:
                self.companion.check(what)
                raise DeviceError(
                    f"{self.info.name}: {what} failed ({error}); expected success: update the driver"
                ) from error
            return self.companion.wait(what)

    def close(self) -> None:
        """Give everything back: buffers and programs of this device must not be used afterwards. May be repeated."""
        if self.manager is not None:
            if self.companion.abandoned:
                # The device may still be working, so its manager must never be destroyed,
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.manager))  # not even at exit.
            else:
                self.memory.close()
                self.manager.destroy()
            self.manager = None


def _require_creation(info: DeviceInfo) -> None:
    """Create and destroy the device once: Kompute ignores a failure and then dereferences a null handle."""
    vk: Any = importlib.import_module("vulkan")
    application = vk.VkApplicationInfo(apiVersion=1 << 22 | 1 << 12)
    instance = None
    try:
        instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
        physical = vk.vkEnumeratePhysicalDevices(instance)[info.index]
        queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=_compute_family(vk, physical), pQueuePriorities=[1.0])
        made = vk.vkCreateDevice(physical, vk.VkDeviceCreateInfo(pQueueCreateInfos=[queue]), None)
        vk.vkDestroyDevice(made, None)
    except (vk.VkError, IndexError) as error:
        reason = type(error).__name__
        raise DeviceError(
            f"{info.name} cannot be opened ({reason}); expected a device with a compute queue: "
            "close other programs that use it, update its driver, or choose another --device"
        ) from error
    finally:
        if instance is not None:
            vk.vkDestroyInstance(instance, None)


def _compute_family(vk: Any, physical: Any) -> int:
    families = vk.vkGetPhysicalDeviceQueueFamilyProperties(physical)
    return next(i for i, family in enumerate(families) if family.queueFlags & vk.VK_QUEUE_COMPUTE_BIT)


def _open(info: DeviceInfo, memory_fraction: float | None) -> Device:
    """Open one device. DeviceError when the kernels cannot run on it."""
    require_usable(info)
    device = Device(info, memory_fraction)
    device.tuning = load_tuning(info)
    from vkbackend.health import require_full_subgroups  # which builds on this module

    try:
        require_full_subgroups(device)
    except BaseException:
        device.close()
        raise
    return device


def open_device(selector: str | None = None, *, memory_fraction: float | None = None) -> Device:
    """Open the device named by ``selector``, else by the environment's LATENTVK_DEVICE, else the best one that can.

    Raises:
        DeviceError: there is no loader, no driver, no matching device, or none that the kernels can run on.
    """
    devices = list_devices()
    wanted = selector or os.environ.get("LATENTVK_DEVICE")
    if wanted:
        return _open(select_device(devices, wanted), memory_fraction)
    while True:
        info = select_device(devices, None)
        try:
            return _open(info, memory_fraction)
        except DeviceError as error:
            devices.remove(info)
            if not devices:
                raise
            logging.getLogger("latentvk").warning("latentvk: passing over a device: %s", error)
