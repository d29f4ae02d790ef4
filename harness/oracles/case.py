"""What an oracle is written with: buffers that lie in host memory, launches over them, and what must come out.

A case is laid out by the same code as the forward pass (``stack_upload``, ``linear``, ``Program.launch``), on a device
that keeps what is uploaded and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import DTypeLike, NDArray

from model.scratch import SLACK
from model.weight_writes import INTERLEAVED_ROWS
from vkbackend.buffer import Buffer
from vkbackend.dry import DryDevice
from vkbackend.kernel import Kernel
from vkbackend.physical import DeviceInfo
from vkbackend.program import Launch, Program

U = 2.0**-24  # relative error of one rounding to f32
CANARY = np.float32(-77.25)  # what outputs hold before a run, to see which elements a kernel wrote
UNTOUCHED = 0x7BADF00D  # the same for words; two finite halves


@dataclass(frozen=True)
class Target:
    """The kernel under test as it is compiled (its macros chosen), its specialization constants, and the device."""

    kernel: Kernel
    spec: Mapping[str, int]
    info: DeviceInfo

    @property
    def lanes(self) -> int:
        """Invocations of a subgroup, which is a workgroup."""
        return self.info.subgroup_size

    def has(self, macro: str) -> bool:
        return macro in self.kernel.macros

    def fitting_rows(self, rows: int) -> int:
        """At least ``rows``: as many as its weights' layout takes, so that a tensor of them is stored in it."""
        step = INTERLEAVED_ROWS if self.has("INTERLEAVED") else 1
        return -(-rows // step) * step


@dataclass(frozen=True, eq=False)
class Expected:
    """What a buffer must begin with; all behind it must stay as it was.

    Attributes:
        values: in the stored type where exact, else float64.
        dtype: as which the buffer's bytes are read.
        tolerance: largest absolute difference for each element; where it is 0 the bits must agree, but for those of
            a NaN. Infinite: the element may hold anything.
        axes: what the dimensions of ``values`` count, for the report of a failing element.
        locate: says that of an index instead, where no dimensions do.
        or_zero: elements that may be zero instead, of either sign, where a device may flush subnormal numbers.
        decode: makes ``values``' shape of the buffer's words where no ``dtype`` does, and how many ``words`` it reads.
    """

    values: NDArray[np.generic]
    dtype: DTypeLike = np.float32
    tolerance: NDArray[np.float64] | float = 0.0
    axes: tuple[str, ...] = ()
    locate: Callable[[int], str] | None = None
    or_zero: NDArray[np.bool_] | None = None
    decode: Callable[[NDArray[np.uint32]], NDArray[np.float32]] | None = None
    words: int = 0


@dataclass(frozen=True, eq=False)
class Case:
    """Launches in order over buffers that hold their bytes, and what each written buffer must hold after the last."""

    what: str
    launches: tuple[Launch, ...]
    expected: Mapping[Buffer, Expected]


class _Words:
    """In place of a Kompute tensor: its words."""

    def __init__(self, template: NDArray[np.uint32]) -> None:
        self._words = template.copy()

    def data(self) -> NDArray[np.uint32]:
        return self._words

    def destroy(self) -> None:
        """Nothing was allocated."""


class _Tensors:
    def tensor_t(self, template: NDArray[np.uint32], kind: object) -> _Words:
        return _Words(template)


class _Mapped:
    """The memory policy of ``DryDevice``, but with every buffer in the host's reach."""

    def mapped(self, use: object) -> bool:
        return True

    def preference(self, use: object, nbytes: int) -> int:
        return 0


class HostDevice(DryDevice):
    """Buffers keep what is uploaded; programs hold their launches and cannot run."""

    keeps_data = True

    def __init__(self, info: DeviceInfo) -> None:
        super().__init__(info)
        self.manager = _Tensors()
        self.memory = _Mapped()


@dataclass
class Draft:
    """A case that is being written."""

    info: DeviceInfo
    what: str
    device: HostDevice = field(init=False)
    program: Program = field(init=False)

    def __post_init__(self) -> None:
        self.device = HostDevice(self.info)
        self.program = Program(self.device, self.what)

    def limited(self, max_storage_buffer_range: int) -> HostDevice:
        """The same device with a smaller binding limit, so that small tensors are split over buffers."""
        return HostDevice(replace(self.info, max_storage_buffer_range=max_storage_buffer_range))

    def upload(self, array: NDArray[np.generic], name: str = "input") -> Buffer:
        """A buffer with ``array``'s bytes, whole words, and the zeroed slack that every activation buffer ends in."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        padded = np.zeros(-(-data.size // 4) * 4 + 4 * SLACK, np.uint8)
        padded[: data.size] = data
        return Buffer(self.device, padded.size, name, initial=padded.view(np.uint32))

    def canary(self, *shape: int, name: str = "output") -> Buffer:
        """An f32 buffer of ``shape`` (plus slack) in which every element is CANARY."""
        return self.upload(np.full(shape, CANARY), name)

    def untouched(self, words: int, name: str = "output") -> Buffer:
        """``words`` u32 (plus slack), all UNTOUCHED."""
        return self.upload(np.full(words, UNTOUCHED, np.uint32), name)

    def params(self, n_past: int, n_tokens: int, tokens: NDArray[np.integer] | None = None) -> Buffer:
        """The parameter buffer of shaders/include/params.glsl."""
        ids = np.zeros(n_tokens, np.uint32) if tokens is None else np.asarray(tokens, np.uint32)
        return self.upload(np.concatenate([np.array([n_past, n_tokens], np.uint32), ids]), "params")

    def launch(
        self,
        kernel: Kernel,
        buffers: Mapping[str, Buffer],
        grid: tuple[int, int, int],
        *,
        spec: Mapping[str, int] | None = None,
        push: Mapping[str, int | float] | None = None,
    ) -> None:
        """Append one dispatch."""
        self.program.launch(kernel, buffers, grid, spec=spec, push=push)

    def case(self, expected: Mapping[Buffer, Expected]) -> Case:
        """The finished case.

        Raises:
            ValueError: nothing is said of a buffer that a launch writes.
        """
        for launch in self.program.launches:
            for name, access in launch.kernel.bindings:
                if "w" in access and launch.buffers[name] not in expected:
                    raise ValueError(f"{self.what}: nothing is expected of {name}, which {launch.kernel.file} writes")
        return Case(self.what, tuple(self.program.launches), expected)


def anything(*shape: int) -> Expected:
    """Of an intermediate buffer, which a later launch's output judges."""
    return Expected(np.zeros(shape), tolerance=np.inf)
