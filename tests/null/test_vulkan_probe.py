"""tools/vulkan_probe.py: which devices it refuses, before anything of the project is installed."""

import importlib.util
from pathlib import Path

import pytest

PROBE = Path(__file__).parents[2] / "tools" / "vulkan_probe.py"


@pytest.mark.parametrize(
    ("driver", "stages", "operations", "why"),
    [
        ("Mesa 25.0.7-2~bpo12+1 (LLVM 15.0.6)", 0x20, 0x9D, ""),
        ("Mesa 22.3.6", 0x20, 0x9D, "Mesa is older than 24"),
        ("Mesa 24.0.5", 0x20, 0x7F, "the driver lacks subgroup operations in compute shaders"),
        ("550.90.07", 0x01, 0x9D, "the driver lacks subgroup operations in compute shaders"),
        ("550.90.07", 0x20, 0xFF, ""),
    ],
)
def test_the_probe_refuses_what_the_shaders_cannot_run_on(driver: str, stages: int, operations: int, why: str) -> None:
    spec = importlib.util.spec_from_file_location("vulkan_probe", PROBE)
    assert spec is not None
    assert spec.loader is not None
    probe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(probe)
    assert probe.objection(driver, stages, operations) == why
