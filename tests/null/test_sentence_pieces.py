"""SentencePiece vocabularies with scores, made here: merges, ties, bytes, spaces, special tokens, round trips."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokenizer import Tokenizer
from vkbackend.errors import InputError

SPACE = "\u2581"
SPECIAL = {"<unk>": 2, "<s>": 3, "</s>": 3, "<|user|>": 3, "[tool]": 4}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Scores as trainers write them: the earlier found, the higher.
WORDS = {
    "ab": -1.0,
    "bc": -2.0,
    "abc": -3.0,
    f"{SPACE}a": -4.0,
    SPACE * 2: -5.0,
    SPACE * 4: -6.0,
    "cd": -2.0,
    "\u4e16b": -7,
}
CHARACTERS = {c: -100.0 - i for i, c in enumerate([*"abcd", SPACE, "\u4e16", "e"])}


def make(words: dict[str, float] | None = None, **changed: Any) -> Tokenizer:
    """Ids: the special tokens, 256 bytes, then ``words`` (default WORDS), then CHARACTERS."""
    pieces = (WORDS if words is None else words) | CHARACTERS
    kv = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*SPECIAL, *BYTES, *pieces],
        "tokenizer.ggml.scores": [0.0] * (len(SPECIAL) + 256) + list(pieces.values()),
        "tokenizer.ggml.token_type": [*SPECIAL.values(), *[6] * 256, *[1] * len(pieces)],
        **{key if "." in key else f"tokenizer.ggml.{key}": value for key, value in changed.items()},
    }
    return Tokenizer({key: value for key, value in kv.items() if value is not None}, "m.gguf")


def pieces(tokenizer: Tokenizer, text: str, **how: Any) -> list[str]:
    return [tokenizer.tokens[i] for i in tokenizer.encode(text, **{"add_bos": False, **how})]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # ab (-1) before bc and cd (-2), and abc (-3) only where cd has not taken the c
        ("babcd", [SPACE, "b", "ab", "cd"]),
        ("babce", [SPACE, "b", "abc", "e"]),
        # bc and cd have the same score: the left one, and what it leaves is alone
        ("bcd", [SPACE, "bc", "d"]),
        ("a b", [f"{SPACE}a", SPACE, "b"]),
        # ab is taken before the space and a
        ("ab", [SPACE, "ab"]),
        # five spaces with the one put before: pairs from the left, then pairs of pairs
        ("    e", [SPACE * 4, SPACE, "e"]),
        ("", []),
        ("\u4e17", [SPACE, "<0xE4>", "<0xB8>", "<0x97>"]),
        ("\u4e16b\n", [SPACE, "\u4e16b", "<0x0A>"]),
        ("a<s>a[tool] a", [f"{SPACE}a", "<s>", f"{SPACE}a", "[tool]", SPACE, f"{SPACE}a"]),
    ],
)
def test_pieces_by_hand(text: str, expected: list[str]) -> None:
    assert pieces(make(), text) == expected


def test_the_first_and_the_last_token() -> None:
    assert pieces(make(), "e", add_bos=None) == ["<s>", SPACE, "e"], "llama.cpp's default for these vocabularies"
    assert pieces(make(add_bos_token=False), "e", add_bos=None) == [SPACE, "e"]
    ending = make(add_eos_token=True)
    assert pieces(ending, "e", add_bos=None, add_eos=True) == ["<s>", SPACE, "e", "</s>"]
    assert pieces(ending, "e", add_bos=None) == ["<s>", SPACE, "e"]
    assert (ending.bos, ending.eos, ending.eog) == (1, 2, {2})


def test_without_a_space_before_the_text() -> None:
    assert pieces(make(add_space_prefix=False), "a<s>a") == ["a", "<s>", "a"]


def test_control_tokens_are_text_where_they_are_not_trusted() -> None:
    tokenizer = make()
    assert pieces(tokenizer, "<s>", parse_special=False) == [SPACE, "<0x3C>", "<0x73>", "<0x3E>"]
    assert pieces(tokenizer, "[tool]", parse_special=False) == ["[tool]"]


def test_phi_3_takes_the_white_space_after_its_special_tokens() -> None:
    phi = make(**{"general.name": "Phi-3 mini"})
    assert pieces(phi, "<|user|> \n\ta") == ["<|user|>", f"{SPACE}a"]
    assert pieces(phi, "<s>  a") == ["<s>", SPACE * 2, f"{SPACE}a"], "not after these"
    assert pieces(make(), "<|user|> a") == ["<|user|>", SPACE, f"{SPACE}a"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([*"abcde ", "  ", "\u4e16", "\U0001f600", "\u0301", "\n", "<s>", "[tool]", "\0"])).map(
        "".join
    )
)
def test_any_text_comes_back_whole_and_in_a_stream(text: str) -> None:
    tokenizer = make()
    ids = tokenizer.encode(text, add_bos=False)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream(skip_control=False, begins=True)
    parts = [stream.add(i) for i in ids]
    assert all("\ufffd" not in part for part in parts)
    assert "".join(parts) + stream.finish() == text


def test_a_stream_holds_back_half_a_character_and_keeps_the_space_of_a_continuation() -> None:
    tokenizer = make()
    stream = tokenizer.stream()
    ids = tokenizer.encode("a\u4e17b", add_bos=False)
    assert [stream.add(i) for i in ids] == [" a", "", "", "\u4e17", "b"]
    assert stream.add(ids[1]) == ""
    assert stream.finish() == "\ufffd"


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.sampled_from(f"abc {SPACE}"), max_size=40),
    words=st.dictionaries(
        st.text(st.sampled_from(f"abc{SPACE}"), min_size=2, max_size=4), st.sampled_from([-1, -2, -3])
    ),
)
def test_merges_are_those_of_the_rule_applied_literally(text: str, words: dict[str, float]) -> None:
    """The best-scored pair of neighbours, the leftmost of equals, until none is left: without heap, cache or words."""
    tokenizer = make(dict(words))
    known = words | CHARACTERS
    parts = list(f" {text}".replace(" ", SPACE)) if text else []
    while pairs := [(-known[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in known]:
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    assert pieces(tokenizer, text) == parts


def test_refusals() -> None:
    with pytest.raises(InputError) as error:
        make(scores=[float("nan")] + [0.0] * (len(make()) - 1))
    assert str(error.value) == ("m.gguf: key tokenizer.ggml.scores has NaN, expected numbers; convert the model again")
    bare = Tokenizer({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", SPACE, "a"]}, "m.gguf")
    with pytest.raises(InputError) as error:
        bare.encode("a\u00e9")
    assert str(error.value) == (
        "m.gguf: key tokenizer.ggml.tokens has no token for byte 0xc3, which the text needs; convert the model again "
        "with its whole vocabulary"
    )
    assert bare.left_out("a\u00e9") == frozenset(), "nothing is left out silently, nor told to be"
