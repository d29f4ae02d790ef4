"""What a device can do at most, measured: bytes read a second and f32 operations a second.

Every kernel's results are checked before a time counts. A pass over the memory is larger than last-level caches, and
passes are repeated inside one program until it takes long enough for a submission's fixed cost not to show. A CPU
device is read in two ways, and the faster counts: lavapipe makes loads from a storage buffer one lane at a time, and
those of texels whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.errors import DeviceError
from vkbackend.kernel import Kernel
from vkbackend.memory import Use, buffer_limit
from vkbackend.program import Program

READ = Kernel("peak_read.comp", (("source", "r"), ("sink", "w")), ("LOADS",))
ARITHMETIC = Kernel("peak_arithmetic.comp", (("source", "r"), ("sink", "w")), ("ROUNDS",))
READ_TEXELS = replace(READ.variant(TEXELS="1"), texels=("source",))
# Loads a lane. A CPU driver's workgroup costs a microsecond: with 64 lavapipe reads a third of what it does with 1,024.
LOADS, LOADS_CPU, ROUNDS = 64, 1024, 1024
_FACTOR, _ADDEND = 0.5, 1.0  # exact in f32: every chain converges to 2
_FLOPS_PER_ROUND = 3 * 4 * 2  # chains, elements, multiply and add, per lane
# Bytes of a pass: the largest last-level caches of GPUs have 256 MiB, and part of them may survive from pass to pass.
_PASS_BYTES, _PASS_BYTES_CPU = 2**30, 2**27
_PART_BYTES = 2**28  # of a pass, one buffer's
_TILE_BYTES = 2**24  # of random data; what follows is the same data from another place on
_PROGRAM_S = 0.05  # a submission costs about 0.1 ms whatever is in it
_MOST_PASSES = 512
_LAUNCHES = 256  # of a program whose launches are timed
# Passes write to so many sinks in turn, so that a barrier, which lets the device run empty, stands only where one
# comes round again.
_SINKS = 8


@dataclass(frozen=True)
class Peaks:
    """Medians of ``samples``, which keep every repeat: bytes/s under "bandwidth", operations/s under "arithmetic"."""

    bandwidth_bytes_per_s: float
    flops_per_s: float
    samples: dict[str, list[float]]


def measure_peaks(device: Device, repeats: int = 5) -> Peaks:
    """Run each kernel ``repeats`` times after a warm-up; about two seconds on a CPU device.

    Raises:
        DeviceError: a kernel's result is wrong, so its time means nothing.
        OutOfMemoryError: what the kernels read cannot be allocated.
    """
    texels = device.info.kind == "cpu" and device.info.whole_texel_buffers
    forms = (READ, READ_TEXELS) if texels else (READ,)
    bandwidth = max((_bandwidth(device, repeats, form) for form in forms), key=np.median)
    samples = {"bandwidth": bandwidth, "arithmetic": _arithmetic(device, repeats)}
    return Peaks(float(np.median(samples["bandwidth"])), float(np.median(samples["arithmetic"])), samples)


@dataclass(frozen=True)
class LaunchCost:
    """Seconds of an empty launch that waits for the one before it, and of a submission with one launch."""

    launch: float
    submission: float


def measure_launches(device: Device, repeats: int = 15) -> LaunchCost:
    """What launches cost beside their work: programs of one, and of many, that read 64 bytes a lane. Medians."""
    lanes = device.subgroup_size
    with ExitStack() as stack:
        source = _buffer(stack, device, 4 * 16 * lanes, "launch.source")
        sink = _buffer(stack, device, 4 * lanes, "launch.sink")

        def add(program: Program, number: int) -> None:
            program.launch(READ, {"source": source, "sink": sink}, (1, 1, 1), spec={"LOADS": 4})

        seconds = []
        for count in (1, 1 + _LAUNCHES):
            with _program(device, "peak_launch", add, count) as program:
                program.run()  # compiles
                program.run()  # records
                seconds.append(float(np.median([_seconds(program) for _ in range(repeats)])))
    return LaunchCost(max(0.0, seconds[1] - seconds[0]) / _LAUNCHES, seconds[0])


def pass_bytes(device: Device) -> int:
    """Bytes that must be read before the same ones are read again, for the device's caches not to serve them."""
    return _PASS_BYTES_CPU if device.info.kind == "cpu" else _PASS_BYTES


