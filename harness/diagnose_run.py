"""The half of `diagnose` that runs a model: our own paths, measured against context and quantisation, and explained."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from harness import metadata, options
from harness.compare_run import labelled
from harness.diagnose_report import show
from harness.measure import Measurement, Plan, Prompt, take_turns
from harness.own_lines import Measured, OwnLine, Subject, medians, own_line
from harness.progress import progress_bar
from harness.quants import QuantEffect, quant_effect
from harness.roofline import Peaks, best_peaks
from harness.running import file_names, load_in_groups, open_files, open_session, warn_beyond_training
from harness.turns import open_or_refuse, side_by_side
from model.config import ModelConfig
from model.engine import Model, Session
from model.kernels import CHUNK_PRODUCTS, EMBED, TOKEN_PRODUCTS
from model.layout import Path, cache_bytes, cache_bytes_per_token
from vkbackend.device import Device, open_device
from vkbackend.errors import InputError
from vkbackend.peaks import LaunchCost, measure_launches, measure_peaks

SCHEMA = "latentvk.own-diagnosis"
SCHEMA_VERSION = 1
_SEED = 1
_PROFILES = 5  # profiled tokens: their shares' medians are taken
# The kernels that read weights, where they do not read a cache.
_PRODUCTS = (*TOKEN_PRODUCTS, *CHUNK_PRODUCTS, EMBED.file)


@dataclass(frozen=True)
class Entry:
    """One session to be measured."""

    file: str
    model: Model
    path: Path
    context: int

    @property
    def label(self) -> str:
        return f"{self.file} {self.path.name} at {self.context:,}"


@dataclass(frozen=True)
class Result:
    """What an entry gave; ``measured`` is None where the device refused it, and ``refused`` says with what words."""

    entry: Entry
    launches: int = 0
    measured: Measured | None = None
    samples: tuple[tuple[float, ...], ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class Line:
    """All results of one file along one path, and what they mean; ``own`` is None with fewer than two contexts."""

    subject: Subject
    results: tuple[Result, ...]
    own: OwnLine | None


@dataclass(frozen=True)
class Effect:
    """The larger and the smaller of two files along a path at a context."""

    path: str
    context: int
    larger: str
    smaller: str
    effect: QuantEffect


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was measured, for the printed text and the JSON."""

    model: str
    device: Device
    peaks: Peaks
    peak_samples: dict[str, list[float]]
    cost: LaunchCost
    lines: tuple[Line, ...]
    effects: tuple[Effect, ...]


def diagnose_model(args: argparse.Namespace) -> int:
    """Run the command. Raises InputError or DeviceError for a file or device that cannot run it."""
    if args.repeats < 2:
        raise InputError("--repeats 1 leaves no interval, expected 2 at least; choose more")
    if args.contexts[0] <= args.decode:
        raise InputError(
            f"--contexts {args.contexts[0]} leaves no prompt before {args.decode} decoded tokens; expected more than "
            "that; choose longer contexts or a smaller --decode"
        )
    paths: Sequence[Path] = args.paths
    files = options.model_paths(args)
    opened = open_files(args, files)
    warn_beyond_training(opened[0][1], args.contexts[-1])
    device = open_device(args.device, memory_fraction=args.memory_fraction)
    peaks_before = measure_peaks(device)
    cost = measure_launches(device)
    names = iter(file_names(files))
    largest = max(cache_bytes(opened[0][1], path.layout, path.cache_type, args.contexts[-1]) for path in paths)
    results: list[Result] = []
    for models in load_in_groups(opened, device, largest):
        results += _measure([(next(names), model) for model in models], paths, args)
    peaks, peak_samples = best_peaks(peaks_before, measure_peaks(device))
    lines = tuple(_lines(results, peaks, cost))
    found = Diagnosis(opened[0][1].name, device, peaks, peak_samples, cost, lines, tuple(_effects(lines)))
    options.emit_json(args, to_json(found))
    if not options.json_to_stdout(args):
        show(found)
    return 0


