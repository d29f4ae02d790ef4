"""`latentvk shaders bench`: kernels timed on the device at a model's true shapes, once their oracles let them pass."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from harness import options
from vkbackend.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.oracles.client import OracleRunner
    from harness.shader_variants import Variant
    from model.config import ModelConfig
    from vkbackend.physical import DeviceInfo

HELP = "time kernels on the device at a model's true shapes, against its measured peaks"
KERNEL = "KERNEL"  # what a sweep calls the kernels that it tries in place of a variant's own
EXAMPLE = 'latentvk shaders bench "mat* q4_k chosen" --repeats 5'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("kernels", metavar="KERNEL", nargs="*", help="kernels or beginnings of variants' names (left out: the model's)")
    add("--preset", default="glm-4.7-flash", metavar="NAME", help="the model whose shapes are timed")
    add("--mix", default="q4_k_m", metavar="NAME", help="types of its weights; named KERNELs may be of other types")
    add("--context", type=options.positive_int, default=4096, metavar="N", help="tokens in the cache (default 4096)")
    options.add_chunk(parser)
    add("--repeats", type=options.positive_int, default=10, metavar="N", help="samples of each (default 10)")
    add(
        "--sweep",
        type=_sweep,
        action="append",
        default=[],
        metavar="NAME=1,2,4",
        help="instead: try these values of a specialization constant, in turns; repeatable, for every combination; "
        "KERNEL=NAME,… tries other kernels that make the same product",
    )
    add("--store", action="store_true", help="write what a sweep finds distinctly better into the device's tuning")
    add("--seed", type=options.non_negative_int, default=0, metavar="N", help="of the oracles' inputs (default 0)")


def run(args: argparse.Namespace) -> int:
    from harness import metadata
    from harness.oracles.client import OracleRunner
    from model.presets import get_preset

    if args.store and not args.sweep:
        raise InputError("--store is given without --sweep, expected constants to try; add --sweep NAME=1,2,4")
    if args.store:
        from harness.timing.sweep import require_table

        require_table()
    config = get_preset(args.preset)
    with OracleRunner(args.device) as runner:
        variants = find(args, config, runner.info)
        work = _sweeps if args.sweep else _timings
        found, refused = work(args, config, variants, runner)
    for name, reason in refused.items():
        if not options.json_to_stdout(args):
            print(f"FAIL  {name}: not timed: {reason}")
    found["rows"] += [{"name": name, "refused": reason} for name, reason in refused.items()]
    settings = {name: getattr(args, name) for name in ("preset", "mix", "context", "chunk", "repeats", "seed")}
    about = {"host": metadata.host(), "software": metadata.software(), "device": runner.info.as_dict()}
    options.emit_json(args, about | {"settings": settings} | found)
    return 1 if refused else 0


def find(args: argparse.Namespace, config: ModelConfig, info: DeviceInfo) -> list[Variant]:
    """The variants that the arguments name: of the model's own forward passes, and of any other if asked for.

    Raises:
        InputError: a name matches none, or the mix is unknown.
    """
    from harness.shader_variants import Shape, choose, find_variants
    from harness.timing.work import TIMED
    from model.engine import DEFAULT_CHUNK
    from vkbackend.tuning import load_tuning

    named = bool(args.kernels)
    n_ctx = args.context + (args.chunk or DEFAULT_CHUNK)
    shape = Shape(n_ctx=n_ctx, chunk=args.chunk, every_type=named, tuning=load_tuning(info))
    found = {v.name: v for v in find_variants(config, args.mix, info, everything=named, shape=shape)}
    # Parts of a cache that one binding cannot hold differ from the whole in where they begin alone, and are large.
    asked = any("shard" in name for name in args.kernels)
    timed = [n for n, v in found.items() if v.launch.kernel.file in TIMED and (asked or "shard" not in n.split())]
    return [found[name] for name in choose(timed, args.kernels)]


def _progress(variants: Sequence[Variant]) -> Iterator[Variant]:
    """The variants, each said on a terminal before its turn."""
    for number, variant in enumerate(variants):
        if sys.stderr.isatty():
            print(f"latentvk: {number + 1} of {len(variants)}: {variant.name}", file=sys.stderr)
        yield variant


def _timings(
    args: argparse.Namespace, config: ModelConfig, variants: Sequence[Variant], runner: OracleRunner
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every variant's own constants timed, as fields of the record; and why the others were not, by name."""
    from dataclasses import asdict

    from harness.oracles.client import Job
    from harness.roofline import Peaks
    from harness.timing.job import BenchJob
    from harness.timing.result import Result
    from harness.timing.table import print_results
    from harness.timing.work import amount
    from vkbackend.errors import DeviceError

    refused: dict[str, str] = {}
    timings = []
    before = runner.peaks()
    for variant in _progress(variants):
        launch = variant.launch
        verdict = runner.judge(Job(launch.kernel, launch.spec, args.seed))
        if verdict.failures:
            refused[variant.name] = verdict.failures[0]
            continue
        job = BenchJob.of(variant, config, repeats=args.repeats)
        try:
            timings.append((variant, amount(job), runner.time(job)))
        except DeviceError as error:
            refused[variant.name] = str(error)
    measured = [before, runner.peaks()]
    # Whatever else ran on the machine can only have lowered them.
    bandwidth = max(peaks.bandwidth_bytes_per_s for peaks in measured)
    peaks = Peaks(bandwidth, max(peaks.flops_per_s for peaks in measured), "read and multiply-add kernels")
    results = [Result(variant, work, timing, peaks) for variant, work, timing in timings]
    if results and not options.json_to_stdout(args):
        print_results(runner.info, peaks, results)
    rows = [result.as_dict() for result in results]
    return {"peaks": asdict(peaks), "peak_samples": [p.samples for p in measured], "rows": rows}, refused


