"""Oracles run in a process of their own, which a kernel may take down: the client of ``worker.py``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.timing.job import BenchJob, PeaksJob, Timing
from vkbackend.child import Child, ChildClient, ChildEndedError
from vkbackend.errors import DeviceError, DeviceLostError, LatentvkError
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
        except ChildEndedError as error:
            self.close()
            raise DeviceError(
                f"opening the device: the process {error}; expected a device: update its driver"
            ) from None
        except BaseException:
            self.close()
            raise

    def _start(self) -> DeviceInfo:
        found: DeviceInfo | LatentvkError = self._child.start()
        if isinstance(found, LatentvkError):
            raise found
        return found

    def _reopen(self) -> None:
        """A new process in place of one that ended. DeviceError where none opens the device."""
        try:
            self._start()
        except ChildEndedError as error:
            raise DeviceError(
                f"the oracles in a new process: it {error}; expected it to open the device: correct what it names"
            ) from None

    def judge(self, job: Job) -> Verdict:
        """Hold one kernel against its oracle; a crash, a hang and a process that does not come back are failures."""
        try:
            verdict: Verdict = self._ask(job)
        except ChildEndedError as error:
            return Verdict(0, 0.0, (f"the process that ran it {error}",))
        except LatentvkError as error:
            return Verdict(0, 0.0, (str(error),))
        return verdict

    def time(self, job: BenchJob) -> Timing:
        """Time a kernel, which should have been judged before.

        Raises:
            DeviceError: it does not fit, computes what is no number, crashes or hangs.
        """
        timing: Timing = self._measured(job, job.kernel.file)
        return timing

    def peaks(self) -> Peaks:
        """What the device can do at most, measured now. Raises DeviceError where it computes wrongly."""
        peaks: Peaks = self._measured(PeaksJob(), "the device's peaks")
        return peaks

    def _measured(self, request: object, what: str) -> Any:
        try:
            return self._ask(request)
        except ChildEndedError as error:
            raise DeviceError(
                f"timing {what}: the process that ran it {error}; expected an end: look for a loop without one, or an "
                "access outside of a buffer"
            ) from None

    def _ask(self, request: object) -> Any:
        """The answer. Raises it where it is an error, and ChildEndedError."""
        if self._child.process is None:
            self._reopen()
        found = self._child.ask(request)
        if isinstance(found, DeviceLostError):
            self._child.end()  # a device of its own is in the next process
        if isinstance(found, LatentvkError):
            raise found
        return found

    def restart(self) -> None:
        """Judge the next job in a new process, which reads the oracles' files again."""
        self._child.end()
