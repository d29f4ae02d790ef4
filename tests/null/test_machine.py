"""The machine's state beside a measurement: what sysfs says, and how busy other programs were."""

import os
import subprocess
import sys
import time
from pathlib import Path

from harness import machine


def test_state_reads_sysfs(tmp_path: Path) -> None:
    files = {
        "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "3200000\n",
        "devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1400000\n",
        "class/hwmon/hwmon3/name": "k10temp\n",
        "class/hwmon/hwmon3/temp1_input": "61500\n",
        "class/hwmon/hwmon3/temp1_label": "Tctl\n",
        "class/hwmon/hwmon3/temp2_input": "asleep\n",
        "class/power_supply/BAT0/type": "Battery\n",
        "class/power_supply/BAT0/status": "Discharging\n",
        "bus/pci/devices/0000:c1:00.0/hwmon/hwmon5/freq1_input": "2700000000\n",
        "firmware/acpi/platform_profile": "balanced\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = machine.state("0000:c1:00.0", tmp_path)
    assert len(found.pop("load_average")) == 3
    assert found == {
        "cpu_mhz": [3200.0, 1400.0],
        "cpu_governor": "powersave",
        "gpu_mhz": 2700.0,
        "gpu_memory_mhz": None,
        "temperature_c": {"k10temp Tctl": 61.5},
        "power_source": "battery",
        "platform_profile": "balanced",
    }
    adapter = tmp_path / "class/power_supply/AC"
    adapter.mkdir()
    (adapter / "type").write_text("Mains\n")
    (adapter / "online").write_text("1\n")
    assert machine.state(None, tmp_path)["power_source"] == "mains"


def test_watch_counts_other_programs_and_not_this_one() -> None:
    watch = machine.Watch(None)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    alone = watch.taken()["others_busy"]
    busy = "import time\nend = time.monotonic() + 0.5\nwhile time.monotonic() < end: pass"
    watch = machine.Watch(None)
    with subprocess.Popen([sys.executable, "-c", busy]):
        time.sleep(0.4)
        beside = watch.taken()["others_busy"]
    # What else runs is unknown; a child that was not waited for counts as another program, at up to one processor.
    assert 0 <= alone <= (os.cpu_count() or 1)
    assert beside > 0.2


def test_state_of_a_machine_that_shows_nothing(tmp_path: Path) -> None:
    found = machine.state("0000:c1:00.0", tmp_path)
    assert {key: value for key, value in found.items() if value} == {"load_average": found["load_average"]}
