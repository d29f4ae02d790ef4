"""What is timed, and how long it took: the values that a process with a device is asked with and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.shader_variants import Variant
from harness.stats import median
from model.config import ModelConfig
from vkbackend.kernel import Kernel
from vkbackend.program import Launch

REPEATS = 10
QUICK_BYTES = 2**25
SAMPLE_S = 0.05  # a submission costs about 0.1 ms whatever is in it


@dataclass(frozen=True)
class Choice:
    """One way to launch: the kernel, specialization and push constants, and the grid that they need."""

    kernel: Kernel
    spec: Mapping[str, int]
    push: Mapping[str, int | float]
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class BenchJob:
    """A kernel at the shape that a model launches it with.

    Attributes:
        choices: ways to make the same results, timed in turns, so that a drift of the device's speed falls on all
            alike; the first one's kernel and constants say what the launch does.
        nbytes: of each binding's buffer.
        tokens: that the launch works on.
        n_past: positions in the cache before them.
        repeats: samples of each choice, fewer where they take long.
        sample_s: seconds that one sample aims at; it is of many launches.
        rotated_bytes: of copies of the inputs that are launched in turn; None: more than the device's caches hold.
    """

    choices: tuple[Choice, ...]
    deep: bool
    nbytes: Mapping[str, int]
    config: ModelConfig
    tokens: int
    n_past: int
    repeats: int = REPEATS
    sample_s: float = SAMPLE_S
    rotated_bytes: int | None = None

    @classmethod
    def of(
        cls,
        variant: Variant,
        config: ModelConfig,
        others: Sequence[Launch] = (),
        *,
        repeats: int = REPEATS,
        sample_s: float = SAMPLE_S,
        rotated_bytes: int | None = None,
    ) -> BenchJob:
        """The variant's own launch, and ``others`` that make the same in other ways."""
        launches = (variant.launch, *others)
        nbytes: dict[str, int] = {}
        for launch in launches:
            for name, buffer in launch.buffers.items():
                nbytes[name] = max(nbytes.get(name, 0), buffer.nbytes)
        return cls(
            tuple(Choice(each.kernel, each.spec, each.push, each.grid) for each in launches),
            variant.launch.deep,
            nbytes,
            config,
            variant.tokens,
            variant.n_past,
            repeats,
            sample_s,
            rotated_bytes,
        )

    @classmethod
    def quick(cls, variant: Variant, config: ModelConfig, modules: Sequence[bytes] = ()) -> BenchJob:
        """The variant's own launch, and the same of other ``modules``, with few samples of few launches, for a loop
        that must not wait; its inputs exceed only small caches. Take variants of a ``Shape`` of at most QUICK_BYTES."""
        launch = variant.launch
        others = [replace(launch, kernel=replace(launch.kernel, module=module)) for module in modules]
        return cls.of(variant, config, others, repeats=9, sample_s=0.015, rotated_bytes=QUICK_BYTES)

    @property
    def kernel(self) -> Kernel:
        """Of the first choice."""
        return self.choices[0].kernel

    @property
    def push(self) -> Mapping[str, int | float]:
        """Of the first choice; the others' say the same of the shape."""
        return self.choices[0].push

    @property
    def bindings(self) -> Mapping[str, str]:
        """The bindings of all choices, with their access."""
        return {name: access for choice in self.choices for name, access in choice.kernel.bindings}


@dataclass(frozen=True)
class Timing:
    """How long a job's launches took.

    Attributes:
        samples: for each choice, seconds a launch in each repeat.
        launches: of each choice, in one sample.
        copies: of the inputs, which the launches took in turn.
        rotated_bytes: that pass before the same ones come again.
        from_caches: those may fit in the device's caches, so that memory was not measured.
        clock: "device timestamps", or "wall clock of submissions".
    """

    samples: tuple[tuple[float, ...], ...]
    launches: tuple[int, ...]
    copies: int
    rotated_bytes: float
    from_caches: bool
    clock: str

    @property
    def seconds(self) -> float:
        """The median of the first choice."""
        return median(self.samples[0])


@dataclass(frozen=True)
class PeaksJob:
    """Asks for what the device can do at most (``vkbackend.peaks.Peaks``)."""
