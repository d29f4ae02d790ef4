"""Chat templates against Hugging Face's renderer, on templates written here and, where at hand, on published ones.

LATENTVK_TEMPLATES names a folder of *.jinja files, such as llama.cpp's ``models/templates``.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from model.chat_template import render
from vkbackend.errors import InputError

render_theirs = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template

FOLDER = os.environ.get("LATENTVK_TEMPLATES", "")
PUBLISHED = {path.stem: path.read_text() for path in sorted(Path(FOLDER).glob("*.jinja"))} if FOLDER else {}
WRITTEN = {
    "turns": "{{ bos_token }}{% for m in messages %}\n  {%- if loop.first %}!{% endif %}\n<{{ m.role }}>"
    "{{ m.content }}\n{% endfor %}\n{% if add_generation_prompt %}<assistant>{% endif %}\n",
    "tools": "{% if tools %}{{ tools | tojson }}{{ tools | tojson(indent=2) }}{% endif %}{{ messages | tojson }}",
    "control": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content | trim }}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{% set x = m.content %}{{ x }}{% endgeneration %}{% endfor %}"
    "{{ x is defined }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    "{{ dict(a=1) | tojson }}",
    "refuses": "{% if messages | length > 1 %}{{ raise_exception('one message only') }}{% endif %}{{ eos_token }}",
    "absent": "{{ missing }}{{ messages[0].missing }}{{ documents is none }}",
}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi <b> & \"\u4e16\" 'x'"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello "},
        {"role": "assistant", "content": " Yes.\n"},
        {"role": "user", "content": "And?"},
    ],
    [
        {"role": "user", "content": "w"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "id": "abc123def", "function": {"name": "f", "arguments": {"x": 1, "y": "<&>"}}}
            ],
        },
        {"role": "tool", "content": "42", "name": "f", "tool_call_id": "abc123def"},
    ],
]
PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "does <f>", "parameters": PARAMETERS}}]


@pytest.mark.parametrize("name", [*WRITTEN, *PUBLISHED])
@pytest.mark.parametrize("conversation", range(len(CONVERSATIONS)))
def test_same_prompt(name: str, conversation: int) -> None:
    template, messages = (WRITTEN | PUBLISHED)[name], CONVERSATIONS[conversation]
    for tools in (None, TOOLS):
        for prompted in (True, False):
            given: dict[str, Any] = {"add_generation_prompt": prompted, "bos_token": "<s>", "eos_token": "</s>"}
            try:
                [[expected], _] = render_theirs([messages], tools=tools, chat_template=template, **given)
            except Exception:  # a template may fail in any way, and must then fail here too
                with pytest.raises(InputError):
                    render(template, messages, "m.gguf", tools=tools, **given)
            else:
                assert render(template, messages, "m.gguf", tools=tools, **given) == expected
