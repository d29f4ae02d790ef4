"""The process in which a chat template runs. A template is a program that came with a file: Jinja's sandbox keeps it
from the machine, this process keeps it from taking all of its time and memory.

Started as a script by ``model.chat_template``, with its request on standard input and its answer on standard output,
both JSON. It imports nothing of this project, so that it starts fast.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Refusal(Exception):
    """What a template's ``raise_exception`` raises."""


def raise_exception(message: object) -> NoReturn:
    raise Refusal(str(message))


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter would spell <, > and & as escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


class Generation(Extension):
    """``{% generation %}`` marks a model's own words for training; here its body is just text."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def limit(kind: int, value: int) -> None:
    """Lower a limit; one that is lower already stays."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """``text``, or why there is none: ``refused``, ``syntax`` with ``line``, ``too_long``, ``memory``, ``failed``.

    Environment as in Hugging Face's ``apply_chat_template`` (transformers 5, utils/chat_template_utils.py): blocks
    trimmed, loop controls, ``raise_exception``, ``strftime_now``, ``tojson`` without escapes, ``tools`` and
    ``documents`` none unless given.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    variables = {"tools": None, "documents": None, **request["variables"]}
    pieces, left = [], request["characters"]
    try:
        for piece in environment.from_string(request["template"]).generate(**variables):
            pieces.append(piece)
            left -= len(piece)
            if left < 0:
                return {"too_long": True}
        return {"text": "".join(pieces)}
    except Refusal as refusal:
        return {"refused": str(refusal)}
    except jinja2.TemplateSyntaxError as error:
        return {"syntax": str(error), "line": error.lineno}
    except MemoryError:
        return {"memory": True}
    except Exception as error:  # a program may fail in any way
        return {"failed": f"{type(error).__name__}: {error}"}


def main() -> None:
    request = json.load(sys.stdin.buffer)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)  # no file is written; pipes have no size
    limit(resource.RLIMIT_CPU, request["seconds"])
    limit(resource.RLIMIT_AS, request["memory"])
    json.dump(answer(request), sys.stdout)


if __name__ == "__main__":
    main()
