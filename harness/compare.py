"""`latentvk compare`: one model along several paths and contexts, measured; and the same table predicted for a chip."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import options
from vkbackend.errors import InputError

if TYPE_CHECKING:
    from harness.peers import PeerSpec
    from harness.results import Record, Table
    from model.config import ModelConfig
    from model.layout import Path as AttentionPath

HELP = "measure the MLA paths against the MHA fallback at several contexts, or predict them for a chip"
EXAMPLE = "latentvk compare --contexts 512,2048 --paths mla,mha --predict 780m"

DEFAULT_PATHS = "mla,mla-v,mha"
DEFAULT_CONTEXTS = "512,2048,8192"
PRESET_CONTEXTS = "4096,16384,32768,65536,131072"
DEFAULT_PRESET = "glm-4.7-flash"
DEFAULT_CHIP = "780m"


@dataclass(frozen=True)
class Job:
    """What one command line asks for, checked: what to run (None: nothing) and what to predict."""

    models: list[Path]
    typed: "dict[str, tuple[AttentionPath, ...]]"  # the paths by cache type, f16 first if it is one of them
    contexts: list[int]
    predict_model: str | None  # chip for the model's own prediction
    predict_preset: "tuple[ModelConfig, str] | None"  # a shape that is not run, and its chip

    @property
    def paths(self) -> "tuple[AttentionPath, ...]":
        """The paths over the first cache type, which is the one that is predicted."""
        return next(iter(self.typed.values()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_weights(parser)
    parser.add_argument(
        "--contexts", type=options.positive_ints, metavar="N,...", help=f"prompt lengths (default {DEFAULT_CONTEXTS})"
    )
    parser.add_argument(
        "--paths",
        type=options.names,
        default=options.names(DEFAULT_PATHS),
        metavar="P,...",
        help=f"default {DEFAULT_PATHS}",
    )
    parser.add_argument(
        "--predict", metavar="CHIP", help="add the table that this chip's peaks allow (780m, 8060s, ...)"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="predict for this shape, no file needed; without MODEL nothing is run "
        f"(contexts default {PRESET_CONTEXTS})",
    )
    parser.add_argument(
        "--memory", type=options.size_bytes, metavar="SIZE", help="take this as the memory there is, such as 96GiB"
    )
    parser.add_argument(
        "-n", "--decode", type=options.positive_int, default=12, metavar="N", help="tokens a repeat (default 12)"
    )
    parser.add_argument(
        "-r", "--repeats", type=options.positive_int, default=10, metavar="N", help="repeats (default 10)"
    )
    parser.add_argument(
        "--questions", type=options.positive_int, default=32, metavar="N", help="recall questions (default 32)"
    )
    parser.add_argument(
        "--seed", type=options.non_negative_int, default=1, metavar="N", help="draws the prompts (default 1)"
    )
    parser.add_argument(
        "--cache",
        type=options.names,
        default=["f16"],
        metavar="TYPE,...",
        help="types of the cache's numbers: f16; q8_0, q4_0 (mla, mla-v); f32 for checks; several are held against the "
        "first, f16 if it is one of them (default f16)",
    )
    options.add_chunk(parser)
    options.add_memory(parser)
    parser.add_argument(
        "--peer",
        type=peer,
        action="append",
        default=[],
        metavar="KIND=WHERE",
        help="another runtime on the same file, in turns with ours: 'llama-bench=PROGRAM [ARGUMENTS]', "
        "'sweep-bench=PROGRAM [ARGUMENTS]', ollama=MODEL[@URL]; or a file of its results; may be repeated",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="folder of the JSON, Markdown and HTML reports (default ./results; none with --json)",
    )


def peer(text: str) -> "PeerSpec":
    """One --peer; what it needs is imported only where it is given."""
    from harness.peers import peer_spec

    return peer_spec(text)


def run(args: argparse.Namespace) -> int:
    from harness import metadata
    from harness.results import Record, to_json

    job = plan_job(args)
    folder = report_folder(args)
    date = metadata.now()
    tables: list[Table] = []
    device_facts = None
    peak_samples: dict[str, list[float]] = {}
    model_facts: dict[str, object] = {}
    state: dict[str, object] = {}
    longest = lost = None
    if job.models:
        from harness.compare_run import measure_model

        measured = measure_model(job, args)
        tables += measured.tables
        device_facts, peak_samples, model_facts = measured.device, measured.peak_samples, measured.model
        longest, state, lost = measured.longest_submission_seconds, measured.state, measured.lost
        if job.predict_model is not None:
            tables.append(_predict(measured.config, job.predict_model, job.contexts, job, args, measured.tables[0]))
    if job.predict_preset is not None:
        config, chip = job.predict_preset
        contexts = job.contexts if args.contexts and not job.models else options.positive_ints(PRESET_CONTEXTS)
        tables.append(_predict(config, chip, contexts, job, args, None))
        model_facts = model_facts or {"name": config.name}
    settings: dict[str, object] = {"contexts": job.contexts, "paths": [path.name for path in job.paths]}
    if job.models:
        settings |= {name: getattr(args, name) for name in ("decode", "repeats", "questions", "seed", "chunk")}
        settings["cache"] = ",".join(job.typed)
        settings |= {f"override {key}": value for found in args.override_kv for key, value in found.items()}
    record = Record(
        command="latentvk " + " ".join(sys.argv[1:]),
        date=date,
        host=metadata.host(),
        software=metadata.software(),
        device=device_facts,
        model=model_facts,
        settings=settings,
        tables=tuple(tables),
        peak_samples=peak_samples,
        state=state,
        longest_submission_seconds=longest,
        incomplete="" if lost is None else str(lost),
    )
    finish(record, args, folder)
    options.emit_json(args, to_json(record))
    if lost is not None:
        raise lost
    return 0


def plan_job(args: argparse.Namespace) -> Job:
    """Resolve the command line. Raises InputError for an unknown path, chip or preset before anything is opened."""
    from harness.chips import get_chip
    from model.presets import get_preset

    typed = {kind: options.paths_over(args.paths, kind, strict=len(args.cache) == 1) for kind in args.cache}
    typed = dict(sorted(typed.items(), key=lambda item: item[0] != "f16"))
    chip = get_chip(args.predict).key if args.predict else None
    named = args.model is not None or bool(args.weights)
    plain = not named and args.predict is None and args.preset is None
    preset = args.preset or (DEFAULT_PRESET if plain else None)
    runs = named or args.preset is None
    if args.override_kv and not runs:
        raise InputError(options.NO_KEYS_TO_OVERRIDE)
    if len(typed) > 1 and not runs:
        raise InputError(
            f"--cache {','.join(args.cache)} is given with --preset, expected one type where nothing is run; choose one"
        )
    if args.peer and (not runs or len(args.weights) + (args.model is not None) > 1 or len(typed) > 1):
        raise InputError(
            "--peer is given, expected one MODEL and one cache type to be run beside it; leave the others out"
        )
    contexts = args.contexts or options.positive_ints(DEFAULT_CONTEXTS if runs else PRESET_CONTEXTS)
    if runs and contexts[0] <= args.decode:
        raise InputError(
            f"--contexts {contexts[0]} leaves no prompt before {args.decode} decoded tokens; expected more than that; "
            "choose longer contexts or a smaller --decode"
        )
    return Job(
        models=options.model_paths(args) if runs else [],
        typed=typed,
        contexts=contexts,
        predict_model=chip if preset is None else None,
        predict_preset=None if preset is None else (get_preset(preset), chip or DEFAULT_CHIP),
    )


def _predict(
    config: "ModelConfig",
    chip: str,
    contexts: Sequence[int],
    job: Job,
    args: argparse.Namespace,
    measured: "Table | None",
) -> "Table":
    from harness.chips import get_chip
    from harness.predict import predict
    from harness.roofline import estimated_weights

    weights = measured.weights if measured is not None else estimated_weights(config)
    return predict(config, weights, get_chip(chip), contexts, job.paths, args.memory)


def report_folder(args: argparse.Namespace) -> Path | None:
    """Where the reports go: -o, else ./results unless --json says where the result goes.

    Raises InputError when the folder could not be written, before minutes of measuring and not after; it is made only
    with the reports, so that an interrupted run leaves nothing.
    """
    if args.output is None and args.json is not None:
        return None
    folder = Path(args.output or "results")
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        # Tried, not asked: root may write everywhere, but for places such as /proc.
        with tempfile.TemporaryDirectory(dir=nearest):
            pass
    except OSError:
        what = "not writable" if nearest.is_dir() else "no folder"
        raise InputError(
            f"{folder}: {nearest} is {what}, expected a place for the reports; choose another with -o"
        ) from None
    return folder


def finish(record: "Record", args: argparse.Namespace, folder: Path | None) -> None:
    """Print the tables and write the three report files, if there is a folder for them."""
    from rich.console import Console

    from harness import report_tables
    from harness.atomic import write_text
    from harness.page import page
    from harness.results import write_record

    console = Console(file=sys.stderr if options.json_to_stdout(args) else sys.stdout, highlight=False)
    if not options.json_to_stdout(args):
        report_tables.show(record, console)
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror}), expected a place for the reports; choose another with -o"
        ) from None
    stem = _free(folder, report_stem(record))
    json_path, markdown_path = folder / f"{stem}.json", folder / f"{stem}.md"
    write_record(record, json_path)
    write_text(markdown_path, report_tables.markdown(record, json_path.name))
    page_path = folder / f"{stem}.html"
    write_text(page_path, page(record, json_path.name))
    if not options.json_to_stdout(args):
        print(f"report: {markdown_path}\nwith charts: {page_path}\nsamples: {json_path}")


def report_stem(record: "Record") -> str:
    """compare-<model>-<device>-<date>, for example compare-latentvk-tiny-llvmpipe-20260102-030405."""
    model = str(record.model.get("file", record.model.get("name"))).removesuffix(".gguf")
    device = str(record.device["name"]).split("(")[0] if record.device else record.tables[0].device
    date = record.date[:19].replace("-", "").replace(":", "").replace("T", "-")
    return f"compare-{_slug(model)}-{_slug(device)}-{date}"


def _free(folder: Path, stem: str) -> str:
    """`stem`, numbered where the folder has a record of that name: records are never written over."""
    names = (stem, *(f"{stem}-{i}" for i in range(2, 1000)))
    return next((name for name in names if not (folder / f"{name}.json").exists()), stem)


def _slug(text: str) -> str:
    kept = "".join(char.lower() if (char.isalnum() and char.isascii()) or char == "." else "-" for char in text)
    return "-".join(part for part in kept.split("-") if part) or "unnamed"
