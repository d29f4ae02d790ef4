"""Chat templates that try to leave the sandbox, to run for ever or to take all memory: one line each, and soon."""

import resource
import time
from pathlib import Path
from typing import Any

import pytest

from model import chat_template
from model.chat_template import render
from vkbackend.errors import InputError

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
MEMORY = "m.gguf: the chat template needs more than 512 MiB of memory; generate from plain text"


def message(template: str) -> str:
    with pytest.raises(InputError) as caught:
        render(template, MESSAGES, "m.gguf")
    assert str(caught.value).isprintable()
    return str(caught.value)


def failing(what: str) -> str:
    return (
        f"m.gguf: the chat template fails on these messages: {what}; "
        "give each message a role and a content, or generate from plain text"
    )


@pytest.mark.parametrize(
    ("template", "attribute", "kind"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "__class__", "str"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "__init__", "type"),
        ("{{ lipsum.__globals__['os'].system('id') }}", "__globals__", "function"),
        ("{{ raise_exception.__globals__.sys.exit() }}", "__globals__", "function"),
        ("{{ dict.fromkeys.__self__.__mro__ }}", "__self__", "builtin_function_or_method"),
        ("{{ '{0.__class__.__mro__}'.format(messages) }}", "__class__", "list"),
        ("{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}", "_func", "Macro"),
        ("{{ messages.clear() }}", "clear", "list"),
        ("{{ messages[0].update(role='system') }}", "update", "dict"),
    ],
)
def test_ways_out_of_the_sandbox(template: str, attribute: str, kind: str) -> None:
    assert message(template) == failing(
        f"SecurityError: access to attribute '{attribute}' of '{kind}' object is unsafe"
    )


@pytest.mark.parametrize(
    "template", ["{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{% extends '/etc/passwd' %}"]
)
def test_other_files(template: str) -> None:
    assert message(template) == failing("TypeError: no loader for this environment specified")


def test_names_that_lead_nowhere() -> None:
    template = (
        "{{ ''|attr('__class__') }}{{ self._TemplateReference__context }}{{ config }}{{ messages.__init__ }}{{ os }}"
    )
    assert render(template, MESSAGES, "m.gguf") == ""


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10 ** 10 }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 'x'.center(10 ** 10) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ messages|tojson(indent=10 ** 9) }}",
        "{% set n = namespace(s='x') %}{% for i in range(100) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    ],
)
def test_memory_without_bound(template: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert message(template) == MEMORY
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB, of this process


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ lipsum(n=10 ** 7) }}",
        "{{ 9999999999 ** 9999999999 }}",  # one operation, in which no Python runs
    ],
)
def test_time_without_bound(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 1)
    started = time.monotonic()
    assert message(template) == "m.gguf: the chat template runs for more than 1 s; generate from plain text"
    assert time.monotonic() - started < 60


def test_output_without_bound() -> None:
    assert message("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}") == (
        "m.gguf: the chat template gives more than 16777216 characters; generate from plain text"
    )


def test_ranges_without_bound() -> None:
    assert message("{{ range(10 ** 9) }}") == failing(
        "OverflowError: Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000)"
    )


@pytest.mark.parametrize(
    "template",
    ["{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ " + "(" * 10**5 + " }}", "{% if 1 %}" * 3000],
)
def test_depth_without_bound(template: str) -> None:
    assert message(template).startswith(failing("RecursionError: maximum recursion depth exceeded").split(";")[0])


def test_what_a_template_says_is_shown_harmlessly() -> None:
    assert message("{{ raise_exception('\x1b]0;owned\x07' ~ 'x' * 1000) }}") == (
        f"m.gguf: the chat template refuses the messages: \\x1b]0;owned\\x07{'x' * 110}...; change the messages"
    )


def test_text_of_any_kind_passes_both_ways() -> None:
    odd = '\x00\x1b\u2028\ud800\U0001f600"\\'
    text = render("{{ messages[0].content }}|{{ extra.a[0] }}", [{"content": odd}], "m.gguf", extra={"a": [1.5]})
    assert text == f"{odd}|1.5"


def test_a_process_that_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    monkeypatch.setattr(chat_template, "_SANDBOX", script)
    script.write_text("raise SystemExit('no\x1b more')")
    assert message("x") == (
        "m.gguf: the chat template ends its process with code 1 (no\\x1b more); generate from plain text"
    )
    script.write_text("import os; os.abort()")
    assert message("x") == "m.gguf: the chat template ends its process with code -6 (); generate from plain text"