def _sweeps(
    args: argparse.Namespace, config: ModelConfig, variants: Sequence[Variant], runner: OracleRunner
) -> tuple[dict[str, Any], dict[str, str]]:
    """Of each purpose and kernel one variant's constants tried, as fields of the record; and what was refused.

    Raises:
        InputError: the values are for none of the variants; the first one's.
    """
    from harness.timing import sweep
    from harness.timing.table import print_sweep
    from vkbackend.errors import DeviceError

    values: dict[str, Sequence[Any]] = dict(args.sweep)
    others = values.pop(KERNEL, ())
    refused: dict[str, str] = {}
    unfit: list[InputError] = []
    rows, done = [], set()
    for variant in _progress(variants):
        try:
            key = sweep.purpose_of(variant), variant.launch.kernel.file
            if key in done:
                continue
            done.add(key)
            found = sweep.sweep(
                runner, variant, values, config, runner.info, seed=args.seed, repeats=args.repeats, others=others
            )
        except (DeviceError, InputError) as error:
            refused[variant.name] = str(error)
            unfit += [error] if isinstance(error, InputError) else []
            continue
        refused |= {f"{variant.name} as {choice}": failure for choice, failure in found.refused.items()}
        stored = sweep.store(found, runner.info) if args.store and found.better else None
        rows.append({"name": variant.name, **found.as_dict(), "stored": stored is not None})
        if not options.json_to_stdout(args):
            print_sweep(found)
            if stored:
                print(f"stored as '{found.purpose}' in {stored}")
    if unfit and not rows and len(unfit) == len(refused):
        raise unfit[0]
    return {"rows": rows}, refused


def _sweep(text: str) -> tuple[str, list[int] | list[str]]:
    """'ROWS=1,2,4' -> ('ROWS', [1, 2, 4]), 'KERNEL=matvec' -> ('KERNEL', ['matvec'])."""
    name, equals, values = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a constant and its values such as ROWS=1,2,4")
    name = name.strip().upper()
    return name, values.split(",") if name == KERNEL else options.positive_ints(values)
