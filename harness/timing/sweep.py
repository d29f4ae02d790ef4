"""Specialization constants tried in turns: which are best for a variant's purpose, and whether better than the present.

The best of many looks better than it is, so it is timed against the present choice once more, alone, and only what is
distinct both times counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any, Protocol

from harness import metadata, stats
from harness.atomic import write_text
from harness.oracles.client import Job, Verdict
from harness.shader_variants import Variant
from harness.timing.job import BenchJob, Timing
from model import attention_shape, kernels, tiling
from model.config import ModelConfig
from vkbackend.errors import DeviceError, InputError
from vkbackend.physical import DeviceInfo
from vkbackend.program import Launch
from vkbackend.tuning import (
    OFF,
    VARIABLE,
    Entry,
    Tuning,
    load_tuning,
    read_table,
    tuning_file,
    with_entries,
)

# The first that a kernel has says what its product is.
_ROLES = {
    "GATED": "gated",
    "SUMMED": "summed",
    "CHOSEN": "chosen",
    "ROUTED": "routed",
    "ROWS_FROM_CACHE": "cache",
    "UNITS_FROM_CACHE": "cache",
}
_SHARD = ("rows", "matrix_first", "first")  # push constants that tell the parts of a tensor or a cache
_CHOSEN = {  # the constants that a tuning says; a model's dimensions say the others
    **{file: products.plain.spec for file, products in kernels.TOKEN_PRODUCTS.items()},
    **{file: products.plain.spec for file, products in kernels.CHUNK_PRODUCTS.items()},
    **dict.fromkeys(kernels.LATENT_ATTENTION, attention_shape.TUNED),
}


class Runner(Protocol):
    """What judges and times."""

    def judge(self, job: Job) -> Verdict: ...

    def time(self, job: BenchJob) -> Timing: ...


@dataclass(frozen=True)
class Sweep:
    """A variant's choices, the present one first, timed in turns.

    Attributes:
        entries: what a tuning would say for each.
        refused: constants that the oracle refused, with the first failure.
        again: the present choice and the best, timed once more; None where no other looked better.
    """

    variant: Variant
    purpose: str
    entries: tuple[Entry, ...]
    timing: Timing
    refused: Mapping[str, str]
    again: Timing | None = None

    @property
    def best(self) -> int:
        """The choice that took the least of the present one's time."""
        return min(range(len(self.entries)), key=lambda i: self.ratio(i).value)

    def ratio(self, choice: int) -> stats.Ratio:
        """Its time over the present choice's."""
        return _ratio(self.timing, choice)

    @property
    def confirmed(self) -> stats.Ratio | None:
        """The best's time over the present choice's, when timed once more."""
        return None if self.again is None else _ratio(self.again, 1)

    @property
    def better(self) -> Entry | None:
        """The best where it was distinctly faster both times, else None."""
        again = self.confirmed
        return self.entries[self.best] if again is not None and again.distinct and again.value < 1 else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, every sample among them."""
        choices = []
        for i, entry in enumerate(self.entries):
            ratio = self.ratio(i)
            choices.append(
                {
                    "kernel": entry.kernel,
                    "constants": dict(entry.constants),
                    "seconds": stats.median(self.timing.samples[i]),
                    "samples_seconds": list(self.timing.samples[i]),
                    "ratio": ratio.value,
                    "low": ratio.low,
                    "high": ratio.high,
                    "present": i == 0,
                    "best": i == self.best,
                }
            )
        again = None if self.again is None else [list(samples) for samples in self.again.samples]
        return {"purpose": self.purpose, "choices": choices, "again_seconds": again, "better": self.better is not None}


def _ratio(timing: Timing, choice: int) -> stats.Ratio:
    """The mean of the turns' own ratios, which a drift of the machine's speed does not move, and its interval."""
    first, other = ([[sample] for sample in timing.samples[i]] for i in (0, choice))
    ratio = stats.paired_ratio(other, first)
    return ratio if ratio.low is None or ratio.high is None else replace(ratio, value=sqrt(ratio.low * ratio.high))


def sweep(
    runner: Runner,
    variant: Variant,
    values: Mapping[str, Sequence[int]],
    config: ModelConfig,
    info: DeviceInfo,
    *,
    seed: int,
    repeats: int,
    others: Sequence[str] = (),
) -> Sweep:
    """Judge and time the variant with every combination of ``values``, with the ``others``, kernels by their names, in
    place of its own with their usual constants, and with the present choice.

    Raises:
        InputError: a constant that the kernel has not, or that a model's dimensions say; a value that cannot be; a
            kernel that does not make such products.
        DeviceError: the oracle refuses the present choice, or timing failed.
    """
    purpose = purpose_of(variant)
    changes = product(*values.values()) if values else ()
    entries = [_changed(variant, dict(zip(values, each, strict=True)), info) for each in changes]
    entries += [_other(variant, name, info) for name in others]
    tuned = load_tuning(info).find(purpose)
    launches = [_planned(variant, None if tuned is None else Tuning({purpose: tuned}))]
    present = _entry(launches[0])
    launches += [_planned(variant, Tuning({purpose: entry})) for entry in entries if entry != present]
    right, refused = [], {}
    for launch in launches:
        verdict = runner.judge(Job(launch.kernel, launch.spec, seed))
        if verdict.failures:
            refused[entry_text(_entry(launch))] = verdict.failures[0]
        else:
            right.append(launch)
    if not right or right[0] is not launches[0]:
        raise DeviceError(f"the present choice, {entry_text(present)}, is wrong: {refused[entry_text(present)]}")

    def timed(choices: Sequence[Launch]) -> Timing:
        first = replace(variant, launch=choices[0])
        return runner.time(BenchJob.of(first, config, choices[1:], repeats=repeats))

    found = Sweep(variant, purpose, tuple(map(_entry, right)), timed(right), refused)
    if found.best == 0 or not found.ratio(found.best).distinct:
        return found
    return replace(found, again=timed([right[0], right[found.best]]))


def store(found: Sweep, info: DeviceInfo) -> Path:
    """Write the better choice, which there must be, into the tuning table; returns the table's path.

    Raises:
        InputError: the table is switched off, is none, or cannot be written.
    """
    entry, ratio, path = found.better, found.confirmed, require_table()
    assert entry is not None and ratio is not None
    said = {
        "kernel": entry.kernel,
        "constants": dict(entry.constants),
        "ratio": ratio.value,
        "instead_of": entry_text(found.entries[0]),
        "date": metadata.now(),
    }
    table = with_entries(read_table(), info, {found.purpose: said})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot be made ({error.strerror}), expected a folder for the tuning table; name another "
            f"file with {VARIABLE}"
        ) from None
    write_text(path, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    return path


def require_table() -> Path:
    """Where a better choice would be stored. InputError when the table is switched off, or the file is none."""
    path = tuning_file()
    if path is None:
        raise InputError(f"--store: {VARIABLE} is {OFF}, expected a table to write to; unset it, or name a file there")
    read_table()
    return path


def purpose_of(variant: Variant) -> str:
    """What a tuning calls it. InputError for a kernel whose constants a model's dimensions say."""
    launch = variant.launch
    if launch.kernel.file in kernels.LATENT_ATTENTION:
        spec, kind = launch.spec, kernels.cache_kind(launch.kernel)
        return attention_shape.purpose(spec["LATENT"], spec["ROPE"], int(launch.push["heads"]), kind, variant.tokens)
    if launch.kernel.file not in _CHOSEN:
        swept = ", ".join(file.removesuffix(".comp") for file in _CHOSEN)
        raise InputError(f"{variant.name} has no constants to choose, expected a variant of {swept}; name one")
    return tiling.purpose(kernels.weight_kind(launch.kernel), variant.tokens, _role(launch))


