"""Chat templates as Hugging Face's apply_chat_template runs them, and their refusals by full text."""

import pytest
from small_vocabulary import TEMPLATE, make

from vkbackend.errors import InputError


def test_chat_template() -> None:
    tokenizer = make()
    messages = [{"role": "user", "content": "hi \u4e16"}]
    text = tokenizer.apply_chat_template(messages)
    assert text == "<|bos|><|user|>\nhi \u4e16<|assistant|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=False).endswith("\u4e16")


def test_chat_template_variables_json_and_loop_controls() -> None:
    template = "{% for m in messages %}{% if m.skip %}{% continue %}{% endif %}{{ m | tojson }}{{ extra }}{% endfor %}"
    tokenizer = make(chat_template=template)
    text = tokenizer.apply_chat_template([{"skip": 1}, {"role": "\u4e16", "a": 1}], extra="!")
    assert text == '{"role": "\u4e16", "a": 1}!'


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (
            None,
            [],
            "m.gguf: key tokenizer.chat_template is missing, expected a template; generate from plain text instead, "
            "or give one with --chat-template",
        ),
        (
            TEMPLATE,
            [{"role": "system", "content": ""}],
            "m.gguf: the chat template refuses the messages: no system role; change the messages",
        ),
        (
            "a\n{% if %}",
            [],
            "m.gguf: the chat template is not valid Jinja at line 2: Expected an expression, got 'end of "
            "statement block'; "
            "convert the model again, or generate from plain text",
        ),
        (
            "{{ messages.append(1) }}",
            [],
            "m.gguf: the chat template fails on these messages: SecurityError: access to attribute 'append' of 'list' "
            "object is unsafe; give each message a role and a content, or generate from plain text",
        ),
        (
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            [],
            "m.gguf: the chat template fails on these messages: SecurityError: access to attribute "
            "'__class__' of 'str' "
            "object is unsafe; give each message a role and a content, or generate from plain text",
        ),
        (
            "{{ messages[0].content + 1 }}",
            [{"content": "x"}],
            "m.gguf: the chat template fails on these messages: TypeError: can only concatenate str (not "
            '"int") to str; '
            "give each message a role and a content, or generate from plain text",
        ),
    ],
)
def test_chat_template_refusals(template: str | None, messages: list[dict[str, str]], message: str) -> None:
    with pytest.raises(InputError) as error:
        make(chat_template=template).apply_chat_template(messages)
    assert str(error.value) == message


def test_json_is_not_escaped_for_html() -> None:
    tokenizer = make(chat_template="{{ messages | tojson }}|{{ tools | tojson(indent=1) }}")
    text = tokenizer.apply_chat_template([{"content": "<a> & 'b'"}], tools=[{"name": "f"}])
    assert text == '[{"content": "<a> & \'b\'"}]|[\n {\n  "name": "f"\n }\n]'


def test_what_templates_expect_of_their_surroundings() -> None:
    template = (
        "{% generation %}{% set inner = 1 %}{{ messages[0].content }}{% endgeneration %}"
        "{{ tools is none }}{{ documents is none }}{{ inner is defined }}{{ strftime_now('%Y') | length }}"
    )
    assert make(chat_template=template).apply_chat_template([{"content": "x"}]) == "xTrueTrueFalse4"


def test_a_template_of_its_own_for_tools_and_one_given() -> None:
    tokenizer = make(chat_template="plain", **{"chat_template.tool_use": "tools"})
    assert tokenizer.apply_chat_template([]) == "plain"
    assert tokenizer.apply_chat_template([], tools=[{"name": "f"}]) == "tools"
    assert tokenizer.apply_chat_template([], tools=[{"name": "f"}], template="given") == "given"


def test_a_template_that_is_no_text() -> None:
    with pytest.raises(InputError) as error:
        make(chat_template=[1]).apply_chat_template([])
    assert str(error.value) == (
        "m.gguf: key tokenizer.chat_template is no text, expected a Jinja template; convert the model again"
    )
