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
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import platformdirs

from vkbackend.cooperative import with_element_types
from vkbackend.errors import DeviceError, InputError

# LATENTVK_SHADERS names another folder: a copy to work on, where the installed one is not a checkout.
SHADER_ROOT = Path(os.environ.get("LATENTVK_SHADERS") or Path(__file__).parent.parent / "shaders").resolve()
INCLUDE_ROOT = SHADER_ROOT / "include"
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
TARGET = "vulkan1.1"  # the environment that modules are compiled for, and validated by
_FLAGS = ("-V", "--target-env", TARGET, "--quiet")
_TRIES = 5  # at a module whose sources are being saved
# glslang's lines: "ERROR: FILE:LINE: text"; what has no place in a file only counts or sums up.
_DIAGNOSTIC = re.compile(r"(ERROR|WARNING): (.+?):(\d+): (.*)")


@dataclass(frozen=True)
class Diagnostic:
    """One complaint of the compiler: ``severity`` ERROR or WARNING, the file that the line is in, the line from 1."""

    severity: str
    file: Path
    line: int
    text: str

    @property
    def place(self) -> str:
        """The file below the shaders' folder, and the line."""
        inside = self.file.is_relative_to(SHADER_ROOT)
        return f"{self.file.relative_to(SHADER_ROOT) if inside else self.file}:{self.line}"

    def excerpt(self, around: int = 2) -> str:
        """The line with its neighbours, numbered, the line itself marked; "" where the file cannot be read."""
        try:
            lines = self.file.read_text().splitlines()
        except OSError:
            return ""
        first, last = max(1, self.line - around), min(len(lines), self.line + around)
        return "\n".join(f"{'>' if n == self.line else ' '} {n:4} | {lines[n - 1]}" for n in range(first, last + 1))


class ShaderError(InputError):
    """A shader that does not compile, or not without warnings where those count; ``diagnostics`` in their order."""

    def __init__(self, name: str, macros: Mapping[str, str], diagnostics: tuple[Diagnostic, ...], output: str) -> None:
        first = f"{diagnostics[0].place}: {diagnostics[0].text.strip()}" if diagnostics else output
        variant = " ".join(macros) if macros else "no macros"
        super().__init__(f"shader {name} does not compile ({variant}): {first}; correct that line")
        self.diagnostics = diagnostics
        self._given = name, dict(macros), diagnostics, output

    def __reduce__(self) -> tuple[type[ShaderError], tuple[object, ...]]:
        """To be made again in the process that it is sent to."""
        return ShaderError, self._given


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


def forget_sources() -> None:
    """Read every source again when it is next needed: they are otherwise read once a process."""
    _read.cache_clear()
    _texts.cache_clear()


def sources(path: Path) -> dict[Path, str]:
    """The text of ``path`` and of all that it includes, under whatever condition."""
    found: dict[Path, str] = {}
    wanted = [path]
    while wanted:
        part = wanted.pop()
        if part not in found:
            found[part] = _read(part)
            wanted += [INCLUDE_ROOT / name for name in _INCLUDE.findall(found[part])]
    return found


@cache
def _texts(path: Path) -> bytes:
    """Names and texts of ``path`` and of all that it includes, in one order: every launch that is recorded asks."""
    return "".join(f"\0{part.name}\0{text}" for part, text in sorted(sources(path).items())).encode()


def compile_shader(name: str, macros: Mapping[str, str]) -> bytes:
    """SPIR-V of ``shaders/NAME`` with ``macros`` defined, from the cache where it is there.

    Raises:
        ShaderError: it does not compile; the message carries the first error and its place.
        InputError: the source is missing, or the cache cannot be written.
        DeviceError: there is no compiler.
    """
    entry = _entry(name, macros)
    return (entry if entry.is_file() else _compile(name, macros, strictly=False)).read_bytes()


def compile_strictly(name: str, macros: Mapping[str, str]) -> bytes:
    """As ``compile_shader``, but anew, and a warning is an error."""
    return _compile(name, macros, strictly=True).read_bytes()


def _entry(name: str, macros: Mapping[str, str]) -> Path:
    """Where the cache keeps the module of the sources as they are now."""
    _, version = compiler()
    source = SHADER_ROOT / name
    digest = hashlib.sha256("\0".join((version, *_FLAGS, *(f"{k}={v}" for k, v in sorted(macros.items())))).encode())
    digest.update(_texts(source))
    return cache_folder() / f"{source.stem}-{digest.hexdigest()[:32]}.spv"


def _compile(name: str, macros: Mapping[str, str], strictly: bool) -> Path:
    """The cache's entry, made of the sources as they are on the disk now.

    The compiler reads them by itself: an entry counts only if they are the same before and after it.
    """
    path, _ = compiler()
    for _ in range(_TRIES):
        forget_sources()
        entry = _entry(name, macros)
        temporary = _temporary(entry)
        try:
            warnings = _run_compiler(path, SHADER_ROOT / name, macros, str(temporary))
            if strictly and warnings:
                raise ShaderError(name, macros, warnings, "")
            temporary.write_bytes(with_element_types(temporary.read_bytes()))
            forget_sources()
            if _entry(name, macros) == entry:
                return temporary.replace(entry)
        finally:
            temporary.unlink(missing_ok=True)
    raise InputError(
        f"shader {name} changed {_TRIES} times while it was compiled; expected its sources to stay: compile it again"
    )


def _temporary(entry: Path) -> Path:
    """An empty file beside the entry."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=entry.parent, suffix=".tmp")
    except OSError as error:
        raise InputError(
            f"shader cache {entry.parent} cannot be written ({error.strerror}); expected a writable folder: "
            "set LATENTVK_CACHE to one"
        ) from error
    os.close(handle)
    return Path(temporary)


def _run_compiler(compiler: str, source: Path, macros: Mapping[str, str], out: str) -> tuple[Diagnostic, ...]:
    """Write the module to ``out``; returns the warnings. ShaderError for anything worse."""
    defines = [f"-D{k}={v}" for k, v in macros.items()]
    command = [compiler, *_FLAGS, f"-I{INCLUDE_ROOT}", *defines, "-o", out, str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    found = tuple(Diagnostic(m[1], Path(m[2]), int(m[3]), m[4]) for m in _DIAGNOSTIC.finditer(run.stdout))
    if run.returncode != 0:
        errors = tuple(d for d in found if d.severity == "ERROR")
        said = " ".join((run.stdout + run.stderr).split()) or f"the compiler ended with status {run.returncode}"
        raise ShaderError(source.name, macros, errors, said)
    return found
