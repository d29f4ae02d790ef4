"""The measured peaks: results checked, nothing left on the device, passes repeated until a submission costs little."""

import json
import os
from functools import partial

import numpy as np
import pytest

from harness.cli import main
from vkbackend import peaks
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.errors import DeviceError


def test_peaks_keep_their_samples_and_leave_nothing(device: Device) -> None:
    before = device.companion.live_bytes(), device.companion.objects()
    found = peaks.measure_peaks(device, repeats=3)
    device.memory.close()  # its staging buffer, where there is one
    assert device.companion.live_bytes() <= before[0]
    objects = device.companion.objects()
    assert {kind: objects.get(kind, 0) for kind in ("buffer", "memory")} == {
        kind: before[1].get(kind, 0) for kind in ("buffer", "memory")
    }
    assert {name: len(samples) for name, samples in found.samples.items()} == {"bandwidth": 3, "arithmetic": 3}
    assert found.bandwidth_bytes_per_s == np.median(found.samples["bandwidth"]) > 1e8
    assert found.flops_per_s == np.median(found.samples["arithmetic"]) > 1e9


def test_a_wrong_result_is_refused(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Buffer.download

    def flipped(buffer: Buffer, *args: object) -> np.ndarray:
        found = read(buffer, *args)  # type: ignore[arg-type]
        found.view(np.uint32)[-1] ^= 1
        return found

    monkeypatch.setattr(Buffer, "download", flipped)
    live = device.companion.live_bytes()
    texels = partial(peaks._bandwidth, kernel=peaks.READ_TEXELS)
    for measure, what in ((peaks._bandwidth, "read"), (texels, "read"), (peaks._arithmetic, "arithmetic")):
        with pytest.raises(DeviceError) as caught:
            measure(device, 1)
        assert str(caught.value) == (
            f"{device.info.name} computed a wrong result in the {what} kernel; expected an exact one: "
            "update the Vulkan driver or choose another --device"
        )
    device.memory.close()
    assert device.companion.live_bytes() <= live


def test_short_passes_are_repeated_in_one_program(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    run = peaks.Program.run

    def counted(program: peaks.Program) -> None:
        lengths.append(len(program.launches))
        run(program)

    monkeypatch.setattr(peaks.Program, "run", counted)
    monkeypatch.setattr(peaks, "_PASS_BYTES", peaks._TILE_BYTES)
    monkeypatch.setattr(peaks, "_PASS_BYTES_CPU", peaks._TILE_BYTES)
    monkeypatch.setattr(peaks, "_PROGRAM_S", 1e9)
    monkeypatch.setattr(peaks, "_MOST_PASSES", peaks._SINKS + 1)  # one sink is written twice
    peaks._bandwidth(device, 2)
    assert lengths == [1, 1, 9, 9, 9]


def test_the_command_measures_the_device_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    number = os.environ.get("LATENTVK_DEVICE", "0")
    assert main(["devices", "--measure", "--device", number, "--json", "-"]) == 0
    (found,) = [device for device in json.loads(capsys.readouterr().out) if device["chosen"]]
    assert found["unusable"] is None and set(found["features_on"]) <= set(found["features"])
    assert all(heap["budget"] is None or heap["budget"] > 0 for heap in found["heaps"])
    measured = found["measured"]
    assert measured["bandwidth_bytes_per_s"] == np.median(measured["samples"]["bandwidth"]) > 0
    assert len(measured["samples"]["arithmetic"]) == 5
