"""How the machine is at this moment: load, clocks, temperatures, power. What Linux does not show is None or empty.

Sources: the kernel's documentation of sysfs, ABI/testing/sysfs-class-power, sysfs-class-hwmon, sysfs-devices-system-cpu
and gpu/amdgpu/thermal (hwmon's freq1_input is amdgpu's shader clock, freq2_input its memory clock).
"""

import os
import time
from pathlib import Path
from typing import Any

import psutil

SYS = Path("/sys")


class Watch:
    """The machine's state when made and when asked, and how busy other programs kept its processors in between."""

    def __init__(self, pci_address: str | None) -> None:
        self._pci_address = pci_address
        self._before = state(pci_address)
        self._wall, self._others = time.monotonic(), _others_seconds()

    def taken(self) -> dict[str, Any]:
        """`before`, `after` (see `state`) and `others_busy`: processors, on average, that other programs used."""
        busy = (_others_seconds() - self._others) / max(time.monotonic() - self._wall, 1e-9)
        return {"before": self._before, "after": state(self._pci_address), "others_busy": round(max(busy, 0.0), 3)}


def _others_seconds() -> float:
    """Processor seconds since the start that were not idle and not this process's."""
    times, own = psutil.cpu_times(), os.times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq
    return float(busy - own.user - own.system - own.children_user - own.children_system)


def state(pci_address: str | None, sys: Path = SYS) -> dict[str, Any]:
    """Load averages of the last 1, 5 and 15 minutes; clocks in MHz; temperatures in degrees Celsius; power source.

    Args:
        pci_address: the device's, as sysfs writes it, for its own clocks; None where it has none.
    """
    cpu = [_number(path, 1e-3) for path in sorted(sys.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    return {
        "load_average": list(os.getloadavg()),
        "cpu_mhz": [clock for clock in cpu if clock is not None],
        "cpu_governor": _text(sys / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        **_gpu_clocks(pci_address, sys),
        "temperature_c": _temperatures(sys),
        "power_source": _power_source(sys),
        "platform_profile": _text(sys / "firmware/acpi/platform_profile"),
    }


def _gpu_clocks(pci_address: str | None, sys: Path) -> dict[str, float | None]:
    found: dict[str, float | None] = {"gpu_mhz": None, "gpu_memory_mhz": None}
    if pci_address is None:
        return found
    for folder in sorted((sys / "bus/pci/devices" / pci_address / "hwmon").glob("hwmon*")):
        for name, file in (("gpu_mhz", "freq1_input"), ("gpu_memory_mhz", "freq2_input")):
            clock = _number(folder / file, 1e-6)
            found[name] = found[name] if clock is None else clock
    return found


def _temperatures(sys: Path) -> dict[str, float]:
    """By the chip's name and the sensor's label: {"k10temp Tctl": 61.5}."""
    found = {}
    for folder in sorted(sys.glob("class/hwmon/hwmon*")):
        for path in sorted(folder.glob("temp*_input")):
            value = _number(path, 1e-3)
            label = _text(path.with_name(path.name.replace("_input", "_label"))) or path.name.removesuffix("_input")
            if value is not None:
                found[f"{_text(folder / 'name') or folder.name} {label}"] = value
    return found


def _power_source(sys: Path) -> str | None:
    """'mains' where an adapter is online, 'battery' where one discharges, None where nothing tells."""
    supplies = sorted(sys.glob("class/power_supply/*"))
    online = {_text(folder / "type"): _text(folder / "online") for folder in supplies}
    if any(kind != "Battery" and value == "1" for kind, value in online.items()):
        return "mains"
    return "battery" if any(_text(folder / "status") == "Discharging" for folder in supplies) else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:  # absent, or a sensor that is asleep
        return None


def _number(path: Path, unit: float) -> float | None:
    text = _text(path)
    try:
        return None if text is None else round(float(text) * unit, 3)
    except ValueError:
        return None
