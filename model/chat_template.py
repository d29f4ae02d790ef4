"""Chat templates as models ship them: Jinja, run where it can neither write nor reach the machine."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vkbackend.errors import InputError, shown


class _Refusal(Exception):
    """What a template's ``raise_exception`` raises."""


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter would spell <, > and & as escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


class _Generation(Extension):
    """``{% generation %}`` marks a model's own words for training; here its body is just text."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def render(template: str, messages: Sequence[Mapping[str, Any]], where: str, **variables: Any) -> str:
    """The prompt text of ``messages``; ``where`` names the template's origin in errors.

    Environment as in Hugging Face's ``apply_chat_template`` (transformers 5, utils/chat_template_utils.py): blocks
    trimmed, loop controls, ``raise_exception``, ``strftime_now``, ``tojson`` without escapes, ``tools`` and
    ``documents`` none unless given. Raises InputError when the template is no Jinja, refuses the messages, or fails on
    them.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _now
    try:
        given = {"tools": None, "documents": None, **variables}
        return environment.from_string(template).render(messages=list(messages), **given)
    except _Refusal as refusal:
        raise InputError(
            f"{where}: the chat template refuses the messages: {_line(refusal)}; change the messages"
        ) from None
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"{where}: the chat template is not valid Jinja at line {error.lineno}: {_line(error)}; "
            "convert the model again, or generate from plain text"
        ) from None
    except Exception as error:  # a template is a program of the file's: it may fail in any way
        raise InputError(
            f"{where}: the chat template fails on these messages: {type(error).__name__}: {_line(error)}; "
            "give each message a role and a content, or generate from plain text"
        ) from None


def _line(error: Exception) -> str:
    return shown(" ".join(str(error).split()).rstrip("."))
