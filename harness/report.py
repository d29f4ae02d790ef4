"""`latentvk report`: a record of `compare` as one HTML page, or as Markdown."""

import argparse
from pathlib import Path

from harness import options
from vkbackend.errors import InputError

HELP = "make one HTML page with charts, or Markdown, of a record that compare wrote"
EXAMPLE = "latentvk report results/llvmpipe/compare-latentvk-tiny.json -o report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("record", metavar="RECORD", help="the JSON that `latentvk compare` wrote")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to (left out: RECORD's name with .html or .md)")
    parser.add_argument("--format", choices=("html", "md"), help="default: what FILE ends with, else html")


def run(args: argparse.Namespace) -> int:
    from harness.atomic import require_writable, write_text
    from harness.page import page
    from harness.report_tables import markdown
    from harness.results import from_json, to_json

    source = Path(args.record)
    kind = args.format or ("md" if (args.output or "").endswith(".md") else "html")
    target = Path(args.output) if args.output else source.with_suffix(f".{kind}")
    require_writable(target)
    if target.exists() and target.samefile(source):
        raise InputError(f"{target}: is the record itself, expected another file to write to; choose one with -o")
    record = from_json(_text(source), str(source))
    write_text(target, page(record, source.name) if kind == "html" else markdown(record, source.name))
    options.emit_json(args, to_json(record))
    if not options.json_to_stdout(args):
        print(f"report: {target}")
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise InputError(f"{path}: cannot be read ({why}), expected a record of compare; check the path") from None
