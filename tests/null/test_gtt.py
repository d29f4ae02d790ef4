"""The GTT limit of AMD's integrated GPUs, read from made-up trees of sysfs, and what to boot with for more of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.null.imaginary import INFO
from vkbackend.gtt import Gtt, raise_hint, read_gtt
from vkbackend.physical import Heap

GIB = 2**30
APU = replace(
    INFO,
    name="AMD Radeon 780M (RADV PHOENIX)",
    vendor_id=0x1002,
    device_id=0x15BF,
    pci_address="0000:c1:00.0",
    heaps=(Heap(11 * GIB // 2, False, True), Heap(11 * GIB, True, True)),
)


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")


def sysfs(
    root: Path, *, limit: int | None = 16 * GIB, gtt: int = 16 * GIB, gttsize: int = -1, ttm: str = "ttm"
) -> Path:
    """A machine with the APU at c1:00.0 (512 MiB carved out) and a card of the same vendor at 03:00.0."""
    for number, address, device, carved_out in (
        (0, "0000:03:00.0", 0x744C, 24 * GIB),
        (1, "0000:c1:00.0", 0x15BF, GIB // 2),
    ):
        folder = root / "devices/pci0000:00" / address
        write(folder / "vendor", "0x1002")
        write(folder / "device", hex(device))
        write(folder / "mem_info_vram_total", carved_out)
        write(folder / "mem_info_gtt_total", gtt if number else 48 * GIB)
        card = root / f"class/drm/card{number}"
        card.mkdir(parents=True)
        (card / "device").symlink_to(folder)
        (root / f"class/drm/card{number}-DP-1").mkdir()
    if limit is not None:
        write(root / f"module/{ttm}/parameters/pages_limit", limit // 4096)
    write(root / "module/amdgpu/parameters/gttsize", gttsize)
    return root


def test_limits_are_those_of_the_device_asked_for(tmp_path: Path) -> None:
    found = Gtt(16 * GIB, GIB // 2, "ttm", 4194304, None)
    assert read_gtt(APU, sysfs(tmp_path)) == found
    assert read_gtt(replace(APU, pci_address=None), tmp_path) == found  # by its ids
    assert read_gtt(replace(APU, pci_address="0000:99:00.0"), tmp_path) == found


def test_no_limit_where_none_is_known(tmp_path: Path) -> None:
    sysfs(tmp_path / "sys")
    assert read_gtt(INFO, tmp_path / "sys") is None  # another vendor's
    assert read_gtt(replace(APU, kind="discrete"), tmp_path / "sys") is None
    assert read_gtt(replace(APU, pci_address=None, device_id=1), tmp_path / "sys") is None
    assert read_gtt(APU, tmp_path / "no such folder") is None
    (tmp_path / "sys/devices/pci0000:00/0000:c1:00.0/mem_info_gtt_total").unlink()  # another kernel driver
    assert read_gtt(APU, tmp_path / "sys") is None
    assert raise_hint(APU, 2**60, tmp_path / "sys") == ""


def test_ids_that_two_cards_share_name_neither(tmp_path: Path) -> None:
    sysfs(tmp_path)
    write(tmp_path / "devices/pci0000:00/0000:03:00.0/device", "0x15bf")
    assert read_gtt(replace(APU, pci_address=None), tmp_path) is None
    found = read_gtt(APU, tmp_path)
    assert found is not None and found.total == 16 * GIB


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        pytest.param({}, "ttm.pages_limit=5505024 (21 GiB of GTT, now 16384 MiB)", id="GTT follows TTM"),
        pytest.param(
            {"ttm": "amdttm"}, "amdttm.pages_limit=5505024 (21 GiB of GTT, now 16384 MiB)", id="AMD's own package"
        ),
        pytest.param(
            {"gttsize": 8192, "gtt": 8 * GIB},
            "ttm.pages_limit=5505024 amdgpu.gttsize=21504 (21 GiB of GTT, now 8192 MiB)",
            id="gttsize overrides TTM",
        ),
        pytest.param(
            {"limit": 12 * GIB},
            "ttm.pages_limit=5505024 amdgpu.gttsize=21504 (21 GiB of GTT, now 16384 MiB)",
            id="an older kernel, whose GTT is not TTM's limit",
        ),
        pytest.param(
            {"limit": None}, "ttm.pages_limit=5505024 amdgpu.gttsize=21504 (21 GiB of GTT, now 16384 MiB)", id="no TTM"
        ),
    ],
)
def test_hint_names_the_kernel_parameters(tmp_path: Path, tree: dict[str, object], words: str) -> None:
    # 20 GiB, of which 512 MiB are carved out, and 1 GiB for the desktop: 20.5, so 21 of GTT.
    sysfs(tmp_path, **tree)  # type: ignore[arg-type]
    assert raise_hint(APU, 20 * GIB, tmp_path, 64 * GIB) == f"boot Linux with {words}"


def test_hint_counts_what_other_programs_use(tmp_path: Path) -> None:
    busy = replace(APU, heaps=(Heap(11 * GIB // 2, False, True, 3 * GIB, 0), Heap(11 * GIB, True, True, 10 * GIB, 0)))
    sysfs(tmp_path)
    assert raise_hint(busy, 13 * GIB, tmp_path, 64 * GIB) == ""
    # 3.5 GiB of the 16.5 are taken: 14 more, 1 for the desktop, less the 0.5 carved out.
    assert raise_hint(busy, 14 * GIB, tmp_path, 64 * GIB) == (
        "boot Linux with ttm.pages_limit=4718592 (18 GiB of GTT, now 16384 MiB)"
    )


def test_no_hint_where_no_limit_would_help(tmp_path: Path) -> None:
    sysfs(tmp_path)
    assert raise_hint(APU, 16 * GIB, tmp_path, 64 * GIB) == ""  # fits as it is
    assert raise_hint(APU, 40 * GIB, tmp_path, 32 * GIB) == ""  # more than the host has
    assert raise_hint(APU, 20 * GIB, tmp_path, 22 * GIB) == ""  # would leave the host less than 2 GiB
    assert raise_hint(APU, 20 * GIB, tmp_path, 23 * GIB) != ""
    assert raise_hint(replace(APU, heaps=()), 20 * GIB, tmp_path, 64 * GIB) != ""  # heaps unknown: by sysfs alone
