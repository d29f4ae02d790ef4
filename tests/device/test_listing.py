"""Listing the devices there are: the same each time, by a process that has one open and by one that has none."""

import pytest

from vkbackend.device import Device
from vkbackend.errors import DeviceError
from vkbackend.physical import list_devices


def test_listing_again_finds_the_same() -> None:
    try:
        first = list_devices()
    except DeviceError as reason:
        pytest.skip(str(reason))
    # What lies inside a structure does not keep the structure's memory, which is soon another's.
    assert all(list_devices() == first for _ in range(100))


def test_an_open_device_is_what_the_listing_said(device: Device) -> None:
    info = device.info
    assert list_devices()[info.index] == info
    assert set(device.companion.supported) == set(info.features)
    assert device.companion.subgroup_sizes == info.subgroup_sizes
    heaps = device.companion.heaps()
    assert [(heap.size, heap.device_local) for heap in heaps] == [(heap.size, heap.device_local) for heap in info.heaps]
