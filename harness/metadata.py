"""What a figure must carry to be worth keeping: machine, versions, commit, model file, date."""

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from vkbackend.errors import DeviceError

_PACKAGES = ("latentvk", "kp", "numpy", "gguf")
_HASHED_WHOLE = 2 * 2**30  # bytes; hashing a larger file would take longer than the figures it labels
_HASHED_ENDS = 2**24


def now() -> str:
    """This moment in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def host() -> dict[str, Any]:
    """Processor, memory in bytes, system and the load averages of the last 1, 5 and 15 minutes."""
    return {
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "load_average": list(os.getloadavg()),
    }


def software() -> dict[str, Any]:
    """Versions of what makes the figures, the shader compiler's first line, and the git commit when this package runs
    from a checkout."""
    versions: dict[str, Any] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions | {"glslang": _glslang(), "commit": commit()}


def _glslang() -> str | None:
    from vkbackend.shader import compiler

    try:
        return compiler()[1].splitlines()[0]
    except (DeviceError, IndexError):
        return None


def commit() -> str | None:
    """Commit of the checkout this package lies in, '-dirty' appended when files differ from it; None outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def model_file(*paths: Path) -> dict[str, Any]:
    """Name, size and hash of a model in one file or in parts, first part first: its name, the bytes of all, one hash.

    Only the name is kept: a folder says something about the user, not the model. A model above 2 GiB is hashed over
    the first and last 16 MiB of each file, and the record says so.
    """
    sizes = [path.stat().st_size for path in paths]
    whole = sum(sizes) <= _HASHED_WHOLE
    digest = hashlib.sha256()
    for path, size in zip(paths, sizes, strict=True):
        with path.open("rb") as stream:
            if whole or size <= 2 * _HASHED_ENDS:
                while block := stream.read(2**20):
                    digest.update(block)
            else:
                digest.update(stream.read(_HASHED_ENDS))
                stream.seek(-_HASHED_ENDS, os.SEEK_END)
                digest.update(stream.read())
    covers = "whole file" if whole else "first and last 16 MiB"
    if len(paths) > 1:
        covers += f"{'s' if whole else ' of each'}, {len(paths)} parts"
    return {"file": paths[0].name, "file_bytes": sum(sizes), "sha256": digest.hexdigest(), "sha256_covers": covers}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
