"""Time a job on an open device: warm, with its inputs in turn, in submissions whose own cost does not show."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np

from harness.timing.inputs import Buffers, Inputs
from harness.timing.job import BenchJob, Timing
from harness.timing.work import amount
from vkbackend.device import Device
from vkbackend.errors import DeviceError, OutOfMemoryError
from vkbackend.peaks import pass_bytes
from vkbackend.program import Program

_MOST_LAUNCHES = 256  # of a sample: each takes the host some 0.3 ms to set up
_MOST_COPIES = 64
_MOST_S = 0.5  # of a sample of several slow launches
_LEAST_REPEATS, _LONG_S = 3, 5.0  # seconds of one choice, after which no more samples than the least are taken
_DEVICE, _WALL = "device timestamps", "wall clock of submissions"
_FLOATS = frozenset({"y", "out", "x", "gate", "scores"})  # outputs that must be numbers


def time_job(device: Device, job: BenchJob) -> Timing:
    """Time every choice of ``job``, in turns.

    Raises:
        DeviceError: it does not fit, or what it computed is no number.
        DeviceLostError: the device was lost.
    """
    work = amount(job)
    target = min(job.rotated_bytes or pass_bytes(device), device.memory.room().nbytes // 4)
    clock = _clock(device)
    with ExitStack() as stack:
        inputs = Inputs(device, job)
        stack.callback(inputs.free)
        copies = [inputs.copy()]
        # The slowest choice's first run compiles and learns how to cut it; the second is measured.
        alone = [_program(stack, device, job, i, copies, 1) for i in range(len(job.choices))]
        seconds = [[_sample(program, clock) for _ in range(2)][1] for program in alone]
        wanted = max(1, min(-(-target // max(1, int(work.read))), _MOST_COPIES, int(_MOST_S / max(seconds))))
        _more(inputs, copies, wanted)
        counts = [_launches(job, each, len(copies)) for each in seconds]
        programs = [
            alone[i] if count == 1 else _program(stack, device, job, i, copies, count) for i, count in enumerate(counts)
        ]
        for program, count in zip(programs, counts, strict=True):
            if count > 1:
                program.run()
        taken: list[list[float]] = [[] for _ in programs]
        started = time.perf_counter()
        for repeat in range(job.repeats):
            if repeat >= _LEAST_REPEATS and time.perf_counter() - started > _LONG_S * len(programs):
                break
            for program, count, of in zip(programs, counts, taken, strict=True):
                of.append(_sample(program, clock) / count)
        _require_numbers(inputs, job)
        moved = len(copies) * work.read + work.written
        cached = 2 * moved < pass_bytes(device)  # less than twice the largest caches
        return Timing(tuple(map(tuple, taken)), tuple(counts), len(copies), moved, cached, clock)


def _clock(device: Device) -> str:
    """Timestamps stand before and after every launch. A CPU's driver ends what is before each of them, which took 60 us
    a launch on lavapipe, and its submissions begin and end with the host's call."""
    info = device.info
    return _DEVICE if info.timestamp_bits and info.timestamp_period_ns and info.kind != "cpu" else _WALL


def _more(inputs: Inputs, copies: list[Buffers], wanted: int) -> None:
    """As many copies as are wanted, or as memory allows."""
    try:
        while len(copies) < wanted:
            copies.append(inputs.copy())
    except OutOfMemoryError:
        return


def _launches(job: BenchJob, seconds: float, copies: int) -> int:
    """Launches of a sample: every copy's equally often."""
    rounds = max(1, round(min(job.sample_s / seconds, _MOST_LAUNCHES) / copies))
    return rounds * copies


def _program(
    stack: ExitStack, device: Device, job: BenchJob, choice: int, copies: list[Buffers], launches: int
) -> Program:
    program = Program(device, f"timing {job.kernel.file}")
    stack.callback(program.free)
    of = job.choices[choice]
    for number in range(launches):
        copy = copies[number % len(copies)]
        buffers = {name: copy[name] for name, _ in of.kernel.bindings}
        program.launch(of.kernel, buffers, of.grid, spec=of.spec, push=of.push, deep=job.deep)
    return program


def _sample(program: Program, clock: str) -> float:
    """Seconds of a whole run."""
    if clock == _DEVICE:
        return sum(launch.seconds for launch in program.profile())
    started = time.perf_counter()
    program.run()
    return time.perf_counter() - started


def _require_numbers(inputs: Inputs, job: BenchJob) -> None:
    """What it wrote must be finite: a kernel that met no number may have been timed at nothing."""
    for name, buffer in inputs.written.items():
        if name in _FLOATS and not np.isfinite(buffer.download(np.float32)).all():
            raise DeviceError(
                f"{job.kernel.file} at its true shape wrote into {name} what is no finite number; expected numbers: "
                "compare its grid and its loops' ends with the plan"
            )
