"""A Python module run as a process of its own, asked by pickles over its pipes: what may crash or hang ends no caller.

The module answers on what ``answers`` gives it: once when it has started, then once for every request.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import IO, Any, Self

_END_S = 5  # for a process without more requests to end by itself


class ChildEndedError(Exception):
    """The process ended, or was killed, in place of an answer; ``how`` says which, ``said`` its last line of errors."""

    def __init__(self, how: str, said: str) -> None:
        super().__init__(f"{how}: {said}")
        self.how, self.said = how, said


class Child:
    """The process; the next request after its end starts another.

    Args:
        module: what ``python -m`` runs.
        environment: all of the process's variables.
        timeout_s: what an answer may take before the process counts as hung and is killed.
    """

    def __init__(self, module: str, environment: Mapping[str, str], timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.process: subprocess.Popen[bytes] | None = None
        self._module, self._environment = module, dict(environment)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)

    def start(self) -> Any:
        """Start the process; returns its first answer. Raises ChildEndedError."""
        command = [sys.executable, "-m", self._module]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._log, env=self._environment)
        return self._answer(self.process)

    def ask(self, request: object) -> Any:
        """The answer to ``request``. Raises ChildEndedError."""
        if self.process is not None and self.process.poll() is not None:
            self._end()  # it ended, or was killed, while nothing was asked
        if self.process is None:
            self.start()
        process: Any = self.process
        with contextlib.suppress(OSError):  # of a process that is gone; its answer says so
            pickle.dump(request, process.stdin)
            process.stdin.flush()
        return self._answer(process)

    def _answer(self, process: subprocess.Popen[bytes]) -> Any:
        pipe: Any = process.stdout
        ready, _, _ = select.select([pipe], [], [], self.timeout_s)
        try:
            if ready:
                return pickle.load(pipe)
        except (EOFError, pickle.UnpicklingError):
            pass
        if not ready:
            process.kill()
        status = self._end()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        self._log.seek(0)
        self._log.truncate()
        how = f"ended with status {status}" if ready else f"hung for {self.timeout_s:g} s"
        raise ChildEndedError(how, said[-1] if said else "it said nothing")

    def _end(self) -> int:
        """Wait for the process, which has no more requests to expect, and forget it. Returns its status."""
        process: Any = self.process
        self.process = None
        with contextlib.suppress(OSError):  # what was buffered for a process that is gone
            process.stdin.close()
        try:
            status: int = process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        process.stdout.close()
        return status

    def end(self) -> None:
        """End the process; the next request starts another."""
        if self.process is not None:
            self._end()

    def kill(self) -> None:
        """From another thread: end the process in the middle of a request, whose answer then says so."""
        if (process := self.process) is not None:
            process.kill()

    def close(self) -> None:
        """End the process for good."""
        self.end()
        self._log.close()


class ChildClient:
    """Whoever asks a child: a context manager that ends it."""

    _child: Child

    def give_up(self) -> None:
        """From another thread: end the request that is running, which then fails."""
        self._child.kill()

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def answers() -> IO[bytes]:
    """Where the module's answers go. A driver's own words on standard output must not mix with them."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


def requests() -> Iterator[Any]:
    """What the module is asked, until its client goes away."""
    while True:
        try:
            yield pickle.load(sys.stdin.buffer)
        except EOFError:
            return


def answer(pipe: IO[bytes], value: object) -> None:
    """Send one answer."""
    pickle.dump(value, pipe)
    pipe.flush()
