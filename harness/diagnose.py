"""`latentvk diagnose`: what governs decode speed: ours, measured here, or any runtime's, from a table of speeds."""

import argparse

from harness import options
from vkbackend.errors import InputError

HELP = "say what decode speeds mean: verdict, evidence, remedy; of any runtime, from a table, or measured here"
EXAMPLE = (
    "latentvk diagnose --measurements results/reports/780m-ollama-mha.csv --preset glm-4.7-flash "
    "--bandwidth 80GB/s --memory 96GiB"
)


DEFAULT_CONTEXTS = "128,512,2048"
DEFAULT_PATHS = "mla,mha"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from harness.subject import add_preset

    options.add_model(parser)
    own = parser.add_argument_group("our own paths, measured on the device")
    add = own.add_argument
    add("--contexts", type=options.positive_ints, metavar="N,...", help=f"default {DEFAULT_CONTEXTS}")
    add("--paths", type=options.names, metavar="P,...", help=f"default {DEFAULT_PATHS}")
    options.add_weights(own)
    add("-n", "--decode", type=options.positive_int, default=8, metavar="N", help="tokens a repeat (default 8)")
    add("-r", "--repeats", type=options.positive_int, default=12, metavar="N", help="repeats (default 12)")
    options.add_cache(own)
    options.add_chunk(own)
    options.add_memory(own)
    table = parser.add_argument_group("a table of any runtime's speeds; no model is run")
    add = table.add_argument
    add(
        "--measurements",
        metavar="FILE",
        help="context and tok/s as CSV, llama-bench's csv, json, jsonl or md, or sweep-bench's ('-': standard input)",
    )
    add("--model", dest="model_option", metavar="GGUF", help="the file that ran; MODEL does the same")
    add_preset(table)
    add("--bandwidth", type=options.bandwidth, metavar="RATE", help="what the memory gives at most, such as 80GB/s")
    add("--memory", type=options.size_bytes, metavar="SIZE", help="the memory there is, such as 96GiB")
    add("--processor", choices=("gpu", "cpu"), help="what ran the model (default: what FILE tells, else gpu)")


def run(args: argparse.Namespace) -> int:
    if args.model is not None and args.model_option is not None:
        raise InputError(
            f"MODEL {args.model!r} and --model {args.model_option!r} are both given, expected one; drop one"
        )
    args.model = args.model or args.model_option
    if args.measurements is None:
        _refuse(
            args,
            ("preset", "mix", "bandwidth", "memory", "processor"),
            "without --measurements",
            "a table of speeds beside it",
        )
        args.contexts = args.contexts or options.positive_ints(DEFAULT_CONTEXTS)
        names = args.paths or options.names(DEFAULT_PATHS)
        # Before the file is opened or a device asked for; only paths that were asked for must have a kernel.
        args.paths = options.paths_over(names, args.cache, strict=args.paths is not None)
        from harness.diagnose_run import diagnose_model

        return diagnose_model(args)
    _refuse(args, ("contexts", "paths", "weights"), "with --measurements", "no model to be run")
    if args.model is None and args.preset is None:
        raise InputError(
            "--measurements is given without a model, expected the one that ran; add --model GGUF or --preset NAME"
        )
    from harness.diagnose_table import diagnose_table

    return diagnose_table(args)


def _refuse(args: argparse.Namespace, names: tuple[str, ...], where: str, expected: str) -> None:
    for name in names:
        if getattr(args, name):
            raise InputError(f"--{name} is given {where}, expected {expected}; leave it out")
