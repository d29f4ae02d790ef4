"""Generation without a device: the loop on a made session, stop texts, the options' errors by full text."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabulary import make

from harness import cli, generate, prompts
from harness.cli import main
from model.generate import StopStrings, continuation
from model.sampling import Sampler, SamplingParams
from vkbackend.errors import InputError

Captured = pytest.CaptureFixture[str]


class Counting:
    """A session whose logits favour the token after the last one, of ten."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.downloads = 0

    def prompt(self, tokens: Sequence[int], want: str) -> None:
        self.ran += tokens

    @property
    def n_past(self) -> int:
        return len(self.ran)

    def rewind(self, n_past: int) -> None:
        del self.ran[n_past:]

    def decode(self, token: int) -> int:
        return self.decode_ahead(token, 1)[0]

    def decode_ahead(self, token: int, most: int) -> list[int]:
        """Three at once where as many are asked for."""
        steps = range(min(3, most))
        self.ran += [(token + step) % 10 for step in steps]
        return [(token + step + 1) % 10 for step in steps]

    def candidates(self, k: int) -> Any:
        if not k:
            return None
        self.asked = k
        following = (self.ran[-1] + 1) % 10
        return np.array([following]), np.ones(1, np.float32)

    def last_logits(self) -> Any:
        self.downloads += 1
        logits = np.zeros(10, np.float32)
        logits[(self.ran[-1] + 1) % 10] = 1.0
        return logits


def tokens_of(session: Counting, sampler: Sampler | None, count: int) -> list[int]:
    loop = continuation(session, [7, 8], sampler)  # type: ignore[arg-type]
    return [next(loop) for _ in range(count)]


def test_the_device_chooses_where_nothing_touches_the_logits() -> None:
    session = Counting()
    assert tokens_of(session, None, 4) == [9, 0, 1, 2]
    assert session.ran == [7, 8, 9, 0, 1] and session.downloads == 0


def test_closing_takes_back_what_was_not_given_and_nothing_else() -> None:
    session = Counting()
    loop = continuation(session, [7, 8], None)  # type: ignore[arg-type]
    assert [next(loop) for _ in range(3)] == [9, 0, 1] and session.n_past == 5
    loop.close()
    assert session.ran == [7, 8, 9, 0]
    other = continuation(session, [3], None)  # type: ignore[arg-type]
    assert [next(other) for _ in range(2)] == [4, 5]
    session.rewind(0)
    session.prompt([1, 2, 3], "none")  # used for something else meanwhile
    other.close()
    assert session.ran == [1, 2, 3]


def test_the_host_chooses_with_the_prompt_among_the_repeated() -> None:
    session = Counting()
    assert tokens_of(session, Sampler(SamplingParams()), 4) == [9, 0, 1, 2]
    assert session.ran == [7, 8, 9, 0, 1] and session.downloads == 4
    # Each choice but the first would repeat a token: 0 to 6 are new, and 7 and 8 come no more.
    new = tokens_of(Counting(), Sampler(SamplingParams(presence_penalty=2.0)), 9)
    assert new[:8] == [9, 0, 1, 2, 3, 4, 5, 6] and new[8] == 7
    assert tokens_of(Counting(), Sampler(SamplingParams(logit_bias={9: -np.inf})), 3) == [0, 1, 2]


def test_the_device_finds_the_likeliest_where_they_decide() -> None:
    session = Counting()
    assert tokens_of(session, Sampler(SamplingParams(temperature=1.0, top_k=5)), 3) == [9, 0, 1]
    assert session.downloads == 0 and session.asked == 5


