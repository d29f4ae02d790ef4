"""`latentvk devices` on machines that do not exist: what it prints, writes and returns."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import vkbackend.device
import vkbackend.gtt
import vkbackend.peaks
import vkbackend.physical
from harness.cli import main
from tests.null.imaginary import INFO
from vkbackend.errors import DeviceError
from vkbackend.gtt import Gtt
from vkbackend.peaks import Peaks
from vkbackend.physical import DeviceInfo, Heap

Captured = pytest.CaptureFixture[str]
GIB = 2**30
APU = replace(
    INFO,
    index=0,
    name="AMD Radeon 780M (RADV PHOENIX)",
    driver="radv",
    driver_version="Mesa 25.0.7",
    vendor_id=0x1002,
    device_id=0x15BF,
    chip="phoenix",
    pci_address="0000:c1:00.0",
    heaps=(Heap(5 * GIB, False, True), Heap(10 * GIB, True, True, 9 * GIB, 4096)),
    subgroup_sizes=(32, 64),
    subgroup_size=64,
)
NULL = replace(INFO, index=1, name="Null hardware", heaps=(), kind="discrete", timestamp_period_ns=0.0)
CPU = replace(INFO, index=2, name="llvmpipe", kind="cpu")
NULL_REASON = (
    "Null hardware has no memory heaps; expected at least one (a null device only compiles): choose another --device"
)
PEAKS = Peaks(80e9, 3.2e12, {"bandwidth": [79e9, 80e9, 82e9], "arithmetic": [3.1e12, 3.2e12, 3.3e12]})


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three devices above; llvmpipe cannot be opened."""

    def open_device(selector: str) -> SimpleNamespace:
        if selector == "2":
            raise DeviceError("llvmpipe cannot be opened")
        companion = SimpleNamespace(features=frozenset({"shaderInt8"}))
        return SimpleNamespace(companion=companion, close=lambda: None)

    def read_gtt(info: DeviceInfo) -> Gtt | None:
        return Gtt(15 * GIB, GIB // 2, "ttm", 15 * GIB // 4096, None) if info is APU else None

    monkeypatch.delenv("LATENTVK_DEVICE", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(vkbackend.physical, "list_devices", lambda: [APU, NULL, CPU])
    monkeypatch.setattr(vkbackend.device, "open_device", open_device)
    monkeypatch.setattr(vkbackend.peaks, "measure_peaks", lambda device: PEAKS)
    monkeypatch.setattr(vkbackend.gtt, "read_gtt", read_gtt)


def test_listing_shows_what_each_device_is(capsys: Captured) -> None:
    assert main(["devices"]) == 0
    found = capsys.readouterr().out
    first = """\
* 0  AMD Radeon 780M (RADV PHOENIX)
     kind        integrated, chip phoenix, 1002:15bf at 0000:c1:00.0
     driver      radv Mesa 25.0.7, Vulkan 1.3.0
     memory      15.00 GiB, shared with the host
       heap 0    5.000 GiB the host's, mapped; budget unknown
       heap 1    10.00 GiB device-local, mapped; budget 9.000 GiB, 4.000 KiB in
                 use
       GTT       at most 15.00 GiB of the host's, 512.0 MiB carved out,
                 ttm.pages_limit=3932160 (4.000 KiB each); a model that needs
                 more: boot Linux with ttm.pages_limit=BYTES/4096
     at most     bindings of 1.000 GiB, allocations of 2.000 GiB, buffers of
                 4.000 GiB; bindings begin at multiples of 16 B
     workgroups  1,024 invocations (1,024 x 1,024 x 64), 65,535 x 100 x 7
                 groups, 32.00 KiB shared
     subgroups   64, 32 to 64 on request
     timestamps  64 bits, 1.00 ns each
     features    storageBuffer16BitAccess, shaderInt8
       missing   storageBuffer8BitAccess, shaderFloat16, shaderInt16,
                 shaderInt64, shaderIntegerDotProduct, subgroupSizeControl,
                 computeFullSubgroups, vulkanMemoryModel, cooperativeMatrix,
                 pipelineExecutableInfo, synchronization2, maintenance4,
                 bufferDeviceAddress, memoryBudget
"""
    assert found.startswith(first)
    assert "  1  Null hardware\n     unusable    Null hardware has no memory heaps" in found
    assert "     memory      none\n" in found and "     timestamps  none\n" in found
    assert found.endswith("* is used unless --device names another\n")


@pytest.mark.parametrize(("columns", "longest"), [(80, 80), (120, 120), (40, 60)])
def test_lines_fit_the_terminal(columns: int, longest: int, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["devices", "--measure"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert longest - 25 < max(map(len, lines)) <= longest


def test_measuring_opens_every_device_and_says_which_it_cannot(capsys: Captured) -> None:
    assert main(["devices", "--measure"]) == 0
    found = capsys.readouterr().out
    assert found.count("measured") == 1
    assert (
        """\
     features    storageBuffer16BitAccess, shaderInt8
       on        shaderInt8
"""
        in found
    )
    assert (
        """\
     measured    memory reads 80.0 GB/s (79.0 to 82.0, 3 runs)
                 f32 arithmetic 3,200 GFLOP/s (3,100 to 3,300, 3 runs)
"""
        in found
    )
    assert "     unusable    llvmpipe cannot be opened\n" in found


def test_json_holds_it_all(capsys: Captured, tmp_path: Path) -> None:
    assert main(["devices", "--measure", "--json", "-"]) == 0
    apu, null, cpu = json.loads(capsys.readouterr().out)
    assert apu["chip"] == "phoenix" and apu["heaps"][1]["budget"] == 9 * GIB and apu["chosen"] is True
    assert apu["gtt"] == {
        "total": 15 * GIB,
        "carved_out": GIB // 2,
        "ttm": "ttm",
        "pages_limit": 3932160,
        "gttsize": None,
    }
    assert apu["features"] == ["storageBuffer16BitAccess", "shaderInt8"] and apu["features_on"] == ["shaderInt8"]
    assert apu["unusable"] is None
    assert apu["measured"] == {"bandwidth_bytes_per_s": 80e9, "flops_per_s": 3.2e12, "samples": PEAKS.samples}
    assert (null["unusable"], null["measured"], null["gtt"], null["chosen"]) == (NULL_REASON, None, None, False)
    assert (cpu["unusable"], cpu["features_on"]) == ("llvmpipe cannot be opened", None)
    assert main(["devices", "--json", str(tmp_path / "d.json")]) == 0
    assert [device["measured"] for device in json.loads((tmp_path / "d.json").read_text())] == [None] * 3


def test_one_device_that_cannot_be_opened_is_an_error_after_the_listing(capsys: Captured) -> None:
    assert main(["devices", "--measure", "--device", "0"]) == 0
    assert "llvmpipe cannot be opened" not in capsys.readouterr().out  # it was not tried
    assert main(["devices", "--measure", "--device", "llvm"]) == 3
    out, err = capsys.readouterr()
    assert "* 2  llvmpipe\n     unusable    llvmpipe cannot be opened\n" in out
    assert err == "latentvk: error: llvmpipe cannot be opened\n"


def test_a_machine_with_nothing_usable_marks_nothing(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vkbackend.physical, "list_devices", lambda: [replace(NULL, index=0)])
    assert main(["devices"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("  0  Null hardware\n") and out.endswith("none of them can be used\n")
    assert main(["devices", "--measure"]) == 3
    assert capsys.readouterr().err == f"latentvk: error: {NULL_REASON}\n"
