"""The tokenizer on a small vocabulary trained here: round trips, special tokens, streaming, templates, refusals."""

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from model.pretokenizers import PRETOKENIZERS
from model.tokenizer import BYTE_CHARACTERS, TokenType
from model.tokenizer import Tokenizer as OurTokenizer
from vkbackend.errors import InputError

TEXT = [
    "The quick brown fox jumps over the lazy dog. It's 1234567 o'clock; we'll see.\n\n  Then   more\ttext, and more.",
    "def f(x):\n    return x + 1  # na\u00efve caf\u00e9 \u4f60\u597d\u4e16\u754c \U0001f600\r\n",
] * 4
SPECIAL = ["<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<think>", "<|user|>!"]
TYPES = [TokenType.CONTROL] * 4 + [TokenType.USER_DEFINED, TokenType.CONTROL]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}\n"
    "<|{{ m.role }}|>\n{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@cache
def engine_of(pre: str) -> Tokenizer:
    """The library's own tokenizer, a vocabulary of 400 trained with the pre-tokenizer ``pre``."""
    engine = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in PRETOKENIZERS[pre]]
    engine.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    engine.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return engine


@cache
def trained(pre: str) -> dict[str, Any]:
    """The same as GGUF keys, with special tokens and a template."""
    model = json.loads(engine_of(pre).to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [" ".join(m) for m in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens + SPECIAL,
        "tokenizer.ggml.token_type": [1] * len(tokens) + [int(t) for t in TYPES],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
        "tokenizer.ggml.eot_token_id": len(tokens) + 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def make(pre: str = "gpt-2", **changed: Any) -> OurTokenizer:
    kv = {**trained(pre), **{f"tokenizer.{k}": v for k, v in changed.items()}}
    return OurTokenizer({k: v for k, v in kv.items() if v is not None}, "m.gguf")


@cache
def plain(pre: str) -> OurTokenizer:
    return make(pre)


@settings(max_examples=200, deadline=None)
@given(text=st.text(), pre=st.sampled_from(sorted(PRETOKENIZERS)), parse_special=st.booleans())
def test_any_text_comes_back(text: str, pre: str, parse_special: bool) -> None:
    tokenizer = plain(pre)
    ids = tokenizer.encode(text, parse_special=parse_special)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(
    text=st.lists(st.sampled_from([*SPECIAL, *"\u4e16\U0001f600a\n", "\x00", "e\u0301", "<|", "<thin"])).map("".join)
)
def test_streaming_gives_whole_characters_and_the_whole_text(text: str) -> None:
    tokenizer = plain("glm4")
    stream = tokenizer.stream(skip_control=False)
    ids = tokenizer.encode(text)
    parts = [stream.add(i) for i in ids]
    assert all("\ufffd" not in part for part in parts)
    assert "".join(parts) + stream.finish() == text


def test_stream_holds_back_half_a_character() -> None:
    tokenizer = make("gpt-2", **{"ggml.merges": []})
    stream = tokenizer.stream()
    ids = tokenizer.encode("\u4e16!")
    assert len(ids) == 4
    assert [stream.add(i) for i in ids] == ["", "", "\u4e16", "!"]
    assert stream.add(ids[0]) == ""
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize("pre", PRETOKENIZERS)
def test_merges_are_those_of_the_trained_tokenizer(pre: str) -> None:
    for text in TEXT[:2]:
        ids = plain(pre).encode(text)
        assert ids == engine_of(pre).encode(text).ids
        assert len(ids) < len(text) * 0.8


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "It's 12345 ok?!\n\n x", ["It", "'s", " 12345", " ok", "?!", "\n\n", " x"]),
        ("glm4", "It'S 12345 ok?!\n\n x", ["It", "'S", " ", "123", "45", " ok", "?!\n\n", " x"]),
        ("deepseek-v3", "a1234 b\u4f60\u597dc.d !\n", ["a", "123", "4", " b", "\u4f60\u597d", "c", ".d", " !\n"]),
        ("deepseek-llm", "a b1234, \u4f60c\n ", ["a", " b", "1234", ",", " ", "\u4f60", "c", "\n", " "]),
        ("default", "it's $5 12345", ["it", "'", "s", " ", "$", "5", " ", "123", "45"]),
    ],
)
def test_words(pre: str, text: str, words: list[str]) -> None:
    pieces = [text]
    for pattern in PRETOKENIZERS[pre]:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        pieces = [word for piece in pieces for word, _ in split.pre_tokenize_str(piece)]
    assert pieces == words


@settings(max_examples=300, deadline=None)
@given(
    st.text(
        st.sampled_from(" \t\r\n\u00a0\u3000'sStTreRE019\u0661\u00b2aZ\u00e9\u4e16\u0301.,!_$+\U0001f600"), max_size=30
    )
)
def test_gpt2_words_are_the_librarys_own(text: str) -> None:
    ours = pre_tokenizers.Split(Regex(PRETOKENIZERS["gpt-2"][0]), "isolated").pre_tokenize_str(text)
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str(text)
    assert [span for _, span in ours] == [span for _, span in theirs]


