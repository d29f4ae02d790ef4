"""`latentvk tokenize`: the token ids of texts, for any GGUF that carries a tokenizer, whatever its architecture."""

import argparse
import json

from harness import options
from harness.prompts import read_text, warn_left_out
from vkbackend.errors import InputError

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
