"""The half of `diagnose` that runs no model: a table of speeds in, verdict, evidence and remedy out."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import options
from harness.inference import DEFAULT_PROCESSOR, Point, infer, memory_factors
from harness.layouts import RUNTIME_TYPES, candidates
from harness.measurements import read_measurements
from harness.roofline import Weights
from harness.subject import Subject, get_subject
from harness.text_tables import plain_table, show_list
from harness.units import bytes_text, decimal_bytes_text, seconds_text, significant
from harness.verdict import Case, Verdict, judge, megabytes, percent
from model.layout import CacheLayout, active_weight_bytes, cache_bytes, cache_bytes_per_token, weight_bytes
from vkbackend.errors import printable

SCHEMA = "latentvk.diagnosis"
SCHEMA_VERSION = 1
SHOWN_PROBABILITY = 0.001  # candidates below it are left out of the printed table


def diagnose_table(args: argparse.Namespace) -> int:
    """Run the command. Raises InputError for a table or model that cannot be read."""
    measured = read_measurements(args.measurements)
    subject = get_subject(args)
    weights = subject_weights(subject)
    found = candidates(
        subject.config, RUNTIME_TYPES if measured.cache_type not in RUNTIME_TYPES else (measured.cache_type,)
    )
    contexts = {point.context for point in measured.points}
    processor = args.processor or measured.processor
    inference = None
    if len(contexts) > 1:
        factors = None
        if args.memory is not None:
            ran = sorted(contexts)
            factors = memory_factors(found, weights.total_bytes, args.memory, ran, measured.out_of_memory)
        inference = infer(
            measured.points, weights.active_bytes, found, args.bandwidth, factors, processor or DEFAULT_PROCESSOR
        )
    case = Case(subject.config, weights, args.bandwidth, args.memory, measured, inference, processor)
    verdict = judge(case)
    options.emit_json(args, to_json(args, subject, case, verdict))
    if not options.json_to_stdout(args):
        show(args, subject, case, verdict, Console(highlight=False))
    return 0


def subject_weights(subject: Subject) -> Weights:
    """The subject's weights, by the types of its tensors."""
    source = "the file's own tensors" if subject.mix is None else f"estimated, types as in {subject.mix}"
    return Weights(
        weight_bytes(subject.config, subject.types), active_weight_bytes(subject.config, subject.types), source
    )


