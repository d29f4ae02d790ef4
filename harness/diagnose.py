"""`latentvk diagnose`: what governs decode speed: ours, measured here, or any runtime's, from a table of speeds."""

import argparse

from harness import options
from vkbackend.errors import InputError

HELP = "say what any runtime's decode speeds mean, from a table of them: verdict, evidence, remedy"
EXAMPLE = (
    "latentvk diagnose --measurements results/reports/780m-ollama-mha.csv --preset glm-4.7-flash "
    "--bandwidth 80GB/s --memory 96GiB"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from harness.subject import add_preset

    options.add_model(parser)
    table = parser.add_argument_group("a table of any runtime's speeds; no model is run")
    table.add_argument(
        "--measurements",
        metavar="FILE",
        help="context and tok/s as CSV, llama-bench's csv, json, jsonl or md, or sweep-bench's ('-': standard input)",
    )
    table.add_argument("--model", dest="model_option", metavar="GGUF", help="the file that ran; MODEL does the same")
    add_preset(table)
    table.add_argument(
        "--bandwidth", type=options.bandwidth, metavar="RATE", help="what the memory gives at most, such as 80GB/s"
    )
    table.add_argument("--memory", type=options.size_bytes, metavar="SIZE", help="the memory there is, such as 96GiB")


def run(args: argparse.Namespace) -> int:
    if args.model is not None and args.model_option is not None:
        raise InputError(
            f"MODEL {args.model!r} and --model {args.model_option!r} are both given, expected one; drop one"
        )
    args.model = args.model or args.model_option
    if args.measurements is None:
        raise InputError("--measurements is missing, expected a table of speeds; name a file")
    if args.model is None and args.preset is None:
        raise InputError(
            "--measurements is given without a model, expected the one that ran; add --model GGUF or --preset NAME"
        )
    from harness.diagnose_table import diagnose_table

    return diagnose_table(args)
