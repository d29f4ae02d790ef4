"""How the Vulkan loader is told of the companion layer, and of the validation layer where it is asked for.

The loader reads the environment when an instance is made, so the variables stand only around that call: child processes
must not inherit them. VK_ADD_LAYER_PATH adds a folder (loader 1.3.207 or newer) but is ignored beside VK_LAYER_PATH;
where the user has set that one, our folder is put before theirs.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from vkbackend.errors import DeviceError, InputError

FOLDER = Path(__file__).resolve().parent
LAYER = "VK_LAYER_LATENTVK_companion"
MANIFEST = "VkLayer_latentvk_companion.json"
VALIDATION_LAYER = "VK_LAYER_KHRONOS_validation"
INTERFACE = 2  # COMPANION_INTERFACE of companion.h

# What LATENTVK_VALIDATE may name, with the validation layer's own switches (VK_LAYER_ENABLES). Core is always on.
_CHECKS = {
    "core": (),
    "sync": ("VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT",),
    "queue-sync": (
        "VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT",
        "VALIDATION_CHECK_ENABLE_SYNCHRONIZATION_VALIDATION_QUEUE_SUBMIT",
    ),
    "gpu": ("VK_VALIDATION_FEATURE_ENABLE_GPU_ASSISTED_EXT",),
}
# Structs younger than Debian 12's validation layer (1.3.239), which reports them as unknown.
_UNKNOWN_TO_VALIDATION = ("cooperativeMatrix",)
left_out: tuple[str, ...] = ()  # features that tests want off, see testing.py


def library_path() -> Path:
    """The layer's library, as the manifest names it."""
    manifest = json.loads((FOLDER / MANIFEST).read_text())
    return FOLDER / Path(manifest["layer"]["library_path"]).name


@cache
def library() -> ctypes.CDLL:
    """The layer's library; the loader opens the same file, so both see one state.

    Raises:
        DeviceError: it was not built, or was built from other sources.
    """
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        found = "is missing" if not path.exists() else f"does not load ({error})"
        raise DeviceError(
            f"the companion layer {path.name} {found}; expected it in {FOLDER}: install latentvk again (make setup)"
        ) from error
    loaded.companion_interface.restype = ctypes.c_uint32
    built = loaded.companion_interface()
    if built != INTERFACE:
        raise DeviceError(
            f"the companion layer {path.name} has interface {built}; expected {INTERFACE}: "
            "install latentvk again (make setup)"
        )
    return loaded


def validation_checks() -> tuple[str, ...]:
    """The checks that LATENTVK_VALIDATE asks for, e.g. "core,sync". Raises InputError for an unknown one."""
    wanted = tuple(part.strip() for part in os.environ.get("LATENTVK_VALIDATE", "").split(",") if part.strip())
    unknown = [name for name in wanted if name not in _CHECKS]
    if unknown:
        raise InputError(f"LATENTVK_VALIDATE names {unknown[0]!r}; expected some of {', '.join(_CHECKS)}: change it")
    return wanted


def _changes(checks: tuple[str, ...]) -> dict[str, str]:
    layers = [LAYER] + ([VALIDATION_LAYER] if checks else [])
    theirs = os.environ.get("VK_INSTANCE_LAYERS", "")
    changes = {"VK_INSTANCE_LAYERS": ":".join([*layers, *filter(None, theirs.split(":"))])}
    variable = "VK_LAYER_PATH" if os.environ.get("VK_LAYER_PATH") else "VK_ADD_LAYER_PATH"
    changes[variable] = ":".join([str(FOLDER), *filter(None, os.environ.get(variable, "").split(":"))])
    switches = dict.fromkeys(switch for name in checks for switch in _CHECKS[name])
    if switches:
        changes["VK_LAYER_ENABLES"] = ":".join(switches)
    return changes


@cache
def _report_at_exit() -> None:
    """What nobody asked for is shown when the process ends: a command run under validation must not hide it."""
    from vkbackend.companion import messages  # which builds on this module

    @atexit.register
    def report() -> None:
        for message in messages():
            print(f"latentvk: validation: {message}", file=sys.stderr)


@contextmanager
def layers_enabled() -> Iterator[None]:
    """Instances made inside have the companion layer, and validation below it where LATENTVK_VALIDATE says so.

    Raises:
        InputError: LATENTVK_VALIDATE names an unknown check.
        DeviceError: the layer was not built.
    """
    checks = validation_checks()
    lib = library()
    lib.companion_collect_messages(ctypes.c_bool(bool(checks)))
    unused = left_out + (_UNKNOWN_TO_VALIDATION if checks else ())
    lib.companion_leave_out(",".join(unused).encode())
    if checks:
        _report_at_exit()
    changes = _changes(checks)
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
