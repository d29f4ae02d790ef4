"""Measuring sessions over one prompt, taking turns: score, prompt times, decoded tokens.

A machine's speed drifts with whatever else it does, and measuring one path after the other would book the drift as a
difference between them. So the paths of one context take turns, repeat by repeat, and ratios are taken within a turn.

The first prompt pass returns the logits of all positions and gives recall and perplexity. Where it was quick, prompts
are then timed again without those logits; where it was long, its own time is the one sample and the row says so
(`prompt_scored`). Decoding goes over the prompt's last positions, so that the cache is full and not longer than asked.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Literal, Protocol

import numpy as np

from harness.results import Score
from model.tasks import Document, score_perplexity

Want = Literal["last", "all", "none"]


class SessionLike(Protocol):
    """What measuring needs of model.engine.Session (tests use a fake)."""

    @property
    def chunk(self) -> int: ...

    @property
    def cache_bytes(self) -> int: ...

    def prompt(self, tokens: Sequence[int], want: Want) -> np.ndarray | None: ...

    def decode(self, token: int) -> int: ...

    def rewind(self, n_past: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How much to measure: decoded tokens a repeat, repeats, warm-up tokens, and the seconds that each path's repeated
    prompts may take."""

    n_decode: int = 12
    repeats: int = 10  # five could not tell apart in `regress` what a table of nine rows holds (harness/judging.py)
    warmup: int = 2
    repeat_prompt_seconds: float = 3.0


@dataclass(frozen=True)
class Prompt:
    """One context's tokens (int32 [context]) and where to score them, or why they cannot be scored."""

    tokens: np.ndarray
    document: Document | None
    unscored: str = ""


Step = Callable[[str, int], None]  # (what is going on, tokens done since the last call)


@dataclass
class Measurement:
    """One session's samples: decode_seconds[repeat][i] was spent with decode_contexts[i] rows cached, its own too."""

    session: SessionLike
    prompt: Prompt
    plan: Plan
    step: Step
    score: Score | None = None
    scored_seconds: float = 0.0
    scored_first_token: float = 0.0
    prompt_scored: bool = False
    prompt_seconds: list[float] = field(default_factory=list)
    first_token_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[tuple[float, ...]] = field(default_factory=list)
    warmup_seconds: tuple[float, ...] = ()

    @property
    def depth(self) -> int:
        """Rows cached when decoding starts."""
        return len(self.prompt.tokens) - self.plan.n_decode

    @property
    def decode_contexts(self) -> tuple[int, ...]:
        return tuple(range(self.depth + 1, len(self.prompt.tokens) + 1))

    def run_first_prompt(self) -> None:
        """One warm-up chunk, then the pass that scores; the cache holds the prompt afterwards."""
        self.step("warm-up", 0)
        self.session.prompt(self.prompt.tokens[: self.session.chunk].tolist(), "none")
        self.session.rewind(0)
        started = perf_counter()
        self.score, logits = _scored_pass(self.session, self.prompt, self.step)
        self.scored_seconds = perf_counter() - started
        np.argmax(logits)
        self.scored_first_token = perf_counter() - started

    def keep_first_prompt(self) -> None:
        """Take the first pass's time as the prompt's only sample."""
        self.prompt_seconds = [self.scored_seconds]
        self.first_token_seconds = [self.scored_first_token]
        self.prompt_scored = self.prompt.document is not None

    def time_prompt(self) -> None:
        self.step("prompt again", 0)
        self.session.rewind(0)
        started = perf_counter()
        logits = self.session.prompt(self.prompt.tokens.tolist(), "last")
        self.prompt_seconds.append(perf_counter() - started)
        np.argmax(_present(logits))
        self.first_token_seconds.append(perf_counter() - started)

    def warm_up_decode(self) -> None:
        self.step("warm-up", 0)
        self.warmup_seconds = self._decode(min(self.plan.warmup, self.plan.n_decode))

    def time_decode(self) -> None:
        self.decode_seconds.append(self._decode(self.plan.n_decode))
        self.step("decoding", self.plan.n_decode)

    def _decode(self, count: int) -> tuple[float, ...]:
        """Decode `count` tokens greedily from `depth` on, beginning with the prompt's own token there."""
        self.session.rewind(self.depth)
        token = int(self.prompt.tokens[self.depth])
        seconds = []
        for _ in range(count):
            started = perf_counter()
            token = self.session.decode(token)
            seconds.append(perf_counter() - started)
        return tuple(seconds)


def take_turns(measurements: Sequence[Measurement], plan: Plan) -> None:
    """Fill all measurements of one context; whether prompts are repeated is decided for all of them alike."""
    for each in measurements:
        each.run_first_prompt()
    slowest = max((each.scored_seconds for each in measurements), default=0.0)
    # At least two repeats, or none: a single one would say no more than the pass that is there already.
    repeats = min(plan.repeats, int(plan.repeat_prompt_seconds / max(slowest, 1e-9)))
    if repeats < 2:
        for each in measurements:
            each.keep_first_prompt()
    else:
        for _ in range(repeats):
            for each in measurements:
                each.time_prompt()
    for each in measurements:
        each.warm_up_decode()
    for _ in range(plan.repeats):
        for each in measurements:
            each.time_decode()


def _scored_pass(session: SessionLike, prompt: Prompt, step: Step) -> tuple[Score | None, np.ndarray]:
    """One pass over the prompt, chunk by chunk as not all logits need fit in memory; the score and the last logits."""
    document, total = prompt.document, len(prompt.tokens)
    step("prompt", 0)
    log_sum, text_tokens, right = 0.0, 0, 0
    last: np.ndarray | None = None
    for start in range(0, total, session.chunk):
        part = prompt.tokens[start : start + session.chunk].tolist()
        if document is None:
            want: Want = "last" if start + session.chunk >= total else "none"
            last = session.prompt(part, want)
        else:
            rows = _present(session.prompt(part, "all"))
            last = rows[-1]
            inside = _slice(document, start, start + len(part))
            if count := len(inside.text_positions):
                log_sum += math.log(score_perplexity(inside, rows)) * count
                text_tokens += count
            if len(inside.answer_positions):
                right += int((rows[inside.answer_positions].argmax(axis=1) == inside.answers).sum())
        step("prompt", len(part))
    if document is None:
        return None, _present(last)
    perplexity = math.exp(log_sum / text_tokens) if text_tokens else None
    return Score(len(document.answer_positions), right, text_tokens, perplexity), _present(last)


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
