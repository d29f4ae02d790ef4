"""`latentvk regress`: what changed between two records, or two revisions measured in turns, and whether it is worse."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from harness import options
from vkbackend.errors import InputError

if TYPE_CHECKING:
    from harness.judging import Finding, Rules
    from harness.metrics import Side

HELP = "compare two records, or two revisions measured in turns: faster, slower or no difference, and exit code 1"
EXAMPLE = "latentvk regress HEAD results/llvmpipe/compare-latentvk-tiny.json --exact-only"

TURNS = 30  # finds 5% on a machine where it can be found at all (tools/measure_regress.py)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from harness.judging import BUSY, EFFECT, LEVEL, NOISE

    add = parser.add_argument
    add("base", metavar="BASE", help="a record's JSON (compare, bench, llama-bench), REV:path, or a git revision")
    add("new", metavar="NEW", nargs="?", help="the same for the other side; runs of one side with commas between merge")
    add("--run", action="store_true", help="measure now: BASE's settings, or BASE's revision and this code in turns")
    add("--bench", default="", metavar="'OPTIONS'", help="with --run and a revision: what `latentvk bench` is given")
    add("--model", metavar="FILE", help="with --run: the model (left out: the embedded one)")
    add(
        "--turns",
        type=options.positive_int,
        default=TURNS,
        metavar="N",
        help=f"with --run and a revision: turns of each side (default {TURNS})",
    )
    add("--exact-only", action="store_true", help="judge memory and counts alone, not times")
    add("--effect", type=options.fraction, default=EFFECT, metavar="F", help=f"least change that counts ({EFFECT})")
    add("--level", type=options.fraction, default=LEVEL, metavar="F", help=f"false alarms in all metrics ({LEVEL})")
    add("--noise", type=options.fraction, default=NOISE, metavar="F", help=f"judge no noisier machine ({NOISE})")
    add("--busy", type=_processors, default=BUSY, metavar="N", help=f"processors others may keep busy ({BUSY})")
    add("--format", choices=("text", "md"), default="text", help="md: ready for a pull request (default text)")


def _processors(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a number of processors such as 0.25")
    return value


def run(args: argparse.Namespace) -> int:
    from harness.judging import Rules, refusal, regressions
    from harness.regress_report import markdown, show, to_json

    rules = Rules(args.level, args.effect, args.noise, args.busy)
    comparisons = _comparisons(args, rules)
    options.emit_json(args, to_json(comparisons, rules))
    if not options.json_to_stdout(args):
        if args.format == "md":
            print(markdown(comparisons, rules), end="")
        else:
            show(comparisons, rules)
    if any(regressions(findings) for _, _, findings in comparisons):
        return 1
    for base, new, findings in comparisons:
        why = refusal((base, new), findings, rules)
        if why and not args.exact_only:
            raise why
    return 0


def _comparisons(args: argparse.Namespace, rules: Rules) -> list[tuple[Side, Side, list[Finding]]]:
    from harness.judging import judge
    from harness.metrics import require_same
    from harness.records import committed, is_revision, load

    if args.run == (args.new is not None):
        found = "NEW and --run" if args.run else "neither NEW nor --run"
        raise InputError(f"found {found}, expected one of them; name another record, or measure now")
    if args.bench and not args.run:
        raise InputError("--bench is given without --run, expected both to measure a revision; add --run")
    if args.run:
        from harness.regress_run import ROOT, measure_again, measure_revision

        if is_revision(args.base, ROOT):
            base, new, noise = measure_revision(args, rules)
            return [(base, new, judge(base, new, rules, paired=True, noise=noise, timed=not args.exact_only))]
        if args.bench:
            raise InputError(f"--bench is given with {args.base}, which has settings of its own; leave --bench out")
        base = load(args.base)
        new, noise = measure_again(args, base, rules)
        require_same(base, new, "compare")
        return [(base, new, judge(base, new, rules, noise=noise, timed=not args.exact_only))]
    if is_revision(args.base) and is_revision(args.new):
        pairs = committed(args.base, args.new)
    else:
        pairs = [(load(args.base, args.new), load(args.new, args.base))]
    for base, new in pairs:
        require_same(base, new, "compare")
    return [(base, new, judge(base, new, rules, timed=not args.exact_only)) for base, new in pairs]