def _measure(loaded: Sequence[tuple[str, Model]], paths: Sequence[Path], args: argparse.Namespace) -> list[Result]:
    plan = Plan(args.decode, args.repeats, repeat_prompt_seconds=0)
    entries = [
        Entry(name, model, path, context) for name, model in loaded for path in paths for context in args.contexts
    ]
    tokens = np.random.default_rng(_SEED).integers(loaded[0][1].config.n_vocab, size=args.contexts[-1], dtype=np.int32)
    with progress_bar(sum(entry.context + plan.repeats * plan.n_decode for entry in entries)) as advance:

        def run(group: Sequence[Entry]) -> list[Result]:
            with ExitStack() as stack:
                running = []
                for entry in group:
                    opening = partial(open_session, entry.model, entry.path, entry.context, args.chunk)
                    session = open_or_refuse(stack, opening)
                    prompt = Prompt(tokens[: entry.context], None)
                    running.append(Measurement(session, prompt, plan, labelled(advance, entry.label)))
                take_turns(running, plan)
                return [_result(entry, found) for entry, found in zip(group, running, strict=True)]

        return side_by_side(entries, run, lambda entry, error: Result(entry, refused=str(error)))


def _result(entry: Entry, found: Measurement) -> Result:
    session = found.session
    assert isinstance(session, Session)
    decode = session.launches()["decode"]
    kinds = ["cache" if launch.deep else "weights" if launch.kernel.file in _PRODUCTS else "other" for launch in decode]
    session.rewind(found.depth)
    shares: dict[str, list[float]] = {"cache": [], "weights": [], "other": []}
    for _ in range(_PROFILES):
        times = [each.seconds for each in session.profile(int(found.prompt.tokens[found.depth]))]
        total = sum(times) or 1.0
        for kind, values in shares.items():
            values.append(sum(t for t, its in zip(times, kinds, strict=True) if its == kind) / total)
    measured = Measured(
        sum(found.decode_contexts) / len(found.decode_contexts),
        medians(found.decode_seconds),
        session.cache_bytes,
        {kind: float(np.median(values)) for kind, values in shares.items()},
    )
    return Result(entry, len(decode), measured, tuple(found.decode_seconds))


def _lines(results: Sequence[Result], peaks: Peaks, cost: LaunchCost) -> list[Line]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.entry.file, result.entry.path.name), []).append(result)
    lines = []
    for (file, _), of_line in groups.items():
        entry = of_line[0].entry
        launches = max(result.launches for result in of_line)
        subject = Subject(file, entry.model.config, entry.path, entry.model.active_weight_bytes, launches)
        rows = [result.measured for result in of_line if result.measured is not None]
        lines.append(Line(subject, tuple(of_line), own_line(subject, rows, peaks, cost) if rows else None))
    return lines


def _effects(lines: Sequence[Line]) -> list[Effect]:
    """Each file against the first one, path by path and context by context, where their bytes differ."""
    found = []
    for line in lines:
        base = next(other for other in lines if other.subject.path == line.subject.path)
        if base.subject.active_bytes == line.subject.active_bytes:
            continue
        larger, smaller = sorted((base, line), key=lambda each: -each.subject.active_bytes)
        for one, other in zip(larger.results, smaller.results, strict=True):
            if one.samples and other.samples:
                effect = quant_effect(
                    (larger.subject.active_bytes, one.samples), (smaller.subject.active_bytes, other.samples)
                )
                found.append(
                    Effect(line.subject.path.name, one.entry.context, larger.subject.file, smaller.subject.file, effect)
                )
    return found


def to_json(found: Diagnosis) -> dict[str, Any]:
    """The diagnosis as plain values, every sample included; all of it was measured but ``parts`` and the formulas."""
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "date": metadata.now(),
        "host": metadata.host(),
        "software": metadata.software(),
        "device": found.device.as_dict(),
        "model": found.model,
        "peaks": asdict(found.peaks),
        "peak_samples": found.peak_samples,
        "launch_cost": asdict(found.cost),
        "lines": [_line_json(line) for line in found.lines],
        "quantisations": [asdict(effect) | {"bottleneck": effect.effect.bottleneck} for effect in found.effects],
    }


def _line_json(line: Line) -> dict[str, Any]:
    subject = line.subject
    own = None
    if line.own is not None:
        part, share = line.own.governs
        own = asdict(line.own) | {"crossing": line.own.crossing, "governs": part, "governs_share": share}
    return {
        "file": subject.file,
        "path": subject.path.name,
        "cache_type": subject.path.cache_type,
        "weight_bytes_per_token": subject.active_bytes,
        "cache_bytes_per_token_formula": _formula(subject.config, subject.path),
        "launches": subject.launches,
        "line": own,
        "rows": [
            {
                "context": result.entry.context,
                "cache_bytes": result.measured and result.measured.cache_bytes,
                "decode_seconds": result.samples,
                "profile": result.measured and dict(result.measured.profile),
                "not_run": result.refused,
            }
            for result in line.results
        ],
    }


def _formula(config: ModelConfig, path: Path) -> int:
    return cache_bytes_per_token(config, path.layout, path.cache_type)
