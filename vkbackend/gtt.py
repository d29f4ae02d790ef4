"""How much system memory an AMD integrated GPU may take, and what to boot with when a model needs more.

Such a GPU allocates from what its BIOS carved out for it and from GTT: pages of system memory, as many as the kernel's
TTM allows (parameter pages_limit, half of RAM unless set). amdgpu sizes GTT once, when it loads, so raising it takes a
boot. Its own parameter gttsize overrides TTM's limit and is deprecated: the kernel's documentation says so for 6.17 and
not yet for 6.13. Kernels before that follow pages_limit in part only; where GTT is seen not to, both are named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from vkbackend.physical import DeviceInfo

_AMD = 0x1002
PAGE = 4096  # bytes of a page of TTM's limit on x86
_MIB, _GIB = 2**20, 2**30
# Beside the model: what the desktop and other programs take of GTT, and what must stay of RAM for everything else.
_GTT_RESERVE, _RAM_RESERVE = _GIB, 2 * _GIB


@dataclass(frozen=True)
class Gtt:
    """The limits in force: ``total`` and ``carved_out`` in bytes, ``pages_limit`` in 4 KiB pages, ``gttsize`` in MiB.

    ``ttm`` is the module that has pages_limit: AMD's own packages of the driver bring one under the name amdttm.
    """

    total: int
    carved_out: int
    ttm: str
    pages_limit: int | None
    gttsize: int | None  # None: left to the kernel

    @property
    def follows_ttm(self) -> bool:
        """Whether raising pages_limit alone raises ``total``."""
        return self.gttsize is None and self.pages_limit is not None and self.pages_limit * PAGE == self.total


def read_gtt(info: DeviceInfo, sysfs: Path = Path("/sys")) -> Gtt | None:
    """The GTT limit of a device; None where it is no integrated GPU of AMD's, or amdgpu does not drive it."""
    if info.vendor_id != _AMD or info.kind != "integrated":
        return None
    card = _card(info, sysfs)
    total = None if card is None else _number(card / "mem_info_gtt_total")
    if card is None or total is None:
        return None
    modules = sysfs / "module"
    ttm = "amdttm" if _number(modules / "amdttm/parameters/pages_limit") is not None else "ttm"
    gttsize = _number(modules / "amdgpu/parameters/gttsize")
    return Gtt(
        total=total,
        carved_out=_number(card / "mem_info_vram_total") or 0,
        ttm=ttm,
        pages_limit=_number(modules / ttm / "parameters/pages_limit"),
        gttsize=None if gttsize is None or gttsize < 0 else gttsize,
    )


def raise_hint(info: DeviceInfo, needed_bytes: int, sysfs: Path = Path("/sys"), host_bytes: int | None = None) -> str:
    """What to boot with so that ``needed_bytes`` in all fit ``info``, as words that follow "or".

    Empty where GTT is not what lacks (another device, enough of it already) or where the host's memory (``host_bytes``,
    else as the system tells it) is too small for any limit to help.
    """
    gtt = read_gtt(info, sysfs)
    if gtt is None:
        return ""
    whole = gtt.total + gtt.carved_out
    budgets = sum(heap.size if heap.budget is None else heap.budget for heap in info.heaps)
    available = min(whole, budgets) if info.heaps else whole
    if needed_bytes <= available:
        return ""
    host = psutil.virtual_memory().total if host_bytes is None else host_bytes
    taken_by_others = whole - available
    wanted = needed_bytes + taken_by_others + _GTT_RESERVE - gtt.carved_out
    gib = -(-wanted // _GIB)
    if gib * _GIB > host - _RAM_RESERVE:
        return ""
    return f"boot Linux with {parameters(gtt, gib * _GIB)} ({gib} GiB of GTT, now {gtt.total // _MIB} MiB)"


def parameters(gtt: Gtt, size: int | None = None) -> str:
    """The kernel command line's words that make GTT ``size`` bytes; without a size, how they are written."""
    pages = "BYTES/4096" if size is None else str(size // PAGE)
    words = f"{gtt.ttm}.pages_limit={pages}"
    if gtt.follows_ttm:
        return words
    return f"{words} amdgpu.gttsize={'BYTES/1048576' if size is None else size // _MIB}"


def _card(info: DeviceInfo, sysfs: Path) -> Path | None:
    """The device's folder: by PCI address, else by its ids where one card alone has them."""
    same = []
    for card in sorted((sysfs / "class/drm").glob("card*")):
        if not re.fullmatch(r"card\d+", card.name):  # card0-DP-1 is a connector
            continue
        device = card / "device"
        if info.pci_address is not None and device.resolve().name == info.pci_address:
            return device
        if (_number(device / "vendor"), _number(device / "device")) == (info.vendor_id, info.device_id):
            same.append(device)
    return same[0] if len(same) == 1 else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(), 0)  # decimal, or hexadecimal with 0x
    except (OSError, ValueError):
        return None
