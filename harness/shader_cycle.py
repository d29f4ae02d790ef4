"""What the save of a shader's source sets off: check, statistics and times of each variant that includes it.

The device's variants are held against their oracles, the chip's are compiled for it; a kernel may differ between the
two in its constants, and a variant that both have gets both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from harness.chips import Chip
from harness.oracles.client import Job, Verdict
from harness.shader_row import Row, compile_row
from harness.shader_variants import Variant
from harness.shaders_check import Module, check_module
from harness.significance import median_ratio
from harness.timing.job import BenchJob, Timing
from harness.timing.work import TIMED, amount
from model.config import ModelConfig
from vkbackend import shader
from vkbackend.errors import InputError, LatentvkError
from vkbackend.offline import OfflineCompiler

# What a row may show; where the screen is narrow the last ones are left out.
COLUMNS = ("\u00b5s", "GB/s", "VGPR", "waves", "spill", "VALU/unit", "roofline %", "code")
# Of a column's figures more is better for these, less for all others.
HIGHER_IS_BETTER = ("waves", "roofline %", "GB/s")
# Times are told apart where they differ by more than this share. Of 60 pairs of the same module, in turns of one run on
# lavapipe on two shared cores, the most was 6.0%, and 95% were below 3.9%; from run to run times differed by 50%.
TIME_NOISE = 0.06
MEASURED = ("\u00b5s", "GB/s")


class Judge(Protocol):
    """What holds a kernel against its oracle, and times it."""

    def judge(self, job: Job) -> Verdict: ...

    def time(self, job: BenchJob) -> Timing: ...

    def restart(self) -> None: ...

    def give_up(self) -> None: ...


@dataclass(frozen=True)
class Watched:
    """A variant as the device runs it, and as the chip's compiler gets it; one of both may be missing."""

    name: str
    on_device: Variant | None
    on_chip: Variant | None

    @property
    def variant(self) -> Variant:
        found = self.on_device or self.on_chip
        assert found is not None
        return found


@dataclass(frozen=True)
class Answer:
    """What is known of a variant after a save.

    Attributes:
        module: what compiler, spirv-val and declaration say.
        verdict: the oracle's; None where it did not run.
        row: the chip's statistics; None where they were not made.
        timing, moved: how long a launch took at the model's shape, and the bytes that it must move; None where it was
            not timed.
        changes: its time over that of the module of the save before, and over the first one's, measured in turns.
        failures: of the chip's compiler and of timing, a line each.
    """

    name: str
    module: Module
    verdict: Verdict | None = None
    row: Row | None = None
    timing: Timing | None = None
    moved: float = 0.0
    changes: tuple[float, float] = (1.0, 1.0)
    failures: tuple[str, ...] = ()

    @property
    def wrong(self) -> tuple[str, ...]:
        """Everything that is wrong, as it is shown."""
        return (*self.module.wrong, *(self.verdict.failures if self.verdict else ()), *self.failures)

    @property
    def figures(self) -> dict[str, float]:
        """The figures by column."""
        found: dict[str, float] = {}
        if self.timing is not None:
            found |= {"\u00b5s": 1e6 * self.timing.seconds, "GB/s": self.moved / self.timing.seconds / 1e9}
        if self.row is not None:
            found |= row_figures(self.row.statistics, self.row.waves, _unit(self.row))
        return found


def _unit(row: Row) -> Mapping[str, float | None]:
    return {} if row.cost is None else {"valu": row.cost.valu, "share": row.cost.share}


def row_figures(statistics: Mapping[str, int], waves: int | None, unit: Mapping[str, float | None]) -> dict[str, float]:
    """A variant's figures by column, from `shaders stats`' own or from a baseline's entry."""
    found: dict[str, float | None] = {
        "VGPR": statistics["vgprs"],
        "spill": statistics["spilled_vgprs"] + statistics["spilled_sgprs"],
        "waves": waves,
        "VALU/unit": unit.get("valu"),
        "code": statistics["code_bytes"],
    }
    share = unit.get("share")
    found["roofline %"] = None if share is None else 100 * share
    return {name: value for name, value in found.items() if value is not None}


