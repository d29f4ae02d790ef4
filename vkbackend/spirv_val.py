"""SPIR-V modules held against the specification's rules by spirv-val, of the Khronos SPIRV-Tools."""

from __future__ import annotations

import shutil
import subprocess

from vkbackend.errors import DeviceError
from vkbackend.shader import TARGET


def require_validator() -> str:
    """The path of spirv-val. DeviceError when it is not installed."""
    path = shutil.which("spirv-val")
    if path is None:
        raise DeviceError("spirv-val is not on the PATH; expected it: install the package spirv-tools")
    return path


def validate(module: bytes) -> str:
    """What is wrong with ``module``, in one line; "" where nothing is.

    Raises:
        DeviceError: spirv-val is not installed.
    """
    command = [require_validator(), "--target-env", TARGET, "-"]
    run = subprocess.run(command, input=module, capture_output=True, check=False)
    said = " ".join((run.stdout + run.stderr).decode(errors="replace").split())
    return "" if run.returncode == 0 else said or f"spirv-val ended with status {run.returncode}"