@settings(max_examples=500, deadline=None)
@given(
    pieces=st.lists(st.text(st.sampled_from("ab\u4e16"), max_size=4), max_size=12),
    stops=st.lists(st.text(st.sampled_from("ab\u4e16"), min_size=1, max_size=4), max_size=3),
)
def test_shown_text_ends_before_the_first_stop_and_never_shows_part_of_one(pieces: list[str], stops: list[str]) -> None:
    stopping, shown, came = StopStrings(stops), "", ""
    for piece in pieces:
        shown += stopping.add(piece)
        came += piece
        first = min((i for stop in stops if (i := came.find(stop)) >= 0), default=-1)
        if first >= 0:
            assert stopping.found and shown == came[:first]
            assert stopping.add("more") + stopping.finish() == ""
            return
        held = came[len(shown) :]
        assert came.startswith(shown)
        # Nothing is held that no stop begins with, and nothing shown that could still be one's beginning.
        assert held == "" or any(stop.startswith(held) for stop in stops)
        assert not any(
            shown.endswith(stop[:n]) and stop[n:].startswith(held) for stop in stops for n in range(1, len(stop))
        )
    assert shown + stopping.finish() == came


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "no text was given, expected one to continue; give it with -p"),
        (["-p", "x", "--stop", ""], "a stop text is empty, expected at least one character; give some text"),
        (["-p", "x", "--system", "y"], "--system was given without --chat, expected both; add --chat"),
        (["-p", ""], "the prompt is empty, expected at least one token; give some text with -p"),
        (["-p", "x", "--repeat-penalty", "-1"], "repeat penalty is -1.0: give a number above 0 (1 changes nothing)"),
        (
            ["-p", "x", "--logit-bias", "2048+1"],
            "logit bias of token 2048: the vocabulary has no such token; give ids from 0 to 2047",
        ),
        *(
            (
                ["-p", "x", "--logit-bias", wrong],
                f"argument --logit-bias: found '{wrong}', expected a token id, + or -, and a number, as in 15+1.5 or "
                "15-inf; see `latentvk generate --help`",
            )
            for wrong in ("5", "5+", "x-1", "+1", "5=3", "\u0665-1")
        ),
        (
            ["-p", "x", "--chat-template-kwargs", "[1]"],
            '--chat-template-kwargs: found no object, expected one such as {"enable_thinking": false}; correct it',
        ),
        (
            ["-p", "x", "--chat-template-kwargs", "{"],
            "--chat-template-kwargs: is no JSON (Expecting property name enclosed in double quotes: line 1 column 2 "
            "(char 1)), expected JSON; correct it",
        ),
        (
            ["-p", "x", "--chat-template", "absent.jinja"],
            "absent.jinja: cannot be read (No such file or directory), expected a file of UTF-8 text; check the path",
        ),
    ],
)
def test_refused_options(
    argv: list[str], line: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *argv]) == 2
    assert capsys.readouterr() == ("", f"latentvk: error: {line}\n")


def prompt_text(*argv: str, **vocabulary: Any) -> str:
    """The prompt that the command would run, as text with its control tokens."""
    tokenizer = make(**vocabulary)
    args = cli.build_parser("generate", generate).parse_args(list(argv))  # type: ignore[arg-type]
    return tokenizer.decode(prompts.prompt_tokens(tokenizer, args))


def test_conversations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{{ mood }}"
    chat = {"chat_template": template}
    assert prompt_text("-p", "hi", "--chat", **chat) == "<|user|>hi"
    assert prompt_text("-p", "hi", "--chat", "--system", "be", **chat) == "<|system|>be<|user|>hi"
    turns = tmp_path / "turns.json"
    turns.write_text(json.dumps([{"role": "user", "content": "\u4e16"}, {"role": "assistant", "content": "b"}]))
    assert prompt_text("-p", "c", "--messages", str(turns), **chat) == "<|user|>\u4e16<|assistant|>b<|user|>c"
    assert prompt_text("--messages", str(turns), **chat) == "<|user|>\u4e16<|assistant|>b"
    assert prompt_text("-p", "hi", "--chat-template-kwargs", '{"mood": "calm"}', **chat) == "<|user|>hicalm"
    other = tmp_path / "other.jinja"
    other.write_text("{{ messages[0].content }}!")
    assert prompt_text("-p", "hi", "--chat-template", str(other)) == "hi!"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"from\r\nhere")))
    assert prompt_text("-p", "-") == "from\r\nhere"
    with pytest.raises(InputError) as error:
        other.write_text('{"role": "user"}')
        prompt_text("--messages", str(other))
    assert str(error.value) == (
        f'{other}: is no conversation, expected a list of messages such as {{"role": "user", "content": "..."}}; '
        "correct it"
    )


def test_a_chat_has_one_first_token() -> None:
    bos = {"ggml.add_bos_token": True}
    written = "{{ bos_token }}{{ messages[0].content }}"
    assert prompt_text("-p", "hi", "--chat", chat_template=written, **bos) == "<|bos|>hi"
    assert prompt_text("-p", "hi", "--chat", chat_template="{{ messages[0].content }}", **bos) == "<|bos|>hi"
    assert prompt_text("-p", "hi", "--chat", chat_template=written) == "<|bos|>hi"
    assert prompt_text("-p", "hi", **bos) == "<|bos|>hi"
