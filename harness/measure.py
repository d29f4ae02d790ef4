"""Measuring sessions over one prompt, taking turns: score, prompt times, decoded tokens.

A machine's speed drifts with whatever else it does, and measuring one path after the other would book the drift as a
difference between them. So the paths of one context take turns, repeat by repeat, and ratios are taken within a turn.

The first prompt pass returns the logits of all positions and gives recall and perplexity; it goes piece by piece
through all sessions, so that one session's logits can be held against another's without keeping them: that gives the
mean divergence from a reference. Where the pass was quick, prompts are then timed again without those logits; where it
was long, its own time is the one sample and the row says so (`prompt_scored`). Decoding goes over the prompt's last
positions, so that the cache is full and not longer than asked.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Literal, Protocol

import numpy as np

from harness.results import Score
from model.tasks import Document, divergences, score_perplexity

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


class Turn(Protocol):
    """What takes part in the turns of decoding: a session of ours, or another runtime."""

    def time_prompt(self) -> None: ...

    def time_decode(self) -> None: ...


@dataclass
class Measurement:
    """One session's samples: decode_seconds[repeat][i] was spent with decode_contexts[i] rows cached, its own too.

    ``divergence`` is the mean over the prompt's scored positions from what ``reference`` gives there; None without one.
    """

    session: SessionLike
    prompt: Prompt
    plan: Plan
    step: Step
    reference: "Measurement | None" = None
    score: Score | None = None
    divergence: float | None = None
    scored_seconds: float = 0.0
    scored_first_token: float = 0.0
    all_logits: bool = False  # whether the first pass returned them
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

    def keep_first_prompt(self) -> None:
        """Take the first pass's time as the prompt's only sample."""
        self.prompt_seconds = [self.scored_seconds]
        self.first_token_seconds = [self.scored_first_token]
        self.prompt_scored = self.all_logits

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


def take_turns(measurements: Sequence[Measurement], plan: Plan, peers: Sequence[Turn] = ()) -> None:
    """Fill all measurements of one context; whether prompts are repeated is decided for all of them alike.

    ``peers`` are other runtimes: they take one turn with the prompt and then decode in turns with ours.
    """
    _run_first_prompts(measurements)
    for peer in peers:
        peer.time_prompt()
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
        for turn in (*measurements, *peers):
            turn.time_decode()


def _run_first_prompts(measurements: Sequence[Measurement]) -> None:
    """One warm-up chunk each, then the pass that scores, piece by piece in turns; the caches hold the prompts then."""
    for each in measurements:
        each.step("warm-up", 0)
        each.session.prompt(each.prompt.tokens[: each.session.chunk].tolist(), "none")
        each.session.rewind(0)
    compared = [each.reference for each in measurements if each.reference is not None]
    passes = [
        _Pass(each, each.reference is not None or any(each is other for other in compared)) for each in measurements
    ]
    of = {id(found.measurement): found for found in passes}
    piece = max((each.session.chunk for each in measurements), default=1)
    longest = max((len(each.prompt.tokens) for each in measurements), default=0)
    for start in range(0, longest, piece):
        for found in passes:
            found.run(start, piece)
        for found in passes:
            if found.measurement.reference is not None:
                found.compare(of[id(found.measurement.reference)], start)
    for found in passes:
        found.finish()


class _Pass:
    """One session's way through its prompt, with all logits where they are scored or ``compared``."""

    def __init__(self, measurement: Measurement, compared: bool) -> None:
        self.measurement, self.compared = measurement, compared
        self.rows: np.ndarray | None = None  # of the last piece, [tokens, n_vocab]
        self.last: np.ndarray | None = None
        self.seconds, self.log_sum, self.text_tokens, self.right = 0.0, 0.0, 0, 0
        self.divergences: list[float] = []

    def run(self, start: int, piece: int) -> None:
        """The piece from ``start`` on, if the prompt is that long, timed with its scoring."""
        session, document = self.measurement.session, self.measurement.prompt.document
        tokens = self.measurement.prompt.tokens
        part = tokens[start : start + piece].tolist()
        self.rows = None
        if not part:
            return
        self.measurement.step("prompt", 0)
        started = perf_counter()
        if document is None and not self.compared:
            want: Want = "last" if start + piece >= len(tokens) else "none"
            self.last = session.prompt(part, want)
        else:
            self.rows = _present(session.prompt(part, "all"))
            self.last = self.rows[-1]
        if document is not None and self.rows is not None:
            inside = _slice(document, start, start + len(part))
            if count := len(inside.text_positions):
                self.log_sum += math.log(score_perplexity(inside, self.rows)) * count
                self.text_tokens += count
            if len(inside.answer_positions):
                self.right += int((self.rows[inside.answer_positions].argmax(axis=1) == inside.answers).sum())
        self.seconds += perf_counter() - started
        self.measurement.step("prompt", len(part))

    def compare(self, reference: "_Pass", start: int) -> None:
        """Add the divergences of the piece's scored positions, all of them where none is."""
        if self.rows is None or reference.rows is None:
            return
        document = self.measurement.prompt.document
        chosen = np.arange(len(self.rows))
        if document is not None:
            chosen = _slice(document, start, start + len(self.rows)).text_positions
        self.divergences += divergences(reference.rows[chosen], self.rows[chosen]).tolist()

    def finish(self) -> None:
        """Put what was found into the measurement."""
        found, document = self.measurement, self.measurement.prompt.document
        started = perf_counter()
        np.argmax(_present(self.last))
        found.all_logits = document is not None or self.compared
        found.scored_seconds = self.seconds
        found.scored_first_token = self.seconds + perf_counter() - started
        if self.divergences:
            found.divergence = float(np.mean(self.divergences))
        if document is not None:
            perplexity = math.exp(self.log_sum / self.text_tokens) if self.text_tokens else None
            found.score = Score(len(document.answer_positions), self.right, self.text_tokens, perplexity)


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
