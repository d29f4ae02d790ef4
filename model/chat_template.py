"""Chat templates as models ship them: Jinja, run where it can neither write nor reach the machine, nor run for ever."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vkbackend.errors import InputError, shown

SECONDS = 5  # of processor time; a template of 20,000 characters takes a tenth of one
MEMORY = 512 << 20  # bytes of address space, the interpreter's included
CHARACTERS = 16 << 20  # of the prompt
_PATIENCE = 12  # the machine may be busy: seconds waited for each second of processor time
_SANDBOX = Path(__file__).with_name("chat_sandbox.py")
_PLAIN = "generate from plain text"


def render(template: str, messages: Sequence[Mapping[str, Any]], where: str, **variables: Any) -> str:
    """The prompt text of ``messages``; ``where`` names the template's origin in errors, ``variables`` are JSON values.

    Runs in a process of its own (`model.chat_sandbox` has its environment and its limits). Raises InputError when the
    template is no Jinja, refuses the messages, fails on them, or passes a limit.
    """
    request: dict[str, Any] = {"seconds": SECONDS, "memory": MEMORY, "characters": CHARACTERS, "template": template}
    request["variables"] = {"messages": [dict(message) for message in messages], **variables}
    # -P: the script's folder holds modules named like others'.
    command = [sys.executable, "-P", str(_SANDBOX)]
    try:
        child = subprocess.run(
            command, input=json.dumps(request).encode(), capture_output=True, timeout=SECONDS * _PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise _too_slow(where) from None
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):  # the kernel's answer to the soft and the hard limit
        raise _too_slow(where)
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        last = (child.stderr.decode(errors="replace").split("\n")[-2:] or [""])[0]
        raise InputError(
            f"{where}: the chat template ends its process with code {child.returncode} ({shown(last)}); {_PLAIN}"
        ) from None
    if "text" in answer:
        text: str = answer["text"]
        return text
    raise _error(where, answer)


def _error(where: str, answer: Mapping[str, Any]) -> InputError:
    if "refused" in answer:
        return InputError(
            f"{where}: the chat template refuses the messages: {_line(answer['refused'])}; change the messages"
        )
    if "syntax" in answer:
        return InputError(
            f"{where}: the chat template is not valid Jinja at line {answer['line']}: {_line(answer['syntax'])}; "
            f"convert the model again, or {_PLAIN}"
        )
    if "memory" in answer:
        return InputError(f"{where}: the chat template needs more than {MEMORY >> 20} MiB of memory; {_PLAIN}")
    if "too_long" in answer:
        return InputError(f"{where}: the chat template gives more than {CHARACTERS} characters; {_PLAIN}")
    return InputError(
        f"{where}: the chat template fails on these messages: {_line(answer['failed'])}; "
        f"give each message a role and a content, or {_PLAIN}"
    )


def _too_slow(where: str) -> InputError:
    return InputError(f"{where}: the chat template runs for more than {SECONDS} s; {_PLAIN}")


def _line(text: str) -> str:
    return shown(" ".join(text.split()).rstrip("."))