def predicted_contexts(case: Case) -> list[int]:
    """The measured contexts, those that did not fit, and twice the longest, as far as the model was trained."""
    measured = [round(context) for context in case.contexts if context >= 1]
    ahead = [2 * measured[-1]] if measured and 2 * measured[-1] <= case.config.n_ctx_train else []
    shown = sorted({*measured, *case.measured.out_of_memory, *ahead})
    return shown if len(shown) <= 12 else [*shown[:: -(-len(shown) // 10)], shown[-1]]


def predictions(case: Case) -> list[dict[str, Any]]:
    """For each context the V-less latent's cache and the rate that the bandwidth allows it, and the cache that the
    inferred layout needs."""
    bandwidth, _ = reference_bandwidth(case)
    latent = cache_bytes_per_token(case.config, CacheLayout.LATENT)
    best = case.named
    rows = []
    for context in predicted_contexts(case):
        row: dict[str, Any] = {"context": context, "cache_bytes_latent": context * latent}
        row["rate_latent"] = bandwidth and bandwidth / (case.weights.active_bytes + context * latent)
        if best is not None:
            needed = cache_bytes(case.config, best.layout, best.cache_type, context)
            row["cache_bytes_best"] = needed
            row["fits"] = None if case.memory is None else needed + case.weights.total_bytes <= case.memory
        rows.append(row)
    return rows


def reference_bandwidth(case: Case) -> tuple[float | None, str]:
    """The bandwidth that predictions are made at, and where it is from."""
    if case.bandwidth is not None:
        return case.bandwidth, "as stated"
    if case.inference is None or case.named is None:
        return None, "not known"
    return case.inference.best.bandwidth, f"what the runtime reached if it is {case.inference.best.candidate.name}"


def to_json(args: argparse.Namespace, subject: Subject, case: Case, verdict: Verdict) -> dict[str, Any]:
    """The diagnosis as plain values; `predicted` holds no measured figure and `measured` no predicted one."""
    inferred = None
    if case.inference is not None:
        inferred = asdict(case.inference)
        for each, plain in zip(case.inference.likely, inferred["likely"], strict=True):
            plain["candidate"] = {
                "layout": each.candidate.layout.value,
                "cache_type": each.candidate.cache_type,
                "name": each.candidate.name,
                "bytes_per_token": each.candidate.bytes_per_token,
            }
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "model": subject.config.name,
        "model_source": subject.source,
        "weights": asdict(case.weights),
        "bandwidth": case.bandwidth,
        "memory": case.memory,
        "processor": case.processor,
        "verdict": asdict(verdict),
        "measured": {
            "file": args.measurements,
            "format": case.measured.format,
            "notes": list(case.measured.notes),
            "points": [asdict(point) for point in case.points],
            "out_of_memory": list(case.measured.out_of_memory),
        },
        "inferred": inferred,
        "predicted": {"bandwidth": reference_bandwidth(case)[0], "rows": predictions(case)},
    }


def show(args: argparse.Namespace, subject: Subject, case: Case, verdict: Verdict, console: Console) -> None:
    """Verdict first, then what it rests on, then what to do."""
    origin = "standard input" if args.measurements == "-" else printable(args.measurements)
    console.print(Text.assemble((subject.config.name, "bold"), f" ({printable(subject.source)}), {origin}\n"))
    console.print(Text.assemble(("Verdict: ", "bold"), f"{verdict.headline}.\n"))
    for title, sentences in (("Evidence", verdict.reasons), ("Remedy", verdict.remedies)):
        show_list(console, sentences, title)
    show_list(console, verdict.measure_next, "To measure next")
    console.print(Text(f"Measured ({case.measured.format})", style="bold"), _measured_table(case))
    for note in case.measured.notes:
        console.print(Text(note, style="dim"))
    if case.inference is not None and verdict.kind != "contradictory":
        console.print(Text("\nInferred from the measured", style="bold"), _inferred_table(case))
        console.print(Text(f"{percent(case.inference.none)} that it is none of these.", style="dim"))
    console.print(Text("\nPredicted, nothing run", style="bold"), _predicted_table(case))
    bandwidth, origin = reference_bandwidth(case)
    weights = (
        f"Weights: {decimal_bytes_text(case.weights.total_bytes)}, of which a token reads "
        f"{decimal_bytes_text(case.weights.active_bytes)} ({case.weights.source})."
    )
    if bandwidth is not None:
        mark = "≤ marks a bound" if case.bandwidth is not None else "~ marks an estimate"
        weights += f" {mark}: weights and cache read once at {significant(bandwidth / 1e9)} GB/s, {origin}."
    console.print(Text(weights, style="dim"))


def _rate(point: Point) -> str:
    spread = max(point.rounding, point.deviation)
    digits = max(0, -(f"{point.rounding:e}".count("e") and int(f"{point.rounding:e}".split("e")[1])) - 1)
    return f"{point.rate:.{min(digits, 3)}f}" + (f" ± {significant(spread, 1)}" if spread else "")


def _measured_table(case: Case) -> Table:
    found = plain_table("context", "tok/s", "a token", "the line", "off")
    for point in case.points:
        cells = [f"{point.context:,.0f}", _rate(point), seconds_text(point.seconds)]
        if case.inference is not None:
            line = case.inference.intercept.value + case.inference.slope.value * point.context
            cells += [seconds_text(line), f"{100 * (point.seconds / line - 1):+.0f}%"]
        found.add_row(*cells)
    for context in case.measured.out_of_memory:
        found.add_row(f"{context:,}", "out of memory")
    return found


def _inferred_table(case: Case) -> Table:
    share = "share" if case.bandwidth is None else f"of\n{significant(case.bandwidth / 1e9)} GB/s"
    found = plain_table("cache", "formula\nper token", "line\nper token", "at\nGB/s", share, "likely", labels=1)
    likely = case.inference.likely if case.inference else ()
    for each in sorted(likely, key=lambda likely: -likely.probability):
        if each.probability < SHOWN_PROBABILITY:
            continue
        found.add_row(
            each.candidate.name,
            megabytes(each.candidate.bytes_per_token),
            megabytes(each.bytes_per_token.value),
            significant(each.bandwidth / 1e9),
            "n/a" if case.bandwidth is None else percent(each.bandwidth / case.bandwidth),
            percent(each.probability),
        )
    return found


def _predicted_table(case: Case) -> Table:
    best = case.named
    columns = ["context", "V-less\ncache", "V-less\ntok/s"]
    if best is not None:
        columns.append(f"{best.name}\ncache")
    if best is not None and case.memory is not None:
        columns.append(f"fits\n{bytes_text(case.memory)}")
    found = plain_table(*columns)
    mark = "≤" if case.bandwidth is not None else "~"
    for row in predictions(case):
        rate = "n/a" if row["rate_latent"] is None else f"{mark} {significant(row['rate_latent'], 2)}"
        cells = [f"{row['context']:,}", bytes_text(row["cache_bytes_latent"]), rate]
        if best is not None:
            cells.append(bytes_text(row["cache_bytes_best"]))
            if row["fits"] is not None:
                cells.append("yes" if row["fits"] else "out of memory")
        found.add_row(*cells)
    return found
