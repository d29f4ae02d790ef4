"""The measured half of `compare`: open the device, load the model once, run every path at every context that fits."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from harness.measure import Plan, SessionLike, Step, measure_decode, measure_prompt
from harness.predict import line_of
from harness.results import Row, Table
from harness.roofline import Peaks, Weights, decode_bound, prompt_bound
from model.config import ModelConfig
from model.layout import Path, cache_bytes
from model.tasks import Document
from vkbackend.errors import DeviceError, InputError

if TYPE_CHECKING:
    from harness.compare import Job
    from vkbackend.device import DeviceInfo

# Of what the host has free, this much is left to everything else that runs there.
_HOST_SHARE = 0.9

OpenSession = Callable[[Path, int], SessionLike]


@dataclass(frozen=True)
class Measured:
    table: Table
    config: ModelConfig
    device: dict[str, Any]
    model: dict[str, Any]
    peak_samples: dict[str, list[float]]


@dataclass(frozen=True)
class Prompt:
    """One context's tokens (int32 [context]) and, when the model can do the recall task, where to score them."""

    tokens: np.ndarray
    document: Document | None


@dataclass(frozen=True)
class Bench:
    """What stays the same over all rows of a measured table."""

    config: ModelConfig
    weights: Weights
    peaks: Peaks
    budget: int
    plan: Plan


def measure_model(job: "Job", args: argparse.Namespace) -> Measured:
    """Run the job's model. Raises InputError or DeviceError for a file or device that cannot run it at all."""
    from model.engine import Model, Session
    from vkbackend.peaks import measure_peaks

    from harness import metadata
    from model.gguf_file import GGUFFile
    from vkbackend.device import open_device

    assert job.model is not None
    gguf = GGUFFile.open(job.model)
    config = ModelConfig.from_gguf(gguf)
    device = open_device(args.device)
    budget = device_budget(device.info) if args.memory is None else args.memory
    found = measure_peaks(device)
    peaks = Peaks(found.bandwidth_bytes_per_s, found.flops_per_s, "read and multiply-add kernels on this device")
    model = Model.load(gguf, device)
    weights = Weights(model.weight_bytes, model.active_weight_bytes, "the file's own tensors")
    bench = Bench(config, weights, peaks, budget, Plan(args.decode, args.repeats))
    prompts = {c: make_prompt(model, config, c, args.seed, args.questions) for c in job.contexts}

    def open_session(path: Path, n_ctx: int) -> SessionLike:
        return Session(model, path, n_ctx, args.chunk)

    rows = measure_rows(bench, job.paths, prompts, open_session)
    lines = tuple(line_of(config, path, [row for row in rows if row.path == path.name], peaks) for path in job.paths)
    table = Table("measured", config.name, device.info.name, weights, peaks, tuple(rows), lines)
    return Measured(table, config, device.info.as_dict(), metadata.model_file(job.model), found.samples)


def device_budget(info: "DeviceInfo") -> int:
    """Bytes that this process may fill: the device's heaps, and where they are the host's memory no more than is
    free."""
    if not info.unified:
        return info.memory
    return min(info.memory, int(psutil.virtual_memory().available * _HOST_SHARE))


def make_prompt(model: Any, config: ModelConfig, context: int, seed: int, questions: int) -> Prompt:
    """The scored document of `context` tokens; for a model whose tokenizer cannot hold the task (a synthetic one has no
    tokenizer), drawn token ids without a score."""
    from model.tasks import build_document

    try:
        document = build_document(model.tokenizer, context, seed, questions)
    except InputError:
        rng = np.random.default_rng(seed)
        return Prompt(rng.integers(config.n_vocab, size=context, dtype=np.int32), None)
    return Prompt(document.tokens, document)


def measure_rows(
    bench: Bench, paths: Sequence[Path], prompts: dict[int, Prompt], open_session: OpenSession
) -> list[Row]:
    """One row for each context and path, in that order."""
    total = sum(prompts) * len(paths) + len(prompts) * len(paths) * bench.plan.repeats * bench.plan.n_decode
    rows = []
    with _progress(total) as advance:
        for context, prompt in prompts.items():
            for path in paths:

                def step(what: str, tokens: int, label: str = f"{path.name} at {context:,}") -> None:
                    advance(f"{label}: {what}", tokens)

                rows.append(measure_row(bench, path, prompt, open_session, step))
    return rows


def measure_row(bench: Bench, path: Path, prompt: Prompt, open_session: OpenSession, step: Step) -> Row:
    """Measure one path at one context; a combination over the budget, or one the device refuses, is a row that says
    so."""
    context = len(prompt.tokens)
    formula = cache_bytes(bench.config, path.layout, path.cache_type, context)
    needed = bench.weights.total_bytes + formula
    if needed > bench.budget:
        return Row(path.name, context, formula, not_run="does not fit", needed_bytes=needed)
    try:
        session = open_session(path, context)
    except DeviceError as error:
        return Row(path.name, context, formula, not_run=f"does not fit: {error}", needed_bytes=needed)
    try:
        times = measure_prompt(session, prompt.tokens, prompt.document, bench.config.n_vocab, bench.plan, step)
        depth = context - bench.plan.n_decode
        decoded = measure_decode(session, depth, int(prompt.tokens[depth]), bench.plan, step)
        return Row(
            path.name,
            context,
            formula,
            cache_bytes=session.cache_bytes,
            decode_seconds=decoded.seconds,
            decode_contexts=decoded.contexts,
            decode_warmup_seconds=decoded.warmup_seconds,
            prompt_seconds=times.seconds,
            prompt_scored=times.scored,
            first_token_seconds=times.first_token_seconds,
            score=times.score,
            decode_bound=decode_bound(bench.config, bench.weights.active_bytes, path, context, bench.peaks),
            prompt_bound=prompt_bound(bench.config, bench.weights, path, context, session.chunk, bench.peaks),
            needed_bytes=needed,
        )
    finally:
        session.close()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """A progress bar of `total` tokens on standard error when that is a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("measuring the device's peaks", total=total)
        yield lambda what, tokens: progress.update(task, description=what, advance=tokens)