def _bandwidth(device: Device, repeats: int, kernel: Kernel = READ) -> list[float]:
    lanes = device.subgroup_size
    loads = LOADS_CPU if device.info.kind == "cpu" else LOADS
    group = loads * lanes * 16
    whole = min(pass_bytes(device), device.memory.room().nbytes // 4)
    part = min(_PART_BYTES, buffer_limit(device), group * device.info.max_workgroup_count[0], whole)
    part = max(_TILE_BYTES, part // _TILE_BYTES * _TILE_BYTES)
    tiles = part // _TILE_BYTES
    parts = max(1, whole // part)
    groups = part // group
    # Each tile begins one workgroup's data further on, so that no workgroup reads what another of its pass reads.
    data = np.random.default_rng(0).integers(0, 2**32, (_TILE_BYTES + parts * tiles * group) // 4, dtype=np.uint32)
    sums = np.bitwise_xor.reduce(data.reshape(-1, loads, lanes, 4), axis=(1, 3))
    per_tile = _TILE_BYTES // group
    with ExitStack() as stack:
        sources, expected = [], []
        for first in range(0, parts * tiles, tiles):
            source = _buffer(stack, device, part, "peak.source", use=Use.WEIGHTS, zeroed=False)
            for i in range(tiles):
                start = (first + i) * group // 4
                source.upload(data[start : start + _TILE_BYTES // 4], i * _TILE_BYTES)
            sources.append(source)
            expected.append(np.concatenate([sums[i : i + per_tile] for i in range(first, first + tiles)]).reshape(-1))
        sinks = [[_buffer(stack, device, 4 * groups * lanes, "peak.sink") for _ in sources] for _ in range(_SINKS)]

        def add(program: Program, number: int) -> None:
            for source, sink in zip(sources, sinks[number % _SINKS], strict=True):
                program.launch(kernel, {"source": source, "sink": sink}, (groups, 1, 1), spec={"LOADS": loads})

        def check(used: int) -> None:
            for of_pass in sinks[:used]:
                for sink, sums_of_part in zip(of_pass, expected, strict=True):
                    _check(sink, sums_of_part, "read")

        return _rates(device, "peak_read", parts * part, add, check, repeats)


def _arithmetic(device: Device, repeats: int) -> list[float]:
    lanes = device.subgroup_size
    groups = 256 if device.info.kind == "cpu" else 16384
    constants = np.repeat(np.array([_FACTOR, _ADDEND], np.float32), 4)
    expected = np.full(groups * lanes, 3 * 4 * _ADDEND / (1 - _FACTOR), np.float32)
    with ExitStack() as stack:
        source = _buffer(stack, device, constants.nbytes, "peak.constants", initial=constants.view(np.uint32))
        sinks = [_buffer(stack, device, expected.nbytes, "peak.sink") for _ in range(_SINKS)]

        def add(program: Program, number: int) -> None:
            buffers = {"source": source, "sink": sinks[number % _SINKS]}
            program.launch(ARITHMETIC, buffers, (groups, 1, 1), spec={"ROUNDS": ROUNDS})

        def check(used: int) -> None:
            for sink in sinks[:used]:
                _check(sink, expected, "arithmetic")

        flops = groups * lanes * ROUNDS * _FLOPS_PER_ROUND
        return _rates(device, "peak_arithmetic", flops, add, check, repeats)


def _rates(
    device: Device,
    name: str,
    amount: int,
    add: Callable[[Program, int], None],
    check: Callable[[int], None],
    repeats: int,
) -> list[float]:
    """``amount`` a second, for each repeat of a program of so many passes that it takes about _PROGRAM_S.

    ``add`` appends the launches of the pass of that number; ``check`` tests what so many sinks received.
    """
    with _program(device, name, add, 1) as program:
        program.run()  # compiles, and wakes the clocks
        passes = max(1, min(_MOST_PASSES, int(_PROGRAM_S / _seconds(program))))
    with _program(device, name, add, passes) as program:
        program.run()
        times = [_seconds(program) for _ in range(repeats)]
    check(min(passes, _SINKS))
    return [passes * amount / t for t in times]


@contextmanager
def _program(device: Device, name: str, add: Callable[[Program, int], None], passes: int) -> Iterator[Program]:
    program = Program(device, name)
    for number in range(passes):
        add(program, number)
    try:
        yield program
    finally:
        program.free()


def _buffer(
    stack: ExitStack,
    device: Device,
    nbytes: int,
    name: str,
    *,
    use: Use = Use.SCRATCH,
    initial: NDArray[np.uint32] | None = None,
    zeroed: bool = True,
) -> Buffer:
    buffer = Buffer(device, nbytes, name, use=use, initial=initial, zeroed=zeroed)
    stack.callback(buffer.free)
    return buffer


def _seconds(program: Program) -> float:
    start = time.perf_counter()
    program.run()
    return time.perf_counter() - start


def _check(sink: Buffer, expected: NDArray[np.generic], what: str) -> None:
    if not np.array_equal(sink.download(expected.dtype, expected.size), expected):
        raise DeviceError(
            f"{sink.device.info.name} computed a wrong result in the {what} kernel; expected an exact one: "
            "update the Vulkan driver or choose another --device"
        )
