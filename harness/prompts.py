"""What a command is given as text: options, standard input, files, a conversation; and the token ids of it."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vkbackend.errors import InputError

if TYPE_CHECKING:
    from model.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what is generated from."""
    add = parser.add_argument
    add("-p", "--prompt", metavar="TEXT", help="the text to continue ('-': read standard input)")
    group = parser.add_argument_group("conversations")
    add = group.add_argument
    add("--chat", action="store_true", help="put the text into the model's chat template as a user's message")
    add("--system", metavar="TEXT", help="with --chat: a system message before it")
    add(
        "--messages",
        metavar="FILE",
        help='a conversation so far, as JSON: [{"role": "user", "content": "..."}, ...]; -p, if given, comes after it; '
        "implies --chat",
    )
    add("--chat-template", metavar="FILE", help="a Jinja template in place of the file's own; implies --chat")
    add(
        "--chat-template-kwargs",
        metavar="JSON",
        help="""values for the template, as '{"enable_thinking": false}'; implies --chat""",
    )


def prompt_tokens(tokenizer: "Tokenizer", args: argparse.Namespace) -> list[int]:
    """The prompt's token ids.

    Raises InputError for no or an empty prompt, a file that cannot be read, a conversation that is none, or a chat on
    a file without a template.
    """
    if args.prompt is None and args.messages is None:
        raise InputError("no text was given, expected one to continue; give it with -p")
    text = "" if args.prompt is None else read_text("-p", args.prompt)
    chat = args.chat or any(x is not None for x in (args.messages, args.chat_template, args.chat_template_kwargs))
    if args.system is not None and not chat:
        raise InputError("--system was given without --chat, expected both; add --chat")
    add_bos = None
    if chat:
        template = None if args.chat_template is None else read_text("--chat-template", args.chat_template)
        text = tokenizer.apply_chat_template(
            _conversation(args, text), template=template, **_template_kwargs(args.chat_template_kwargs)
        )
        # Most templates write the first token themselves: never two of them.
        if tokenizer.bos is not None and text.startswith(tokenizer.tokens[tokenizer.bos]):
            add_bos = False
    warn_left_out(tokenizer, text)
    tokens = tokenizer.encode(text, add_bos)
    if not tokens:
        raise InputError("the prompt is empty, expected at least one token; give some text with -p")
    return tokens


def read_text(option: str, value: str) -> str:
    """The text of one option: -p's value itself, any other's file, standard input for '-'.

    Raises InputError for a file that cannot be read or is no UTF-8.
    """
    if value != "-" and option == "-p":
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


def _conversation(args: argparse.Namespace, text: str) -> list[dict[str, Any]]:
    messages = [] if args.messages is None else _messages(args.messages)
    if args.system is not None:
        messages.insert(0, {"role": "system", "content": args.system})
    return messages if args.prompt is None else [*messages, {"role": "user", "content": text}]


def _messages(value: str) -> list[dict[str, Any]]:
    where = "standard input" if value == "-" else value
    found = _json(read_text("--messages", value), where)
    if not isinstance(found, list) or not all(isinstance(one, dict) and "role" in one for one in found):
        raise InputError(
            f'{where}: is no conversation, expected a list of messages such as {{"role": "user", "content": "..."}}; '
            "correct it"
        )
    return found


def _template_kwargs(value: str | None) -> dict[str, Any]:
    found = {} if value is None else _json(value, "--chat-template-kwargs")
    if not isinstance(found, dict):
        raise InputError(
            """--chat-template-kwargs: found no object, expected one such as {"enable_thinking": false}; correct it"""
        )
    return found


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: is no JSON ({error}), expected JSON; correct it") from None
