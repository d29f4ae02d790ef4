"""The process that runs kernels against their oracles, and times them: ``python -m harness.oracles.worker``.

It opens the device that LATENTVK_DEVICE names, says what it is, and answers jobs until its client goes away. A kernel
that crashes the driver or hangs takes this process with it and nothing else.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from harness.oracles import ORACLES
from harness.oracles.case import Target
from harness.oracles.client import Job, Verdict
from harness.oracles.run import run_case
from harness.timing.job import BenchJob, PeaksJob
from harness.timing.run import time_job
from vkbackend.child import answer, answers, requests
from vkbackend.companion import messages
from vkbackend.companion.loading import VALIDATION_LAYER, validation_checks
from vkbackend.device import Device, open_device
from vkbackend.errors import DeviceError, DeviceLostError, LatentvkError
from vkbackend.peaks import measure_peaks
from vkbackend.shader import forget_sources


def judge(device: Device, job: Job) -> Verdict:
    """Run every case of the kernel's oracle; validation messages are failures too.

    Raises:
        DeviceLostError: the device is gone, and with it what the job found.
        ValueError: the kernel has no oracle, or one that launches something else than the kernel with its constants.
    """
    if job.kernel.file not in ORACLES:
        raise ValueError(f"{job.kernel.file} has no oracle; expected one in harness/oracles/__init__.py: add it")
    target = Target(job.kernel, job.spec, device.info)
    # Each kernel draws from a stream of its own, so that a run of one variant repeats what a run of all did.
    name = repr((job.kernel.file, sorted(job.kernel.macros), sorted(job.spec.items())))
    rng = np.random.default_rng((job.seed, zlib.crc32(name.encode())))
    cases, share, failures = 0, 0.0, []
    for case in ORACLES[job.kernel.file](target, rng):
        if not any(launch.kernel == job.kernel and launch.spec == job.spec for launch in case.launches):
            raise ValueError(f"{case.what}: nothing launches {job.kernel.file} with {dict(job.spec)}")
        cases += 1
        try:
            outcome = run_case(device, case)
        except DeviceLostError:
            raise
        except LatentvkError as error:
            failures.append(f"{case.what}: {error}")
        else:
            share = max(share, outcome.share)
            failures += [str(outcome.failure)] if outcome.failure else []
        failures += [f"{case.what}: validation: {message}" for message in messages()]
    return Verdict(cases, share, tuple(failures))


def _require_validation_layer() -> None:
    """DeviceError where checks are asked for and the layer is missing, which the Vulkan loader passes over."""
    if not validation_checks():
        return
    vk: Any = importlib.import_module("vulkan")
    if VALIDATION_LAYER not in {layer.layerName for layer in vk.vkEnumerateInstanceLayerProperties()}:
        raise DeviceError(
            f"{VALIDATION_LAYER} is not installed; expected it for validation: install the package "
            "vulkan-validationlayers"
        )


_ANSWERS: dict[type, Callable[[Device, Any], object]] = {
    Job: judge,
    BenchJob: time_job,
    PeaksJob: lambda device, job: measure_peaks(device),
}


def main() -> None:
    """The first answer is the device's description, or the error that stands in its way."""
    pipe = answers()
    try:
        _require_validation_layer()
        device = open_device()
    except LatentvkError as error:
        answer(pipe, error)
        return
    answer(pipe, device.info)
    for job in requests():
        forget_sources()  # which may have been edited since
        try:
            answer(pipe, _ANSWERS[type(job)](device, job))
        except DeviceLostError as error:
            answer(pipe, error)
            return  # the next job finds a new process
        except LatentvkError as error:
            answer(pipe, error)


if __name__ == "__main__":
    main()
