"""A recorded list of launches: barriers derived from declared accesses, replayed with one submission.

A launch that reads what an earlier one wrote, or writes what an earlier one read or wrote, needs a barrier before
it; ``barriers()`` says before which launches. Kompute itself records only TRANSFER to COMPUTE barriers, one for each
bound tensor before a dispatch, which order nothing between two dispatches. Until the companion layer records real
ones, each derived barrier is an OpTensorSyncLocal of a 4-byte tensor: it records a COMPUTE to TRANSFER barrier, which
chains with the TRANSFER to COMPUTE one of the next dispatch into an execution dependency (synchronization validation
then reports no more write-after-read hazards). Making the other buffers' writes visible still rests on the driver: on
CPU devices, which run dispatches one after the other, and on those that flush whole caches at any barrier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.errors import DeviceError
from vkbackend.kernel import Kernel


@dataclass(frozen=True)
class Launch:
    """One dispatch: kernel, buffers by binding name, constants and the grid in workgroups."""

    kernel: Kernel
    buffers: Mapping[str, Buffer]
    spec: Mapping[str, int]
    push: Mapping[str, int | float]
    grid: tuple[int, int, int]
    label: str


@dataclass(frozen=True)
class LaunchTime:
    """Device time of one launch of a profiled run, in seconds."""

    label: str
    seconds: float


class Program:
    """Launches in order; recorded at the first ``run`` and replayed after it."""

    def __init__(self, device: Device, name: str) -> None:
        self.device = device
        self.name = name
        self.launches: list[Launch] = []
        self._sequence: Any = None
        self._fence: Any = None

    def launch(
        self,
        kernel: Kernel,
        buffers: Mapping[str, Buffer],
        grid: tuple[int, int, int],
        *,
        spec: Mapping[str, int] | None = None,
        push: Mapping[str, int | float] | None = None,
        label: str = "",
    ) -> None:
        """Append one dispatch of ``grid`` workgroups.

        Raises:
            DeviceError: the grid exceeds the device's limits.
            ValueError: the buffers or constants are not the declared ones, or the program was already recorded.
        """
        if self._sequence is not None:
            raise ValueError(f"program {self.name} is recorded already; expected launches before its first run")
        names = [name for name, _ in kernel.bindings]
        if set(names) != set(buffers):
            raise ValueError(
                f"kernel {kernel.file} was launched with buffers {sorted(buffers)}; expected {sorted(names)}"
            )
        limit = self.device.info.max_workgroup_count
        if any(not 0 < n <= most for n, most in zip(grid, limit, strict=True)):
            raise DeviceError(
                f"{label or kernel.file} needs a grid of {grid} workgroups; {self.device.info.name} allows {limit}: "
                "use a smaller chunk"
            )
        self.launches.append(Launch(kernel, dict(buffers), spec or {}, push or {}, grid, label or kernel.file))

    def barriers(self) -> list[bool]:
        """For each launch, whether a barrier must stand before it."""
        read: set[int] = set()
        written: set[int] = set()
        needed = []
        for launch in self.launches:
            reads = {id(launch.buffers[n]) for n, access in launch.kernel.bindings if "r" in access}
            writes = {id(launch.buffers[n]) for n, access in launch.kernel.bindings if "w" in access}
            hazard = bool(reads & written or writes & (read | written))
            if hazard:
                read, written = set(), set()
            read |= reads
            written |= writes
            needed.append(hazard)
        return needed

    def _record(self, timestamps: bool) -> tuple[Any, list[str]]:
        import kp

        manager = self.device.manager
        if self._fence is None:
            # A device tensor: for a host one OpTensorSyncLocal records nothing.
            self._fence = manager.tensor_t(np.zeros(1, np.uint32), kp.TensorTypes.device)
        operations: list[tuple[str, Any]] = []
        for launch, barrier in zip(self.launches, self.barriers(), strict=True):
            if barrier:
                operations.append(("barrier", kp.OpTensorSyncLocal([self._fence])))
            kernel = launch.kernel
            algorithm = manager.algorithm(
                [launch.buffers[name].tensor for name, _ in kernel.bindings],
                kernel.spirv(),
                list(launch.grid),
                kernel.pack_spec(self.device.subgroup_size, launch.spec),
                kernel.pack_push(launch.push),
            )
            operations.append((launch.label, kp.OpAlgoDispatch(algorithm)))
        # Kompute never checks its query pool's size: one timestamp more than there are operations.
        sequence = manager.sequence(0, len(operations) + 1 if timestamps else 0)
        for _, operation in operations:
            sequence.record(operation)
        return sequence, [label for label, _ in operations]

    def run(self) -> None:
        """Submit the program and wait for it."""
        if self._sequence is None:
            self._sequence, _ = self._record(timestamps=False)
        self._sequence.eval()

    def profile(self) -> list[LaunchTime]:
        """Run once with device timestamps; barriers are counted to the launch that they wait for."""
        sequence, labels = self._record(timestamps=True)
        sequence.eval()
        ticks = np.array(sequence.get_timestamps(), np.uint64)
        seconds = np.diff(ticks).astype(np.float64) * self.device.info.timestamp_period_ns * 1e-9
        times, waited = [], 0.0
        for label, value in zip(labels, seconds, strict=True):
            if label == "barrier":
                waited = float(value)
                continue
            times.append(LaunchTime(label, waited + float(value)))
            waited = 0.0
        return times

    def free(self) -> None:
        """Give back the recording; the program may be run again and is then recorded anew."""
        self._sequence = None
        if self._fence is not None:
            self._fence.destroy()
            self._fence = None
