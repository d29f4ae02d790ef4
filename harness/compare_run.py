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
    from model.tokenizer import Tokenizer
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
    """One context's tokens (int32 [context]) and where to score them, or why they cannot be scored."""

    tokens: np.ndarray
    document: Document | None
    unscored: str = ""


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
    from harness import metadata
    from harness.running import load_model, open_file, open_session

    gguf, config = open_file(args)
    free = psutil.virtual_memory().available  # before the weights take their share of it
    model = load_model(args, gguf)
    from vkbackend.peaks import measure_peaks

    device = model.device
    budget = device_budget(device.info, free) if args.memory is None else args.memory
    found = measure_peaks(device)
    peaks = Peaks(found.bandwidth_bytes_per_s, found.flops_per_s, "read and multiply-add kernels on this device")
    weights = Weights(model.weight_bytes, model.active_weight_bytes, "the file's own tensors")
    bench = Bench(config, weights, peaks, budget, Plan(args.decode, args.repeats))
    prompts = {c: make_prompt(model, config, c, args.seed, args.questions) for c in job.contexts}
    rows = measure_rows(bench, job.paths, prompts, lambda path, n_ctx: open_session(model, path, n_ctx, args.chunk))
    lines = tuple(line_of(config, path, [row for row in rows if row.path == path.name], peaks) for path in job.paths)
    table = Table("measured", config.name, device.info.name, weights, peaks, tuple(rows), lines)
    return Measured(table, config, device.info.as_dict(), metadata.model_file(gguf.path), found.samples)


def device_budget(info: "DeviceInfo", host_free: int) -> int:
    """Bytes this process may fill: the device's heaps, and where they are the host's memory no more than is free."""
    return min(info.memory, int(host_free * _HOST_SHARE)) if info.unified else info.memory


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
            unscored=prompt.unscored,
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
