"""What a physical device says of itself, and which one is chosen."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

import vkbackend.device
import vkbackend.health
from tests.null.imaginary import INFO
from vkbackend.device import open_device
from vkbackend.errors import DeviceError
from vkbackend.physical import select_device


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
