"""Oracles run in a process of their own, which a kernel may take down: the client of ``worker.py``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.timing.job import BenchJob, PeaksJob, Timing
from vkbackend.child import Child, ChildClient, ChildEndedError
from vkbackend.errors import DeviceError, LatentvkError
from vkbackend.kernel import Kernel
from vkbackend.peaks import Peaks
from vkbackend.physical import DeviceInfo

TIMEOUT_S = 300.0  # of one kernel's cases; lavapipe's compiler takes ten seconds for the slowest
CHECKS = "core,sync,queue-sync"  # of the validation layer, as the tests have them


@dataclass(frozen=True)
class Job:
    """A kernel variant to hold against its oracle, with inputs drawn from ``seed``."""

    kernel: Kernel
    spec: Mapping[str, int]
    seed: int


@dataclass(frozen=True)
class Verdict:
    """How it went: cases run, the largest error as a share of its tolerance, a line for each thing that is wrong."""

    cases: int
    share: float
    failures: tuple[str, ...]


class OracleRunner(ChildClient):
    """A device in a process of its own; a context manager.

    Args:
        selector: which device, as for ``open_device``.
        validate: run under the validation layer.

    Raises:
        DeviceError: no device can be opened, or the validation layer is missing.
        InputError: LATENTVK_VALIDATE names an unknown check.
    """

    def __init__(self, selector: str | None = None, *, validate: bool = False, timeout_s: float = TIMEOUT_S) -> None:
        environment = dict(os.environ)
        if selector:
            environment["LATENTVK_DEVICE"] = selector
        if validate:
            environment["LATENTVK_VALIDATE"] = CHECKS
        self._child = Child("harness.oracles.worker", environment, timeout_s)
        try:
            self.info: DeviceInfo = self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> DeviceInfo:
        try:
            found: DeviceInfo | LatentvkError = self._child.start()
        except ChildEndedError as error:
            raise DeviceError(
                f"opening the device: the process {error}; expected a device: update its driver"
            ) from None
        if isinstance(found, LatentvkError):
            raise found
        return found

    def judge(self, job: Job) -> Verdict:
        """Hold one kernel against its oracle; a crash or a hang is a failure of the kernel.

        Raises:
            DeviceError: the device cannot be opened again after one.
        """
        if self._child.process is None:
            self._start()
        try:
            verdict: Verdict | LatentvkError = self._child.ask(job)
        except ChildEndedError as error:
            return Verdict(0, 0.0, (f"the process that ran it {error}",))
        return Verdict(0, 0.0, (str(verdict),)) if isinstance(verdict, LatentvkError) else verdict

    def time(self, job: BenchJob) -> Timing:
        """Time a kernel, which should have been judged before.

        Raises:
            DeviceError: it does not fit, computes what is no number, crashes or hangs.
        """
        timing: Timing = self._ask(job, job.kernel.file)
        return timing

    def peaks(self) -> Peaks:
        """What the device can do at most, measured now. Raises DeviceError where it computes wrongly."""
        peaks: Peaks = self._ask(PeaksJob(), "the device's peaks")
        return peaks

    def _ask(self, request: object, what: str) -> Any:
        if self._child.process is None:
            self._start()
        try:
            found = self._child.ask(request)
        except ChildEndedError as error:
            raise DeviceError(
                f"timing {what}: the process that ran it {error}; expected an end: look for a loop without one, or an "
                "access outside of a buffer"
            ) from None
        if isinstance(found, LatentvkError):
            raise found
        return found

    def restart(self) -> None:
        """Judge the next job in a new process, which reads the oracles' files again."""
        self._child.end()

    def give_up(self) -> None:
        """From another thread: end the job that is running, which then fails."""
        self._child.kill()
