"""The measured half of `compare`: open the device, load the files, run every path at every context that fits."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.measure import Measurement, Plan, Prompt, SessionLike, Step, Turn, take_turns
from harness.predict import line_of
from harness.progress import progress_bar
from harness.results import Row, Table
from harness.roofline import Peaks, Weights, best_peaks, decode_bound, prompt_bound
from harness.turns import RefusedError, open_or_refuse, side_by_side
from model.config import ModelConfig
from model.layout import Path, cache_bytes
from vkbackend.errors import DeviceLostError, InputError

if TYPE_CHECKING:
    from harness.compare import Job
    from harness.peers import PeerTurn
    from model.engine import Model
    from model.tokenizer import Tokenizer
    from vkbackend.peaks import Peaks as DevicePeaks


@dataclass(frozen=True)
class Measured:
    """``tables`` has one for each file and cache type, the first file's first."""

    tables: tuple[Table, ...]
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


@dataclass(frozen=True, eq=False)
class Lane:
    """One path of a table: how its sessions are opened, and the lane whose logits its own are held against."""

    bench: Bench
    path: Path
    open: Callable[[int], SessionLike]
    label: str = ""  # of the table, where there are several
    reference: "Lane | None" = None

    def planned(self, context: int) -> Row:
        """The row before anything is run; over the budget it stays so."""
        formula = cache_bytes(self.bench.config, self.path.layout, self.path.cache_type, context)
        needed = self.bench.weights.total_bytes + formula
        row = Row(self.path.name, context, formula, needed_bytes=needed)
        return replace(row, not_run="does not fit") if needed > self.bench.budget else row


@dataclass(frozen=True)
class _Part:
    """One table in the making: a file over a cache type; ``group``: tables of one group were measured in turns."""

    file: str
    cache_type: str
    group: int
    lanes: tuple[Lane, ...]
    rows: tuple[Row, ...] = ()


def measure_model(job: "Job", args: argparse.Namespace) -> Measured:
    """Run the job's files; a device lost between ends it early, with the rows that were finished.

    Raises InputError or DeviceError for a file or device that cannot run it at all.
    """
    from harness import metadata
    from harness.machine import Watch
    from harness.running import file_names, load_in_groups, open_files, warn_beyond_training
    from vkbackend.device import open_device

    opened = open_files(args, job.models)
    gguf, config = opened[0]
    warn_beyond_training(config, job.contexts[-1])
    device = open_device(args.device, memory_fraction=args.memory_fraction)
    from harness.peers import imported_rows, open_peers, peer_turns
    from model.budget import available_bytes
    from vkbackend.peaks import measure_peaks

    peers, imported = open_peers(args.peer, gguf.path, job.paths[0].cache_type, device.info.name)
    budget = available_bytes(device) if args.memory is None else args.memory  # weights and cache, as none is there
    largest = max(
        cache_bytes(config, p.layout, p.cache_type, job.contexts[-1]) for ps in job.typed.values() for p in ps
    )
    names = iter(file_names(job.models))
    watch: Watch | None = None
    peaks_before: DevicePeaks | None = None
    lost: DeviceLostError | None = None
    longest = 0.0
    parts: list[_Part] = []
    for group, models in enumerate(load_in_groups(opened, device, largest)):
        if lost is not None:
            break
        watch = watch or Watch(device.info.pci_address)
        peaks_before = peaks_before or measure_peaks(device)
        plan = Plan(args.decode, args.repeats)
        prompts = {c: make_prompt(models[0], config, c, args.seed, args.questions) for c in job.contexts}
        texts = {c: partial(_text, models[0], prompt, plan.n_decode) for c, prompt in prompts.items()}
        turns = peer_turns(peers, texts, plan.n_decode)
        device.pace.forget_longest()
        found, lost = measure_parts(_parts(job, models, names, group, budget, plan, args.chunk), prompts, turns)
        parts += found
        longest = max(longest, device.pace.longest_s)
    peaks, peak_samples = best_peaks(peaks_before or measure_peaks(device), None if lost else measure_peaks(device))
    state = {} if watch is None else watch.taken()
    tables = tuple(_table(part, device.info.name, peaks, several=len(parts) > 1) for part in parts)
    if peers or imported:
        elsewhere = [row for each in imported for row in imported_rows(each.name, each.found, job.contexts)]
        rows = sorted([*tables[0].rows, *elsewhere], key=lambda row: row.context)
        told = [f"{each.name}: {each.about()}" for each in peers]
        told += [f"{each.name}: {each.about()}" for each in imported]
        tables = (replace(tables[0], rows=tuple(rows), peers=tuple(told)),)
    facts = metadata.model_file(*gguf.paths)
    if len(opened) > 1:
        facts["others"] = [metadata.model_file(*other.paths) for other, _ in opened[1:]]
    return Measured(tables, config, device.as_dict(), facts, peak_samples, longest, state, lost)


def _parts(
    job: "Job",
    models: "Sequence[Model]",
    names: Iterator[str],
    group: int,
    budget: int,
    plan: Plan,
    chunk: int | None,
) -> list[_Part]:
    """The tables of these models: for each a part for each cache type.

    Logits are held against those of the first cache type of the same file, and the first type's against those of the
    first of the files.
    """
    from harness.running import open_session

    parts: list[_Part] = []
    for model in models:
        weights = Weights(model.weight_bytes, model.active_weight_bytes, "the file's own tensors")
        bench, name = Bench(model.config, weights, budget, plan), next(names)
        of_file: list[_Part] = []
        for cache_type, paths in job.typed.items():
            label = ", ".join(
                [*([name] if len(job.models) > 1 else []), *([f"cache {cache_type}"] if len(job.typed) > 1 else [])]
            )
            base = of_file[0] if of_file else parts[0] if parts else None
            references = {lane.path.name: lane for lane in base.lanes} if base else {}
            lanes = []
            for path in paths:
                opening = partial(open_session, model, path, chunk=chunk)
                lanes.append(Lane(bench, path, opening, label, references.get(path.name)))
            of_file.append(_Part(name, cache_type, group, tuple(lanes)))
        parts += of_file
    return parts


