"""`latentvk tokenize`: the token ids of texts, for any GGUF that carries a tokenizer, whatever its architecture."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import options
from vkbackend.errors import InputError

if TYPE_CHECKING:
    from model.tokenizer import Tokenizer

HELP = "print the token ids of texts, as llama.cpp would have them"
EXAMPLE = 'latentvk tokenize -p "The history of" -p "the Lord"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    add = parser.add_argument
    add(
        "-p",
        "--prompt",
        dest="texts",
        action="append",
        default=[],
        type=lambda text: ("-p", text),
        metavar="TEXT",
        help="a text, exactly as given ('-': read standard input); may be repeated",
    )
    add(
        "--file",
        dest="texts",
        action="extend",
        nargs="+",
        type=lambda name: ("--file", name),
        metavar="F",
        help="files of UTF-8 text, every byte of them ('-': standard input); each is a text of its own",
    )
    add("--no-bos", action="store_true", help="leave out the tokens that the model wants around a text")
    add("--no-parse-special", action="store_true", help="read the spelling of a control token as plain text")


def run(args: argparse.Namespace) -> int:
    from harness.running import open_gguf
    from model.tokenizer import Tokenizer

    if not args.texts:
        raise InputError("no text was given, expected at least one; give it with -p or --file")
    texts = [read_text(kind, value) for kind, value in args.texts]
    tokenizer = Tokenizer.from_gguf(open_gguf(args))
    lists = []
    for text in texts:
        warn_left_out(tokenizer, text)
        lists.append(
            tokenizer.encode(
                text,
                add_bos=False if args.no_bos else None,
                parse_special=not args.no_parse_special,
                add_eos=not args.no_bos,
            )
        )
    if not options.json_to_stdout(args):
        for tokens in lists:
            print(json.dumps(tokens))
    options.emit_json(args, lists)
    return 0


def read_text(kind: str, value: str) -> str:
    """The text of one -p or --file. Raises InputError for a file that cannot be read or is no UTF-8."""
    if value != "-" and kind == "-p":
        return value
    where = "standard input" if value == "-" else value
    try:
        data = sys.stdin.buffer.read() if value == "-" else Path(value).read_bytes()
    except OSError as error:
        raise InputError(
            f"{where}: cannot be read ({error.strerror or error}), expected a file of UTF-8 text; check the path"
        ) from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: byte 0x{data[error.start]:02x} at offset {error.start} is no UTF-8, expected UTF-8 text; "
            "convert the file"
        ) from None


def warn_left_out(tokenizer: "Tokenizer", text: str) -> None:
    """Say on standard error which bytes of a text have no token: they are left out, as llama.cpp leaves them out."""
    missing = sorted(tokenizer.left_out(text))
    if missing:
        shown = ", ".join(f"0x{byte:02x}" for byte in missing)
        print(
            f"latentvk: warning: {tokenizer.where} has no token for {shown}: what the text has of them is left out",
            file=sys.stderr,
        )