def test_byte_characters_are_the_librarys() -> None:
    assert sorted(BYTE_CHARACTERS.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    for byte in range(128):
        [(word, _)] = pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(chr(byte))
        assert word == BYTE_CHARACTERS[byte]


def test_control_tokens_only_where_asked() -> None:
    tokenizer = plain("gpt-2")
    n = len(trained("gpt-2")["tokenizer.ggml.tokens"]) - len(SPECIAL)
    user, user_mark, think = n + 2, n + 5, n + 4
    assert tokenizer.encode("<|user|>a")[0] == user
    assert tokenizer.encode("<|user|>!")[0] == user_mark, "the longest match wins"
    assert user not in tokenizer.encode("<|user|>a", parse_special=False)
    assert tokenizer.encode("<think>", parse_special=False) == [think], "user-defined tokens are always parsed"
    assert tokenizer.decode([user, think]) == "<|user|><think>"
    assert tokenizer.decode([user, think], skip_control=True) == "<think>"
    assert tokenizer.stream().add(user) == ""


def test_bos_eos_and_end_tokens() -> None:
    tokenizer = make()
    bos = trained("gpt-2")["tokenizer.ggml.bos_token_id"]
    assert (tokenizer.bos, tokenizer.eos) == (bos, bos + 1)
    assert tokenizer.eog == {bos + 1, bos + 2}
    a = tokenizer.encode("a")
    assert tokenizer.encode("a", add_bos=True) == [bos, *a]
    adding = make(**{"ggml.add_bos_token": True})
    assert adding.encode("a") == [bos, *a]
    assert adding.encode("a", add_bos=False) == a
    assert adding.encode("") == [bos]
    assert len(tokenizer) == bos + len(SPECIAL)
    bare = make(**{"ggml.bos_token_id": None, "ggml.add_bos_token": True})
    assert bare.encode("a") == a


def test_end_token_known_by_its_name() -> None:
    tokens = trained("gpt-2")["tokenizer.ggml.tokens"]
    tokenizer = make(**{"ggml.tokens": [*tokens[:-1], "<|observation|>"]})
    assert len(tokens) - 1 in tokenizer.eog


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
            "m.gguf: key tokenizer.chat_template is missing, expected a template; generate from plain text instead",
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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"ggml.model": "llama"},
            "m.gguf: key tokenizer.ggml.model is 'llama', expected 'gpt2' (byte-level BPE); use another GGUF, or "
            "`latentvk logits` and `bench`, which take token ids",
        ),
        (
            {"ggml.tokens": None},
            "m.gguf: key tokenizer.ggml.tokens is missing, expected a byte-level BPE vocabulary; convert "
            "the model again with its tokenizer",
        ),
        (
            {"ggml.pre": "bloom"},
            "m.gguf: key tokenizer.ggml.pre is 'bloom', expected one of chatglm-bpe, deepseek-llm, "
            "deepseek-v3, default, "
            "glm4, gpt-2; use another GGUF, or `latentvk logits` and `bench`, which take token ids",
        ),
        (
            {"ggml.token_type": [1, 1]},
            "m.gguf: key tokenizer.ggml.token_type has 2 entries, expected {n}, one for each token; "
            "convert the model again",
        ),
        (
            {"ggml.merges": ["a b", "a \u4e16"]},
            "m.gguf: key tokenizer.ggml.merges entry 0 is 'a b', expected two tokens of the vocabulary "
            "whose union is one "
            "too; convert the model again",
        ),
        (
            {"ggml.eos_token_id": 9999},
            "m.gguf: key tokenizer.ggml.eos_token_id is 9999, expected an id from 0 to {last}; convert the model again",
        ),
    ],
)
def test_refused_files(changed: dict[str, Any], message: str) -> None:
    n = len(trained("gpt-2")["tokenizer.ggml.tokens"])
    with pytest.raises(InputError) as error:
        make(**changed)
    assert str(error.value) == message.format(n=n, last=n - 1)


def test_refused_text_and_ids() -> None:
    tokenizer = plain("gpt-2")
    with pytest.raises(InputError) as error:
        tokenizer.encode("ab\ud800")
    assert str(error.value) == "text has '\\ud800' at character 2, half of a surrogate pair; give valid Unicode"
    n = len(tokenizer)
    for token in (-1, n):
        with pytest.raises(InputError) as error:
            tokenizer.decode([token])
        assert str(error.value) == f"m.gguf: token {token} is outside the vocabulary; give ids from 0 to {n - 1}"


def test_a_byte_without_a_token_is_refused_not_dropped() -> None:
    kv = trained("gpt-2")
    tokens = ["[gone]" if t == "#" else t for t in kv["tokenizer.ggml.tokens"]]
    merges = [m for m in kv["tokenizer.ggml.merges"] if "#" not in m]
    tokenizer = make(**{"ggml.tokens": tokens, "ggml.merges": merges})
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"
    with pytest.raises(InputError) as error:
        tokenizer.encode("a#c")
    assert str(error.value) == (
        "m.gguf: key tokenizer.ggml.tokens has no token for byte 0x23, which the text needs; "
        "convert the model again with its whole vocabulary"
    )
