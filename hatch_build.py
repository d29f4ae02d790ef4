"""Compiles the companion layer (vkbackend/companion/*.c) when the package is built, editable installations included.

The system's C compiler and Vulkan headers are enough. `python hatch_build.py` does only this step: the quick way while
working on the layer.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("vkbackend/companion")
LIBRARY = FOLDER / "liblatentvk_companion.so"
# nodelete: the loader closes the library with each instance, its state must outlive that. defs: an unresolved name
# fails here and not at the first call.
FLAGS = ["-std=c11", "-O2", "-g0", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden", "-pthread", "-shared"]
LINK_FLAGS = ["-Wl,-z,nodelete", "-Wl,-z,defs"]


class BuildError(Exception):
    """The layer cannot be built: what was found, what was expected, the remedy."""


def compiler() -> list[str]:
    """The words of $CC, else ``cc``.

    Raises:
        BuildError: there is no such program.
    """
    words = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(words[0]) is None:
        raise BuildError(
            f"no C compiler {words[0]!r} on this machine; expected one to build latentvk's Vulkan layer: "
            "install gcc and libc6-dev, or name a compiler in CC"
        )
    return words


def build(root: Path, library: Path) -> None:
    """Compile the sources under ``root`` into ``library``, which appears whole or not at all.

    Raises:
        BuildError: there is no compiler or no Vulkan header, or the sources do not compile.
    """
    sources = sorted((root / FOLDER).glob("*.c"))
    if not sources:
        raise BuildError(f"no C sources in {FOLDER}; expected the Vulkan layer's: get the whole repository")
    # A running process keeps the old file: it is replaced, never written over.
    unfinished = library.with_name(f".{library.name}.{os.getpid()}")
    command = [*compiler(), *FLAGS, *map(str, sources), "-o", str(unfinished), *LINK_FLAGS]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},  # its messages are read below
        )
        if done.returncode == 0:
            sys.stderr.write(done.stderr)
            unfinished.replace(library)
            return
    finally:
        unfinished.unlink(missing_ok=True)
    missing = re.search(r"fatal error: '?(vulkan/[^:']+)", done.stderr)  # gcc's and clang's way
    if missing:
        raise BuildError(f"{command[0]} found no {missing[1]}; expected the Vulkan headers: install libvulkan-dev")
    sys.stderr.write(done.stderr)
    raise BuildError(
        f"{command[0]} could not compile {FOLDER} (its messages are above); expected a C11 compiler and Vulkan headers "
        "of 1.3.204 or newer: update gcc and libvulkan-dev, or name another compiler in CC"
    )


class CompanionHook(BuildHookInterface):
    """What hatchling calls before it packs a wheel or makes an editable installation."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say that the wheel is for this platform only. Sources are distributed without the library."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        try:
            build(root, root / LIBRARY)
        except BuildError as error:
            raise SystemExit(f"latentvk: error: {error}") from error
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    try:
        build(here, here / LIBRARY)
    except BuildError as error:
        sys.exit(f"latentvk: error: {error}")
