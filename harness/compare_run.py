"""The measured half of `compare`: open the device, load the model once, run every path at every context that fits."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.measure import Measurement, Plan, Prompt, SessionLike, Step, take_turns
from harness.predict import line_of
from harness.progress import progress_bar
from harness.results import Row, Table
from harness.roofline import Peaks, Weights, decode_bound, prompt_bound
from model.config import ModelConfig
from model.layout import Path, cache_bytes
from vkbackend.errors import DeviceError, DeviceLostError, InputError

if TYPE_CHECKING:
    from harness.compare import Job
    from model.tokenizer import Tokenizer
    from vkbackend.peaks import Peaks as DevicePeaks

OpenSession = Callable[[Path, int], SessionLike]


@dataclass(frozen=True)
class Measured:
    table: Table
    config: ModelConfig
    device: dict[str, Any]
    model: dict[str, Any]
    peak_samples: dict[str, list[float]]
    longest_submission_seconds: float  # while the rows were measured
    state: dict[str, Any]  # of the machine, before, after and meanwhile
    lost: DeviceLostError | None  # what ended the measuring early


@dataclass(frozen=True)
class Bench:
    """What stays the same over all rows of a measured table."""

    config: ModelConfig
    weights: Weights
    budget: int
    plan: Plan


def measure_model(job: "Job", args: argparse.Namespace) -> Measured:
    """Run the job's model; a device lost between ends it early, with the rows that were finished.

    Raises InputError or DeviceError for a file or device that cannot run it at all.
    """
    from harness import metadata
    from harness.machine import Watch
    from harness.running import load_model, open_file, open_session, warn_beyond_training
    from vkbackend.device import open_device

    gguf, config = open_file(args)
    warn_beyond_training(config, job.contexts[-1])
    device = open_device(args.device, memory_fraction=args.memory_fraction)
    from model.budget import available_bytes
    from vkbackend.peaks import measure_peaks

    budget = available_bytes(device) if args.memory is None else args.memory  # weights and cache, as none is there
    model = load_model(gguf, config, device)
    watch = Watch(device.info.pci_address)
    peaks_before = measure_peaks(device)
    weights = Weights(model.weight_bytes, model.active_weight_bytes, "the file's own tensors")
    bench = Bench(config, weights, budget, Plan(args.decode, args.repeats))
    prompts = {c: make_prompt(model, config, c, args.seed, args.questions) for c in job.contexts}
    device.pace.forget_longest()
    measured, lost = measure_rows(
        bench, job.paths, prompts, lambda path, n_ctx: open_session(model, path, n_ctx, args.chunk)
    )
    longest = device.pace.longest_s
    peaks, peak_samples = best_peaks(peaks_before, None if lost else measure_peaks(device))
    of_name = {path.name: path for path in job.paths}
    rows = [with_bounds(bench, row, of_name[row.path], peaks) for row in measured]
    lines = tuple(line_of(config, path, [row for row in rows if row.path == path.name], peaks) for path in job.paths)
    table = Table("measured", config.name, device.info.name, weights, peaks, tuple(rows), lines)
    file = metadata.model_file(*gguf.paths)
    return Measured(table, config, device.info.as_dict(), file, peak_samples, longest, watch.taken(), lost)


def best_peaks(before: "DevicePeaks", after: "DevicePeaks | None") -> tuple[Peaks, dict[str, list[float]]]:
    """The higher of two measurements, as a peak is what the device can do, not what it could while busy with others.

    ``after`` is None where the device was lost before it.
    """
    samples = {f"{name} before": values for name, values in before.samples.items()}
    if after is None:
        after = before
    else:
        samples |= {f"{name} after": values for name, values in after.samples.items()}
    bandwidth = max(before.bandwidth_bytes_per_s, after.bandwidth_bytes_per_s)
    flops = max(before.flops_per_s, after.flops_per_s)
    return Peaks(bandwidth, flops, "read and multiply-add kernels on this device"), samples


def with_bounds(bench: Bench, row: Row, path: Path, peaks: Peaks) -> Row:
    """The row with the least times that the peaks allow; a row that did not run stays as it is."""
    if row.chunk is None:
        return row
    return replace(
        row,
        decode_bound=decode_bound(bench.config, bench.weights.active_bytes, path, row.context, peaks),
        prompt_bound=prompt_bound(bench.config, bench.weights, path, row.context, row.chunk, peaks),
    )


def make_prompt(model: Any, config: ModelConfig, context: int, seed: int, questions: int) -> Prompt:
    """The scored document of `context` tokens; drawn token ids where the model's tokenizer cannot hold the task."""
    from model.tasks import build_document

    try:
        document = build_document(_PlainTokenizer(model.tokenizer), context, seed, questions)
    except InputError as error:
        rng = np.random.default_rng(seed)
        return Prompt(rng.integers(config.n_vocab, size=context, dtype=np.int32), None, str(error))
    return Prompt(document.tokens, document)


