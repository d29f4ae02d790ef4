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
    """Versions of what makes the figures, and the git commit when this package runs from a checkout."""
    versions: dict[str, Any] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions | {"commit": commit()}


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


def model_file(path: Path) -> dict[str, Any]:
    """Name, size and hash of a model file. Only the name is kept: a folder says something about the user, not the
    model.

    Files above 2 GiB are hashed over their first and last 16 MiB, and the record says so.
    """
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        if size <= _HASHED_WHOLE:
            covers = "whole file"
            while block := stream.read(2**20):
                digest.update(block)
        else:
            covers = "first and last 16 MiB"
            digest.update(stream.read(_HASHED_ENDS))
            stream.seek(-_HASHED_ENDS, os.SEEK_END)
            digest.update(stream.read())
    return {"file": path.name, "file_bytes": size, "sha256": digest.hexdigest(), "sha256_covers": covers}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
