"""The tokenizer on a small vocabulary trained here: round trips, special tokens, streaming, templates, refusals."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabulary import BYTE_LEVEL, SPECIAL, TEXT, engine_of, make, plain, trained
from tokenizers import Regex, pre_tokenizers

from model.byte_pairs import BYTE_CHARACTERS
from model.pretokenizers import PRETOKENIZERS
from vkbackend.errors import InputError


@settings(max_examples=200, deadline=None)
@given(text=st.text(), pre=st.sampled_from(BYTE_LEVEL), parse_special=st.booleans())
def test_any_text_comes_back(text: str, pre: str, parse_special: bool) -> None:
    tokenizer = plain(pre)
    ids = tokenizer.encode(text, add_bos=False, parse_special=parse_special)
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


@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_merges_are_those_of_the_trained_tokenizer(pre: str) -> None:
    for text in TEXT[:2]:
        ids = plain(pre).encode(text, add_bos=False)
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
    for pattern in PRETOKENIZERS[pre].patterns:
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
    ours = pre_tokenizers.Split(Regex(PRETOKENIZERS["gpt-2"].patterns[0]), "isolated").pre_tokenize_str(text)
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str(text)
    assert [span for _, span in ours] == [span for _, span in theirs]


@pytest.mark.parametrize("pre", [pre for pre in BYTE_LEVEL if pre != "superbpe"])  # that one counts digits to the end
def test_long_runs_take_time_in_proportion(pre: str) -> None:
    tokenizer = plain(pre)
    n = 20_000
    for text in (" " * n + "x", "a" * n, "1" * n, "!" * n, "\n" * n, "\u4e16" * n, " \n" * (n // 2), "aB" * (n // 2)):
        started = time.process_time()
        tokenizer.encode(text)
        # Linear ones take some hundredths of a second; one step for each pair of places would be 4e8.
        assert time.process_time() - started < 1


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
    bare = {"ggml.bos_token_id": None, "ggml.add_bos_token": True}
    assert make(**bare).encode("a") == [11, *a], "llama.cpp's default"
    assert make("glm4", **bare).encode("a") == a, "GLM has none"


def test_end_token_known_by_its_name() -> None:
    tokens = trained("gpt-2")["tokenizer.ggml.tokens"]
    tokenizer = make(**{"ggml.tokens": [*tokens[:-1], "<|observation|>"]})
    assert len(tokens) - 1 in tokenizer.eog


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"ggml.model": "bert"},
            "m.gguf: key tokenizer.ggml.model is 'bert', expected one of gpt2, gemma4 (byte-pair encoding) and llama "
            "(SentencePiece with scores); use another GGUF, or `latentvk logits` and `bench`, which take token ids",
        ),
        (
            {"ggml.tokens": None},
            "m.gguf: key tokenizer.ggml.tokens is missing, expected a vocabulary; convert the model again with its "
            "tokenizer",
        ),
        (
            {"ggml.pre": "sesame"},
            f"m.gguf: key tokenizer.ggml.pre is 'sesame', expected one of {', '.join(sorted(PRETOKENIZERS))}; use "
            "another GGUF, or `latentvk logits` and `bench`, which take token ids",
        ),
        (
            {"ggml.token_type": [1, 1]},
            "m.gguf: key tokenizer.ggml.token_type has 2 entries, expected {n}, one for each token; "
            "convert the model again",
        ),
        (
            {"ggml.merges": 3},
            "m.gguf: key tokenizer.ggml.merges is no list of strings, expected one; convert the model again",
        ),
        *(
            (
                {"ggml.merges": [merge]},
                f"m.gguf: key tokenizer.ggml.merges entry 0 is {merge!r}, expected two tokens of the vocabulary whose "
                "union is one too; convert the model again",
            )
            for merge in ("q z", "a \u4e16", "ab", "a ", "")
        ),
        (
            {"ggml.scores": ["a"]},
            "m.gguf: key tokenizer.ggml.scores is no list of numbers, expected one; convert the model again",
        ),
        (
            {"ggml.add_bos_token": 1},
            "m.gguf: key tokenizer.ggml.add_bos_token is 1, expected true or false; convert the model again",
        ),
        (
            {"ggml.tokens": ["a", "b", "a"], "ggml.token_type": None},
            "m.gguf: key tokenizer.ggml.tokens has 'a' as token 0 and as token 2, expected each text once; convert the "
            "model again",
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


def test_a_byte_without_a_token_is_left_out_and_told() -> None:
    kv = trained("gpt-2")
    tokens = ["[gone]" if t == "#" else t for t in kv["tokenizer.ggml.tokens"]]
    merges = [m for m in kv["tokenizer.ggml.merges"] if "#" not in m]
    tokenizer = make(**{"ggml.tokens": tokens, "ggml.merges": merges})
    assert tokenizer.left_out("abc") == frozenset()
    assert tokenizer.left_out("a#c") == {0x23}
    assert tokenizer.encode("a#c") == tokenizer.encode("a") + tokenizer.encode("c")
    # What stands apart in the text does not merge either.
    left, right = merges[0].split(" ")
    assert len(tokenizer.encode(left + right)) == 1
    assert len(tokenizer.encode(f"{left}#{right}")) == 2
