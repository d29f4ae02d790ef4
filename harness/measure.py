"""Measuring one path at one context on a session: prompt, score, first token, decoded tokens. `compare` and `bench`
use it.

The first prompt pass returns the logits of all positions and gives recall and perplexity. Where that pass was quick,
the prompt is then timed again without the logits, several times; where it was long, its own time is the sample and
the row says so (`prompt_scored`). Decoding is timed token by token from the same cached prompt, rewinding between
repeats.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal, Protocol

import numpy as np

from harness.results import Score
from model.tasks import Document, score_perplexity

Want = Literal["last", "all", "none"]
_LOGITS_BYTES = 64 * 2**20  # logits of at most this many bytes are asked for at once


class SessionLike(Protocol):
    """What measuring needs of model.engine.Session (tests use a fake)."""

    chunk: int
    cache_bytes: int

    def prompt(self, tokens: Sequence[int], want: Want) -> np.ndarray | None: ...

    def decode(self, token: int) -> int: ...

    def rewind(self, n_past: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How much to measure: decoded tokens a repeat, repeats, warm-up tokens, and the seconds that repeated prompts
    may take."""

    n_decode: int = 16
    repeats: int = 3
    warmup: int = 2
    repeat_prompt_seconds: float = 2.0


@dataclass(frozen=True)
class PromptTimes:
    seconds: tuple[float, ...]
    first_token_seconds: tuple[float, ...]
    scored: bool
    score: Score | None


@dataclass(frozen=True)
class DecodeTimes:
    """seconds[i] was spent on the token decoded with contexts[i] rows in the cache, its own included."""

    seconds: tuple[float, ...]
    contexts: tuple[int, ...]
    warmup_seconds: tuple[float, ...]


Step = Callable[[str, int], None]  # (what is going on, tokens done since the last call)


def measure_prompt(
    session: SessionLike, tokens: np.ndarray, document: Document | None, n_vocab: int, plan: Plan, step: Step
) -> PromptTimes:
    """Run and time a prompt of int32 [T] `tokens` from an empty cache; with a `document` its score comes from the
    first pass.

    Afterwards the cache holds the prompt.
    """
    step("warm-up", 0)
    session.prompt(tokens[: session.chunk].tolist(), "none")
    session.rewind(0)
    started = perf_counter()
    score, last = _scored_pass(session, tokens, document, n_vocab, step)
    scored_seconds = perf_counter() - started
    np.argmax(last)
    scored_first = perf_counter() - started
    if document is not None and scored_seconds > plan.repeat_prompt_seconds:
        return PromptTimes((scored_seconds,), (scored_first,), True, score)

    seconds = [] if document is not None else [scored_seconds]
    first_seconds = [] if document is not None else [scored_first]
    # The first pass may have been slow for reasons that do not return, so one more is always taken after a scored pass.
    while len(seconds) < plan.repeats and (not seconds or sum(seconds) + seconds[-1] <= plan.repeat_prompt_seconds):
        session.rewind(0)
        started = perf_counter()
        last = session.prompt(tokens.tolist(), "last")
        seconds.append(perf_counter() - started)
        np.argmax(_present(last))
        first_seconds.append(perf_counter() - started)
        step("prompt", 0)
    return PromptTimes(tuple(seconds), tuple(first_seconds), False, score)


def measure_decode(session: SessionLike, n_past: int, first_token: int, plan: Plan, step: Step) -> DecodeTimes:
    """Decode greedily from `n_past` cached rows, beginning with `first_token`, `plan.repeats` times from the same
    place.

    The session holds at least `n_past` rows when called and exactly `n_past` afterwards.
    """
    session.rewind(n_past)
    warmup = _decode(session, first_token, min(plan.warmup, plan.n_decode))
    seconds: list[float] = []
    contexts: list[int] = []
    for repeat in range(plan.repeats):
        session.rewind(n_past)
        seconds += _decode(session, first_token, plan.n_decode)
        contexts += range(n_past + 1, n_past + plan.n_decode + 1)
        step(f"decoding, repeat {repeat + 1} of {plan.repeats}", plan.n_decode)
    session.rewind(n_past)
    return DecodeTimes(tuple(seconds), tuple(contexts), tuple(warmup))


def _decode(session: SessionLike, token: int, count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        started = perf_counter()
        token = session.decode(token)
        seconds.append(perf_counter() - started)
    return seconds


def _scored_pass(
    session: SessionLike, tokens: np.ndarray, document: Document | None, n_vocab: int, step: Step
) -> tuple[Score | None, np.ndarray]:
    """One pass over the prompt in pieces small enough to hold their logits; returns the score and the last logits."""
    total = len(tokens)
    rows = max(1, _LOGITS_BYTES // (4 * n_vocab))
    piece = session.chunk * max(1, rows // session.chunk)
    log_sum, text_tokens, right = 0.0, 0, 0
    last = np.empty(0, np.float32)
    for start in range(0, total, piece):
        part = tokens[start : start + piece].tolist()
        if document is None:
            want: Want = "last" if start + piece >= total else "none"
            logits = session.prompt(part, want)
            last = last if logits is None else logits
        else:
            logits = _present(session.prompt(part, "all"))
            last = logits[-1]
            inside = _slice(document, start, start + len(part))
            if count := len(inside.text_positions):
                log_sum += math.log(score_perplexity(inside, logits)) * count
                text_tokens += count
            if len(inside.answer_positions):
                right += int((logits[inside.answer_positions].argmax(axis=1) == inside.answers).sum())
        step("prompt", len(part))
    if document is None:
        return None, last
    perplexity = math.exp(log_sum / text_tokens) if text_tokens else None
    return Score(len(document.answer_positions), right, text_tokens, perplexity), last


def _slice(document: Document, start: int, stop: int) -> Document:
    """The part of a document whose scored positions lie in start..stop, renumbered from start."""

    def inside(positions: np.ndarray) -> np.ndarray:
        return positions[(positions >= start) & (positions < stop)] - start

    return replace(
        document,
        tokens=document.tokens[start : stop + 1],
        text_positions=inside(document.text_positions),
        answer_positions=inside(document.answer_positions),
    )


def _present(logits: np.ndarray | None) -> np.ndarray:
    if logits is None:
        raise RuntimeError("the session returned no logits although they were asked for")
    return logits
