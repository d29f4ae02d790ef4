"""Runs a test's body in a process of its own, so that a crash there is a failed test and not the end of the run."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vkbackend.companion import messages

HERE = Path(__file__).parent
_TIMEOUT_S = 1200  # against a hang; far more than any body takes


def in_child(body: Callable[..., None], *arguments: str, **environment: str) -> None:
    """Call ``body``, a function of a test file, with ``arguments`` in a new process; fail with what it said if it fails
    or leaves a validation message."""
    module = body.__module__
    folders = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    try:
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", str(HERE / "child.py"), module, body.__name__, *arguments],
            env={**os.environ, "PYTHONPATH": folders, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"{body.__name__} hangs: not done after {_TIMEOUT_S} s", pytrace=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        pytest.fail(f"{body.__name__}{arguments} ended with {done.returncode}; it said:\n{said}", pytrace=False)


def main(module: str, name: str, *arguments: str) -> int:
    """In the new process: the body, then what validation has to say."""
    getattr(importlib.import_module(module), name)(*arguments)
    left = messages()
    print(*left, sep="\n")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
