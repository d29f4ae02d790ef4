"""The device that all tests here share, opened once; without one they are skipped and say why."""

import pytest

from vkbackend.device import Device, open_device
from vkbackend.errors import DeviceError


@pytest.fixture(scope="session")
def device() -> Device:
    """The device that LATENTVK_DEVICE names, else the best one."""
    try:
        return open_device()
    except DeviceError as reason:
        pytest.skip(str(reason))