def _role(launch: Launch) -> str:
    """What a product is for, of ``tiling.ROLES``."""
    return next((role for macro, role in _ROLES.items() if macro in launch.kernel.macros), "")


def entry_text(entry: Entry) -> str:
    """'matmul rows=2 tokens=4'."""
    constants = (f"{name.lower()}={value}" for name, value in entry.constants.items())
    return " ".join([entry.kernel.removesuffix(".comp"), *constants])


def _entry(launch: Launch) -> Entry:
    """What a tuning would say for it to be planned."""
    return Entry(launch.kernel.file, {name: launch.spec[name] for name in _CHOSEN[launch.kernel.file]})


def _changed(variant: Variant, values: Mapping[str, int], info: DeviceInfo) -> Entry:
    entry = _entry(variant.launch)
    for name in values:
        if name not in entry.constants:
            raise InputError(
                f"--sweep {name}: {variant.name} has no such constant to choose, expected one of "
                f"{', '.join(entry.constants)}; sweep one of them"
            )
    entry = replace(entry, constants={**entry.constants, **values})
    launch = variant.launch
    if entry.kernel in kernels.LATENT_ATTENTION:
        wrong = _unfit_attention(entry, launch, variant.tokens, info)
    else:
        kind = kernels.weight_kind(launch.kernel)
        wrong = tiling.unfit(entry, kind, variant.tokens, info, _role(launch))
    if wrong:
        raise InputError(f"--sweep: {variant.name} {wrong}; choose other values")
    return entry


def _unfit_attention(entry: Entry, launch: Launch, tokens: int, info: DeviceInfo) -> str:
    heads, row = int(launch.push["heads"]), launch.spec["LATENT"] + launch.spec["ROPE"]
    return attention_shape.unfit(entry, heads, row, kernels.cache_kind(launch.kernel), tokens, info)


def _other(variant: Variant, name: str, info: DeviceInfo) -> Entry:
    """The usual constants of another kernel for the variant's product; of attention's those that the variant has."""
    launch, file = variant.launch, f"{name}.comp"
    if launch.kernel.file in kernels.LATENT_ATTENTION:
        fitting = attention_shape.candidates(kernels.cache_kind(launch.kernel), info)
        if file in fitting:
            return replace(_entry(launch), kernel=file)
    else:
        kind, role = kernels.weight_kind(launch.kernel), _role(launch)
        fitting = tiling.candidates(kind, variant.tokens, info, role)
        if file in fitting:
            return tiling.usual(kind, variant.tokens, info.subgroup_size, role, file)
    known = ", ".join(other.removesuffix(".comp") for other in fitting)
    raise InputError(
        f"--sweep KERNEL={name}: {name} does not do what {variant.name} does, expected {known}; choose among these"
    )


def _planned(variant: Variant, tuning: Tuning | None) -> Launch:
    """The launch of the same tensor in the same forward pass under another tuning."""
    assert variant.plan is not None  # of kernels of the forward pass
    own = variant.launch
    alike = [
        other.launch
        for other in variant.plan(tuning)
        if (_label(other.launch), other.tokens) == (_label(own), variant.tokens)
        and _product(other.launch) == _product(own)
        and all(other.launch.push[name] == own.push[name] for name in _SHARD if name in own.push)
    ]
    return alike[0]


def _label(launch: Launch) -> str:
    """What the launch is for: its tensor; attention has none and goes by its kernel."""
    return kernels.ATTENTION_LATENT.file if launch.kernel.file in kernels.LATENT_ATTENTION else launch.label


def _product(launch: Launch) -> dict[str, str]:
    """The macros that say what a launch makes, whichever kernel makes it."""
    return {name: value for name, value in launch.kernel.macros.items() if name != "ARRAYS_IN_MEMORY"}