def pair_variants(on_device: Iterable[Variant], on_chip: Iterable[Variant]) -> list[Watched]:
    """Both lists by name."""
    device, chip = ({variant.name: variant for variant in variants} for variants in (on_device, on_chip))
    return [Watched(name, device.get(name), chip.get(name)) for name in sorted(device.keys() | chip.keys())]


@dataclass
class Cycle:
    """Answers for one variant after another. ``judge`` and ``compiler`` may be None: without device, without RADV;
    ``config``, whose shapes are timed: without times."""

    judge: Judge | None
    compiler: OfflineCompiler | None
    chip: Chip | None
    config: ModelConfig | None = None
    subgroup: int = 64
    seed: int = 0
    _sources: dict[str, frozenset[Path]] = field(default_factory=dict)
    _modules: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)  # the first one's, the last one's

    def affected(self, watched: Iterable[Watched], changed: frozenset[Path]) -> list[Watched]:
        """Those whose sources, as they are or as they were, hold a changed file. Forgets the sources read before."""
        shader.forget_sources()
        found = []
        for one in watched:
            file = one.variant.launch.kernel.file
            try:
                now = frozenset(shader.sources(shader.SHADER_ROOT / file))
            except InputError:  # a file that is included and missing: what is wrong is told by compiling
                found.append(one)
                continue
            if changed & (now | self._sources.get(file, frozenset())):
                found.append(one)
        for one in found:
            self._sources.pop(one.variant.launch.kernel.file, None)
        return found

    def answer(self, watched: Watched) -> Answer:
        """Compile, validate, run against the oracle; compile for the chip beside it.

        Raises:
            DeviceError: the compiler or spirv-val is gone.
        """
        shader.forget_sources()
        kernel, spec = watched.variant.launch.kernel, watched.variant.launch.spec
        try:
            module = check_module(kernel)
            self._sources[kernel.file] = frozenset(shader.sources(shader.SHADER_ROOT / kernel.file))
        except InputError as error:
            module = Module(compiled=(str(error),))
        if module.wrong:
            return Answer(watched.name, module)
        with ThreadPoolExecutor(1) as beside:
            compiled = beside.submit(self._statistics, watched.on_chip)
            verdict = None
            if self.judge is not None and watched.on_device is not None:
                verdict = self.judge.judge(Job(kernel, spec, self.seed))
            row, failures = compiled.result()
        answer = Answer(watched.name, module, verdict, row, failures=failures)
        if verdict is not None and not answer.wrong:  # by now nothing else runs
            answer = self._timed(answer, watched.on_device)
        return answer

    def _timed(self, answer: Answer, variant: Variant | None) -> Answer:
        if self.judge is None or self.config is None or variant is None or variant.launch.kernel.file not in TIMED:
            return answer
        now = variant.launch.kernel.spirv()
        first, before = self._modules.get(answer.name, (now, now))
        others = [module for module in dict.fromkeys((before, first)) if module != now]
        job = BenchJob.quick(variant, self.config, others)
        try:
            timing = self.judge.time(job)
        except LatentvkError as error:
            return replace(answer, failures=(*answer.failures, str(error)))
        self._modules[answer.name] = first, now
        # Of pairs of samples that stand side by side, since the machine's speed may change from one to the next.
        own, changed = timing.samples[0], {now: 1.0}
        for module, samples in zip(others, timing.samples[1:], strict=True):
            changed[module] = median_ratio(samples, own)
        return replace(answer, timing=timing, moved=amount(job).nbytes, changes=(changed[before], changed[first]))

    def forget_oracles(self) -> None:
        """Let the next oracle be read anew: by a new process."""
        if self.judge is not None:
            self.judge.restart()

    def give_up(self) -> None:
        """From another thread: end what is running, which then fails."""
        if self.judge is not None:
            self.judge.give_up()
        if self.compiler is not None:
            self.compiler.give_up()

    def _statistics(self, variant: Variant | None) -> tuple[Row | None, tuple[str, ...]]:
        if self.compiler is None or variant is None:
            return None, ()
        try:
            return compile_row(variant, self.compiler, self.chip, self.subgroup)[0], ()
        except LatentvkError as error:
            return None, (str(error),)