class _PlainTokenizer:
    """A tokenizer that adds nothing of its own, as the task wants: its documents begin as it says."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_bos=False)


def measure_rows(
    bench: Bench, paths: Sequence[Path], prompts: dict[int, Prompt], open_session: OpenSession
) -> tuple[list[Row], DeviceLostError | None]:
    """One row for each context and path, in that order, and how the device was lost, if it was.

    Rows from the lost context on are not measured; those of the contexts before it are kept.
    """
    total = sum(prompts) * len(paths) + len(prompts) * len(paths) * bench.plan.repeats * bench.plan.n_decode
    rows: list[Row] = []
    lost = None
    with progress_bar(total) as advance:
        for context, prompt in prompts.items():
            if lost is None:
                try:
                    rows += measure_context(bench, paths, prompt, open_session, advance)
                    continue
                except DeviceLostError as error:
                    lost = error
            planned = [_planned(bench, path, context) for path in paths]
            rows += [replace(row, not_run=row.not_run or "device lost") for row in planned]
    return rows, lost


def measure_context(
    bench: Bench, paths: Sequence[Path], prompt: Prompt, open_session: OpenSession, advance: Step
) -> list[Row]:
    """All paths at one context, taking turns where their caches fit side by side, else one after the other."""
    caches = [cache_bytes(bench.config, path.layout, path.cache_type, len(prompt.tokens)) for path in paths]
    if bench.weights.total_bytes + sum(caches) <= bench.budget:
        # Refused side by side, for their scratch, one of them alone may still fit.
        with suppress(_RefusedError):
            return _measure_group(bench, paths, prompt, open_session, advance)
    rows: list[Row] = []
    for path in paths:
        try:
            rows += _measure_group(bench, [path], prompt, open_session, advance)
        except _RefusedError as refused:
            row = _planned(bench, path, len(prompt.tokens))
            rows.append(replace(row, not_run=f"does not fit: {refused}"))
    return rows


class _RefusedError(DeviceError):
    """A session that the device would not open, as opposed to one that failed while it ran."""


def _planned(bench: Bench, path: Path, context: int) -> Row:
    """A row before anything is run; over the budget it stays so."""
    formula = cache_bytes(bench.config, path.layout, path.cache_type, context)
    needed = bench.weights.total_bytes + formula
    row = Row(path.name, context, formula, needed_bytes=needed)
    return replace(row, not_run="does not fit") if needed > bench.budget else row


def _measure_group(
    bench: Bench, paths: Sequence[Path], prompt: Prompt, open_session: OpenSession, advance: Step
) -> list[Row]:
    """Rows of paths whose sessions are open at the same time; a combination over the budget is not tried.

    Raises _RefusedError when the device does not open one of them.
    """
    context = len(prompt.tokens)
    rows: dict[str, Row] = {}
    running: dict[str, Measurement] = {}
    with ExitStack() as stack:
        for path in paths:
            rows[path.name] = _planned(bench, path, context)
            if rows[path.name].not_run:
                continue
            try:
                session = open_session(path, context)
            except DeviceLostError:
                raise
            except DeviceError as error:
                raise _RefusedError(str(error)) from error
            stack.callback(session.close)
            step = _labelled(advance, f"{path.name} at {context:,}")
            running[path.name] = Measurement(session, prompt, bench.plan, step)
        take_turns(list(running.values()), bench.plan)
        for path in paths:
            if path.name in running:
                rows[path.name] = _finished(rows[path.name], running[path.name])
    return list(rows.values())


def _finished(row: Row, found: Measurement) -> Row:
    return replace(
        row,
        cache_bytes=found.session.cache_bytes,
        decode_seconds=tuple(found.decode_seconds),
        decode_contexts=found.decode_contexts,
        decode_warmup_seconds=found.warmup_seconds,
        prompt_seconds=tuple(found.prompt_seconds),
        prompt_scored=found.prompt_scored,
        first_token_seconds=tuple(found.first_token_seconds),
        score=found.score,
        unscored=found.prompt.unscored,
        chunk=found.session.chunk,
    )


def _labelled(advance: Step, label: str) -> Step:
    return lambda what, tokens: advance(f"{label}: {what}", tokens)
