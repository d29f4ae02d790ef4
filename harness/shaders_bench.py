"""`latentvk shaders bench`: kernels timed on the device at a model's true shapes, once their oracles let them pass."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from harness import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.oracles.client import OracleRunner
    from harness.shader_variants import Variant
    from harness.timing.job import BenchJob, Timing
    from model.config import ModelConfig
    from vkbackend.physical import DeviceInfo

HELP = "time kernels on the device at a model's true shapes, against its measured peaks"
EXAMPLE = 'latentvk shaders bench "mat* q4_k chosen" --repeats 5'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("kernels", metavar="KERNEL", nargs="*", help="kernels or beginnings of variants' names (left out: the model's)")
    add("--preset", default="glm-4.7-flash", metavar="NAME", help="the model whose shapes are timed")
    add("--mix", default="q4_k_m", metavar="NAME", help="types of its weights; named KERNELs may be of other types")
    add("--context", type=options.positive_int, default=4096, metavar="N", help="tokens in the cache (default 4096)")
    options.add_chunk(parser)
    add("--repeats", type=options.positive_int, default=10, metavar="N", help="samples of each (default 10)")
    add("--seed", type=options.non_negative_int, default=0, metavar="N", help="of the oracles' inputs (default 0)")


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from harness import metadata
    from harness.oracles.client import OracleRunner
    from harness.roofline import Peaks
    from harness.timing.result import Result
    from harness.timing.table import print_results
    from harness.timing.work import amount
    from model.presets import get_preset

    config = get_preset(args.preset)
    with OracleRunner(args.device) as runner:
        variants = find(args, config, runner.info)
        before = runner.peaks()
        timings, refused = _time(args, config, variants, runner)
        measured = [before, runner.peaks()]
        # Whatever else ran on the machine can only have lowered them.
        bandwidth = max(peaks.bandwidth_bytes_per_s for peaks in measured)
        peaks = Peaks(bandwidth, max(peaks.flops_per_s for peaks in measured), "read and multiply-add kernels")
        results = [Result(variant, amount(job), timing, peaks) for variant, job, timing in timings]
        if results and not options.json_to_stdout(args):
            print_results(runner.info, peaks, results)
    for name, reason in refused.items():
        if not options.json_to_stdout(args):
            print(f"FAIL  {name}: not timed: {reason}")
    rows: list[dict[str, Any]] = [result.as_dict() for result in results]
    rows += [{"name": name, "refused": reason} for name, reason in refused.items()]
    settings = {name: getattr(args, name) for name in ("preset", "mix", "context", "chunk", "repeats", "seed")}
    about = {"host": metadata.host(), "software": metadata.software(), "device": runner.info.as_dict()}
    options.emit_json(
        args,
        about
        | {"settings": settings, "peaks": asdict(peaks), "peak_samples": [p.samples for p in measured], "rows": rows},
    )
    return 1 if refused else 0


def find(args: argparse.Namespace, config: ModelConfig, info: DeviceInfo) -> list[Variant]:
    """The variants that the arguments name: of the model's own forward passes, and of any other if asked for.

    Raises:
        InputError: a name matches none, or the mix is unknown.
    """
    from harness.shader_variants import Shape, choose, find_variants
    from harness.timing.work import TIMED
    from model.engine import DEFAULT_CHUNK

    named = bool(args.kernels)
    shape = Shape(n_ctx=args.context + (args.chunk or DEFAULT_CHUNK), chunk=args.chunk, every_type=named)
    found = {v.name: v for v in find_variants(config, args.mix, info, everything=named, shape=shape)}
    # Parts of a cache that one binding cannot hold differ from the whole in where they begin alone, and are large.
    asked = any("shard" in name for name in args.kernels)
    timed = [n for n, v in found.items() if v.launch.kernel.file in TIMED and (asked or "shard" not in n.split())]
    return [found[name] for name in choose(timed, args.kernels)]


def _time(
    args: argparse.Namespace, config: ModelConfig, variants: Sequence[Variant], runner: OracleRunner
) -> tuple[list[tuple[Variant, BenchJob, Timing]], dict[str, str]]:
    """What was timed, and why the others were not, by name."""
    from harness.oracles.client import Job
    from harness.timing.job import BenchJob
    from vkbackend.errors import DeviceError

    timings: list[tuple[Variant, BenchJob, Timing]] = []
    refused: dict[str, str] = {}
    for number, variant in enumerate(variants):
        if sys.stderr.isatty():
            print(f"latentvk: {number + 1} of {len(variants)}: {variant.name}", file=sys.stderr)
        launch = variant.launch
        verdict = runner.judge(Job(launch.kernel, launch.spec, args.seed))
        if verdict.failures:
            refused[variant.name] = verdict.failures[0]
            continue
        job = BenchJob.of(variant, config, repeats=args.repeats)
        try:
            timings.append((variant, job, runner.time(job)))
        except DeviceError as error:
            refused[variant.name] = str(error)
    return timings, refused
