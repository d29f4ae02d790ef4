"""GLSL to SPIR-V by glslangValidator, kept in a content-addressed cache.

The key covers the file, everything that it includes, the macros, the compiler's version and its flags, so a cache
entry can never be stale; entries are written to a temporary name and renamed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import platformdirs

from vkbackend.errors import DeviceError, InputError

SHADER_ROOT = Path(__file__).resolve().parent.parent / "shaders"
INCLUDE_ROOT = SHADER_ROOT / "include"
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_FLAGS = ("-V", "--target-env", "vulkan1.1", "--quiet")


def cache_folder() -> Path:
    """Where compiled shaders are kept: LATENTVK_CACHE, or the user's cache folder."""
    return Path(os.environ.get("LATENTVK_CACHE") or platformdirs.user_cache_dir("latentvk")) / "spirv"


@cache
def compiler() -> tuple[str, str]:
    """The path of glslangValidator and what it says of its version.

    Raises:
        DeviceError: it is not installed.
    """
    path = shutil.which("glslangValidator")
    if path is None:
        raise DeviceError("glslangValidator is not on the PATH; expected it: install the package glslang-tools")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    return path, version


@cache
def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InputError(
            f"shader source {path.name} cannot be read ({error.strerror}); expected it in {SHADER_ROOT}; install again"
        ) from error


def _sources(path: Path, seen: dict[Path, str]) -> dict[Path, str]:
    """``path`` and all that it includes, under whatever condition."""
    if path in seen:
        return seen
    seen[path] = _read(path)
    for name in _INCLUDE.findall(seen[path]):
        _sources(INCLUDE_ROOT / name, seen)
    return seen


def compile_shader(name: str, macros: Mapping[str, str]) -> bytes:
    """SPIR-V of ``shaders/NAME`` with ``macros`` defined.

    Raises:
        InputError: the source is missing or does not compile; the message carries the compiler's first error line.
        DeviceError: there is no compiler.
    """
    path, version = compiler()
    source = SHADER_ROOT / name
    digest = hashlib.sha256("\0".join((version, *_FLAGS, *(f"{k}={v}" for k, v in sorted(macros.items())))).encode())
    for part, text in sorted(_sources(source, {}).items()):
        digest.update(f"\0{part.name}\0{text}".encode())
    entry = cache_folder() / f"{source.stem}-{digest.hexdigest()[:32]}.spv"
    if entry.is_file():
        return entry.read_bytes()
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=entry.parent, suffix=".tmp")
    except OSError as error:
        raise InputError(
            f"shader cache {entry.parent} cannot be written ({error.strerror}); expected a writable folder: "
            "set LATENTVK_CACHE to one"
        ) from error
    os.close(handle)
    try:
        defines = [f"-D{k}={v}" for k, v in macros.items()]
        command = [path, *_FLAGS, f"-I{INCLUDE_ROOT}", *defines, "-o", temporary, str(source)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            lines = (
                [line for line in run.stdout.splitlines() if "ERROR" in line]
                or run.stdout.splitlines()
                or ["no output"]
            )
            raise InputError(f"shader {name} does not compile with {dict(macros)}: {lines[0]}")
        Path(temporary).replace(entry)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return entry.read_bytes()
