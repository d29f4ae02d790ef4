"""Faults on demand, for tests: devices without a feature, calls that fail while a device is opened."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from vkbackend.companion import loading


@contextmanager
def leave_out(*features: str) -> Iterator[None]:
    """Devices opened inside do not have these features enabled."""
    before = loading.left_out
    loading.left_out = features
    try:
        yield
    finally:
        loading.left_out = before


def fail_call_of_next_device(n: int, result: int = -2) -> None:
    """The ``n``-th fallible Vulkan call of the next device returns ``result`` (a VkResult) without being made."""
    loading.library().companion_fail_call_of_next_device(ctypes.c_uint64(n), result)