def measure_parts(
    parts: Sequence[_Part], prompts: dict[int, Prompt], turns: "dict[int, list[PeerTurn]]"
) -> tuple[list[_Part], DeviceLostError | None]:
    """The parts with their rows, those of all lanes measured in turns; the peers' rows are the first part's."""
    lanes = [lane for part in parts for lane in part.lanes]
    rows, lost = measure_rows(lanes, prompts, turns)
    found = []
    for part in parts:
        its = [index for index, lane in enumerate(lanes) if lane in part.lanes]
        found.append(replace(part, rows=tuple(row for i, row in enumerate(rows) if i % len(lanes) in its)))
    of_peers = tuple(turn.row() for of_context in turns.values() for turn in of_context)
    found[0] = replace(found[0], rows=found[0].rows + of_peers)
    return found, lost


def _table(part: _Part, device: str, peaks: Peaks, several: bool) -> Table:
    bench = part.lanes[0].bench
    of_name = {lane.path.name: lane.path for lane in part.lanes}
    rows = tuple(row if row.peer else with_bounds(bench, row, of_name[row.path], peaks) for row in part.rows)
    lines = tuple(
        line_of(bench.config, path, [row for row in rows if row.path == path.name], peaks) for path in of_name.values()
    )
    return Table(
        "measured",
        bench.config.name,
        device,
        bench.weights,
        peaks,
        rows,
        lines,
        file=part.file,
        cache_type=part.cache_type,
        label=part.lanes[0].label if several else "",
        group=part.group,
        memory=bench.budget,
    )


def _text(model: "Model", prompt: Prompt, n_decode: int) -> str:
    """The prompt up to where decoding starts, as text."""
    return model.tokenizer.decode(prompt.tokens[:-n_decode].tolist())


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
    lanes: Sequence[Lane], prompts: dict[int, Prompt], peers: Mapping[int, Sequence[Turn]] | None = None
) -> tuple[list[Row], DeviceLostError | None]:
    """One row for each context and lane, in that order, and how the device was lost, if it was.

    ``peers``, by context, take turns with the lanes and keep their own figures. Rows from the lost context on are
    not measured; those of the contexts before it are kept.
    """
    total = sum(context + lane.bench.plan.repeats * lane.bench.plan.n_decode for context in prompts for lane in lanes)
    rows: list[Row] = []
    lost = None
    with progress_bar(total) as advance:
        for context, prompt in prompts.items():
            if lost is None:
                try:
                    rows += measure_context(lanes, prompt, advance, (peers or {}).get(context, ()))
                    continue
                except DeviceLostError as error:
                    lost = error
            planned = [lane.planned(context) for lane in lanes]
            rows += [replace(row, not_run=row.not_run or "device lost") for row in planned]
    return rows, lost


def measure_context(lanes: Sequence[Lane], prompt: Prompt, advance: Step, peers: Sequence[Turn] = ()) -> list[Row]:
    """All lanes at one context, taking turns where their caches fit side by side, else in parts; the peers take theirs
    with the first part."""
    context = len(prompt.tokens)
    waiting = list(peers)

    def run(group: Sequence[Lane]) -> list[Row]:
        return _measure_group(group, prompt, advance, waiting)

    def refused(lane: Lane, error: RefusedError) -> Row:
        return replace(lane.planned(context), not_run=f"does not fit: {error}")

    return side_by_side(lanes, run, refused)


def _measure_group(lanes: Sequence[Lane], prompt: Prompt, advance: Step, peers: list[Turn]) -> list[Row]:
    """Rows of lanes whose sessions are open at the same time; a combination over the budget is not tried.

    Whoever is among ``peers`` takes part and is taken from them. Raises RefusedError when they do not fit together,
    or the device does not open one of them.
    """
    context = len(prompt.tokens)
    rows = [lane.planned(context) for lane in lanes]
    running: dict[Lane, Measurement] = {}
    benches = {id(lane.bench): lane.bench for lane in lanes}
    caches = sum(row.cache_bytes_formula or 0 for row in rows if row.ran)
    together = sum(bench.weights.total_bytes for bench in benches.values()) + caches
    if len(lanes) > 1 and together > lanes[0].bench.budget:
        raise RefusedError(f"{together} bytes of weights and caches together; expected {lanes[0].bench.budget} at most")
    with ExitStack() as stack:
        for lane, row in zip(lanes, rows, strict=True):
            if row.not_run:
                continue
            session = open_or_refuse(stack, partial(lane.open, context))
            what = " ".join([*([lane.label] if lane.label else []), f"{lane.path.name} at {context:,}"])
            reference = None if lane.reference is None else running.get(lane.reference)
            running[lane] = Measurement(session, prompt, lane.bench.plan, labelled(advance, what), reference)
        joining = [peers.pop(0) for _ in range(len(peers))]
        take_turns(list(running.values()), lanes[0].bench.plan, joining)
        return [
            _finished(row, lane, running[lane]) if lane in running else row
            for lane, row in zip(lanes, rows, strict=True)
        ]


def _finished(row: Row, lane: Lane, found: Measurement) -> Row:
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
        divergence=found.divergence,
        divergence_from=lane.reference.label if lane.reference and found.divergence is not None else "",
    )


def labelled(advance: Step, label: str) -> Step:
    """The step that says what it belongs to."""
    return lambda what, tokens: advance(f"{label}: {what}", tokens)
