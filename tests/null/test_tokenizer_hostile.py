"""Vocabularies made to break a tokenizer: refused in one line, or read without harm."""

import math
import time
from typing import Any

import pytest

from model.pretokenizers import PRETOKENIZERS
from tests.null.small_vocabulary import TEXT, make, trained
from vkbackend.errors import InputError, quoted

N = len(trained("gpt-2")["tokenizer.ggml.tokens"])
AGAIN = "convert the model again"
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ggml.pre": ["glm4"]}, "ggml.pre is an array of 1, expected one of {known}; use another GGUF, or `latentvk "),
        (
            {"ggml.model": "\x1b" * 200},
            "ggml.model is '{escapes}'..., expected one of gpt2, gemma4 ",
        ),
        ({"ggml.tokens": []}, f"ggml.token_type has {N} entries, expected 0, one for each token; {AGAIN}"),
        ({"ggml.tokens": list(range(N))}, f"ggml.tokens is no list of strings, expected one; {AGAIN}"),
        ({"ggml.tokens": "a"}, f"ggml.tokens is no list of strings, expected one; {AGAIN}"),
        (
            {"ggml.tokens": ["x" * 10**6] * N},
            f"ggml.tokens has '{'x' * 120}'... as token 0 and as token {N - 1}, expected each text once; {AGAIN}",
        ),
        ({"ggml.token_type": [1.0] * N}, f"ggml.token_type is no list of whole numbers, expected one; {AGAIN}"),
        (
            {"ggml.token_type": [1] * (N + 1)},
            f"ggml.token_type has {N + 1} entries, expected {N}, one for each token; ",
        ),
        ({"ggml.scores": [0.0]}, f"ggml.scores has 1 entries, expected {N}, one for each token; {AGAIN}"),
        ({"ggml.bos_token_id": -1}, f"ggml.bos_token_id is -1, expected an id from 0 to {N - 1}; {AGAIN}"),
        ({"ggml.eos_token_id": N}, f"ggml.eos_token_id is {N}, expected an id from 0 to {N - 1}; {AGAIN}"),
        (
            {"ggml.eot_token_id": 2**64 - 1},
            f"ggml.eot_token_id is {2**64 - 1}, expected an id from 0 to {N - 1}; ",
        ),
        ({"ggml.eom_token_id": True}, f"ggml.eom_token_id is True, expected an id from 0 to {N - 1}; {AGAIN}"),
        ({"ggml.fim_pad_token_id": 0.5}, f"ggml.fim_pad_token_id is 0.5, expected an id from 0 to {N - 1}; {AGAIN}"),
        ({"ggml.merges": [1, 2]}, f"ggml.merges is no list of strings, expected one; {AGAIN}"),
    ],
)
def test_keys_of_the_wrong_kind(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make(**changed)
    expected = message.replace("{known}", ", ".join(sorted(PRETOKENIZERS))).replace("{escapes}", "\\x1b" * 120)
    assert str(caught.value).startswith(f"m.gguf: key tokenizer.{expected}")
    assert str(caught.value).isprintable()


def test_a_template_that_is_no_text() -> None:
    with pytest.raises(InputError) as caught:
        make(chat_template=["a"]).apply_chat_template([])
    assert str(caught.value) == f"m.gguf: key tokenizer.chat_template is no text, expected a Jinja template; {AGAIN}"


def test_scores_that_cannot_be_ordered() -> None:
    scores = [0.0] * len(PIECES)
    spm = {"ggml.model": "llama", "ggml.tokens": PIECES, "ggml.token_type": [2, 3, 3, *[6] * 256, 1]}
    spm |= {"ggml.bos_token_id": 1, "ggml.eos_token_id": 2, "ggml.eot_token_id": None}
    with pytest.raises(InputError) as caught:
        make(**spm, **{"ggml.scores": [*scores[1:], math.nan]})
    assert str(caught.value) == f"m.gguf: key tokenizer.ggml.scores has NaN, expected numbers; {AGAIN}"
    assert make(**spm, **{"ggml.scores": [*scores[1:], math.inf]}).encode("a", add_bos=False)[-1] == len(PIECES) - 1


@pytest.mark.parametrize("text", ["<0xZZ>", "<0x+1>", "<0x 1>", "xxxxxx", "<0x1>", "\u0661" * 6])
def test_byte_tokens_that_spell_no_byte(text: str) -> None:
    tokens = [*trained("gpt-2")["tokenizer.ggml.tokens"], text]
    types = [*trained("gpt-2")["tokenizer.ggml.token_type"], 6]
    assert make(**{"ggml.tokens": tokens, "ggml.token_type": types}).token_bytes(len(tokens) - 1) == b""


@pytest.mark.parametrize("number", [-(2**31), -1, 0, 7, 63, 2**31 - 1])
def test_token_types_that_do_not_exist(number: int) -> None:
    tokenizer = make(**{"ggml.token_type": [number] * N})
    assert tokenizer.decode(tokenizer.encode("ab")) == ""


@pytest.mark.parametrize("merge", ["", " ", "  ", "a", "a ", " a", "a b c", "\0", "q z" * 10_000, "\u4e16 \u754c"])
def test_merges_without_sense_are_refused(merge: str) -> None:
    with pytest.raises(InputError) as error:
        make(**{"ggml.merges": [merge]})
    assert str(error.value) == (
        f"m.gguf: key tokenizer.ggml.merges entry 0 is {quoted(merge)}, expected two tokens of the vocabulary whose "
        "union is one too; convert the model again"
    )


def test_of_merges_that_come_twice_the_first_counts() -> None:
    merges = trained("gpt-2")["tokenizer.ggml.merges"]
    twice = make(**{"ggml.merges": [*merges, *reversed(merges)]})
    assert [twice.encode(text) for text in TEXT] == [make().encode(text) for text in TEXT]


def test_a_vocabulary_of_control_tokens_alone_takes_no_time() -> None:
    """Each is looked for in the text; one after the other, not all against each place."""
    tokens = [f"<|{i}|>" for i in range(100_000)]
    keys = {"ggml.tokens": tokens, "ggml.token_type": [3] * len(tokens), "ggml.eos_token_id": 0, "ggml.merges": []}
    tokenizer = make(**keys)
    started = time.process_time()
    assert tokenizer.encode("<|99999|><|0|>" * 50, add_bos=False) == [99_999, 0] * 50
    assert time.process_time() - started < 10
