"""What a device can do at most, measured: bytes read a second and f32 operations a second.

Both kernels' results are checked before a time counts. On a CPU device the read figure is that of shader loads, which
lavapipe makes one lane at a time, and stays below what the memory itself gives.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.errors import DeviceError
from vkbackend.kernel import Kernel
from vkbackend.program import Program

_READ = Kernel("peak_read.comp", (("source", "r"), ("sink", "w")), ("LOADS",))
_ARITHMETIC = Kernel("peak_arithmetic.comp", (("source", "r"), ("sink", "w")), ("ROUNDS",))
_LOADS, _ROUNDS = 64, 1024
_FACTOR, _ADDEND = 0.5, 1.0  # exact in f32: every chain converges to 2
_FLOPS_PER_ROUND = 3 * 4 * 2  # chains, elements, multiply and add, per lane


@dataclass(frozen=True)
class Peaks:
    """Medians of ``samples``, which keep every repeat: bytes/s under "bandwidth", operations/s under "arithmetic"."""

    bandwidth_bytes_per_s: float
    flops_per_s: float
    samples: dict[str, list[float]]


def measure_peaks(device: Device, repeats: int = 5) -> Peaks:
    """Run both kernels ``repeats`` times after a warm-up; about a second on a CPU device.

    Raises:
        DeviceError: a kernel's result is wrong, so its time means nothing.
    """
    samples = {"bandwidth": _bandwidth(device, repeats), "arithmetic": _arithmetic(device, repeats)}
    return Peaks(float(np.median(samples["bandwidth"])), float(np.median(samples["arithmetic"])), samples)


def _seconds(program: Program, repeats: int) -> list[float]:
    program.run()  # compiles, and wakes the clocks
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        program.run()
        times.append(time.perf_counter() - start)
    return times


def _check(device: Device, found: np.ndarray, expected: np.ndarray, what: str) -> None:
    if not np.array_equal(found, expected):
        raise DeviceError(
            f"{device.info.name} computed a wrong result in the {what} kernel; expected an exact one: "
            "update the Vulkan driver or choose another --device"
        )


def _bandwidth(device: Device, repeats: int) -> list[float]:
    # Past any last-level cache; a quarter of a GiB is read in milliseconds by a GPU.
    lanes = device.subgroup_size
    group = _LOADS * lanes * 16
    wanted = min(device.info.max_storage_buffer_range, 2**26 if device.info.kind == "cpu" else 2**28)
    groups = min(wanted // group, device.info.max_workgroup_count[0])
    data = np.random.default_rng(0).integers(0, 2**32, groups * group // 4, dtype=np.uint32)
    source = Buffer(device, data.nbytes, "peak.source", initial=data)
    sink = Buffer(device, 4 * groups * lanes, "peak.sink")
    program = Program(device, "peak_read")
    program.launch(_READ, {"source": source, "sink": sink}, (groups, 1, 1), spec={"LOADS": _LOADS})
    times = _seconds(program, repeats)
    expected = np.bitwise_xor.reduce(data.reshape(groups, _LOADS, lanes, 4), axis=(1, 3)).reshape(-1)
    _check(device, sink.download(np.uint32, expected.size), expected, "read")
    _free(program, source, sink)
    return [data.nbytes / t for t in times]


def _arithmetic(device: Device, repeats: int) -> list[float]:
    lanes = device.subgroup_size
    groups = 256 if device.info.kind == "cpu" else 16384
    constants = np.repeat(np.array([_FACTOR, _ADDEND], np.float32), 4)
    source = Buffer(device, constants.nbytes, "peak.constants", initial=constants.view(np.uint32))
    sink = Buffer(device, 4 * groups * lanes, "peak.sink")
    program = Program(device, "peak_arithmetic")
    program.launch(_ARITHMETIC, {"source": source, "sink": sink}, (groups, 1, 1), spec={"ROUNDS": _ROUNDS})
    times = _seconds(program, repeats)
    fixed_point = _ADDEND / (1 - _FACTOR)
    expected = np.full(groups * lanes, 3 * 4 * fixed_point, np.float32)
    _check(device, sink.download(np.float32, expected.size), expected, "arithmetic")
    _free(program, source, sink)
    return [groups * lanes * _ROUNDS * _FLOPS_PER_ROUND / t for t in times]


def _free(program: Program, *buffers: Buffer) -> None:
    program.free()
    for buffer in buffers:
        buffer.free()
