"""Chat templates as models ship them: Jinja, run where it can neither write nor reach the machine."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vkbackend.errors import InputError


class _Refusal(Exception):
    """What a template's ``raise_exception`` raises."""


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message))


def render(template: str, messages: Sequence[Mapping[str, Any]], where: str, **variables: Any) -> str:
    """The prompt text of ``messages``; ``where`` names the template's origin in errors.

    Environment as in Hugging Face's ``apply_chat_template``: blocks trimmed, loop controls, ``raise_exception``,
    ``tojson`` that keeps non-ASCII text. Raises InputError when the template is no Jinja, refuses the messages, or
    fails on them.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.from_string(template).render(messages=list(messages), **variables)
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
    return " ".join(str(error).split()).rstrip(".")
