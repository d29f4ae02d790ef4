"""Run a case on an open device and hold what it wrote against what it must."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.oracles.case import Case, Expected
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.program import Program


@dataclass(frozen=True)
class Failure:
    """The first element that is not as expected. ``tolerance`` 0: to the bit. ``others``: how many more there are."""

    what: str  # the case
    element: str  # the buffer's name and the coordinates: "y[token 1, row 3]"
    found: float
    expected: float
    tolerance: float
    others: int

    def __str__(self) -> str:
        within = f"within {self.tolerance:.3g}" if self.tolerance else "to the bit"
        more = f", and {self.others} more" if self.others else ""
        return f"{self.what}: {self.element} is {self.found:.9g}, expected {self.expected:.9g} {within}{more}"


@dataclass(frozen=True)
class Outcome:
    """How a case ended: ``failure`` None where it passed, and its largest error as a share of the tolerance there."""

    failure: Failure | None
    share: float


def run_case(device: Device, case: Case) -> Outcome:
    """Run the launches of ``case`` and compare every written buffer.

    Raises:
        DeviceError: the device cannot hold or run it.
    """
    hosts = {id(b): b for launch in case.launches for b in launch.buffers.values()}
    made: dict[int, Buffer] = {}
    program = Program(device, case.what)
    try:
        for key, host in hosts.items():
            made[key] = Buffer(device, host.nbytes, host.name, initial=host.words())
        for launch in case.launches:
            buffers = {name: made[id(b)] for name, b in launch.buffers.items()}
            program.launch(launch.kernel, buffers, launch.grid, spec=launch.spec, push=launch.push)
        program.run()
        share = 0.0
        for host, expected in case.expected.items():
            found = np.asarray(made[id(host)].download(np.uint32))
            failure, of_buffer = _compare(case.what, _name_of(case, host), found, host.words(), expected)
            share = max(share, of_buffer)
            if failure is not None:
                return Outcome(failure, share)
        return Outcome(None, share)
    finally:
        program.free()
        for buffer in made.values():
            buffer.free()


def _name_of(case: Case, host: Buffer) -> str:
    """What the last kernel that writes the buffer calls it."""
    for launch in reversed(case.launches):
        for name, access in launch.kernel.bindings:
            if launch.buffers[name] is host and "w" in access:
                return name
    return host.name


def _compare(
    what: str, name: str, words: NDArray[np.uint32], before: NDArray[np.uint32], expected: Expected
) -> tuple[Failure | None, float]:
    values = np.asarray(expected.values)
    dtype: np.dtype[Any] = np.dtype(expected.dtype)
    if expected.decode is None:
        found = words.view(dtype)[: values.size].reshape(values.shape)
        used = -(-values.size * dtype.itemsize // 4)
    else:
        found, used = expected.decode(words).reshape(values.shape), expected.words
    tolerance = np.broadcast_to(np.asarray(expected.tolerance, np.float64), values.shape)
    bits = f"u{dtype.itemsize}"
    with np.errstate(all="ignore"):  # canaries and infinities overflow on purpose
        exact = np.ascontiguousarray(values.astype(dtype))
        error = np.abs(found.astype(np.float64) - values.astype(np.float64))
        good = (np.ascontiguousarray(found).view(bits) == exact.view(bits)) | np.isinf(tolerance)
        if dtype.kind == "f":
            good |= np.isnan(found) & np.isnan(exact)
        bounded = (tolerance > 0) & np.isfinite(tolerance)
        good |= bounded & (error <= tolerance)
        if expected.or_zero is not None:
            good |= expected.or_zero & (found == 0)
        share = float(np.max(error / np.where(bounded, tolerance, 1.0), where=bounded & np.isfinite(error), initial=0))
    if not good.all():
        flat = int(np.argmin(good))
        first = np.unravel_index(flat, values.shape)
        at = expected.locate(flat) if expected.locate else _coordinates(expected, first)
        numbers = float(found[first]), float(values[first]), float(tolerance[first])
        return Failure(what, f"{name}[{at}]", *numbers, int((~good).sum()) - 1), share
    changed = np.flatnonzero(words[used:] != before[used:])
    if changed.size:
        word = used + int(changed[0])
        now, then = (float(part[word : word + 1].view(np.float32)[0]) for part in (words, before))
        return Failure(what, f"{name}[word {word}, past its end]", now, then, 0.0, changed.size - 1), share
    return None, share


def _coordinates(expected: Expected, index: tuple[np.intp, ...]) -> str:
    axes = expected.axes or ("element",) * len(index)
    return ", ".join(f"{axis} {i}" for axis, i in zip(axes, index, strict=True))
