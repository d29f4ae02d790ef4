"""A comparison where no device is: sessions that follow their contract, what they are asked to do, its record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from random_model import BASE

from harness.compare_run import Bench, Lane
from harness.measure import Plan, SessionLike, Want
from harness.predict import line_of
from harness.results import Record, Row, Table
from harness.roofline import Peaks, Weights
from model.layout import PATHS, Path, cache_bytes
from model.tasks import Document

CONFIG = replace(BASE, n_vocab=37)
PEAKS = Peaks(1e9, 1e10, "test")
WEIGHTS = Weights(1000, 500, "test")


@dataclass
class Call:
    name: str
    n_past: int
    count: int


class FakeSession:
    """Follows the session's contract on positions strictly; its logits favour (token + 1) by a margin of 3."""

    def __init__(self, path: Path, n_ctx: int, chunk: int = 8, clock: "FakeClock | None" = None) -> None:
        self.path, self.n_ctx, self.chunk, self.n_past = path, n_ctx, chunk, 0
        self.cache_bytes = cache_bytes(CONFIG, path.layout, path.cache_type, n_ctx)
        self.calls: list[Call] = []
        self.closed = False
        self.clock = clock

    def prompt(self, tokens: Sequence[int], want: Want) -> np.ndarray | None:
        self._advance(f"prompt {want}", len(tokens))
        logits = np.zeros((len(tokens), CONFIG.n_vocab), np.float32)
        logits[np.arange(len(tokens)), (np.array(tokens) + 1) % CONFIG.n_vocab] = 3.0
        return {"all": logits, "last": logits[-1], "none": None}[want]

    def decode(self, token: int) -> int:
        self._advance("decode", 1)
        return (token + 1) % CONFIG.n_vocab

    def rewind(self, n_past: int) -> None:
        assert n_past <= self.n_past
        self.n_past = n_past

    def close(self) -> None:
        self.closed = True

    def _advance(self, name: str, count: int) -> None:
        assert self.n_past + count <= self.n_ctx, "more tokens than the cache has rows"
        self.calls.append(Call(name, self.n_past, count))
        self.n_past += count
        if self.clock is not None:
            self.clock.now += count * self.clock.seconds_per_token


@dataclass
class FakeClock:
    seconds_per_token: float
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def silent(what: str, tokens: int) -> None: ...


def document(n_ctx: int) -> Document:
    """Tokens that count up, so that the fake is right everywhere, but for a break after position 20."""
    tokens = np.arange(n_ctx, dtype=np.int32) % CONFIG.n_vocab
    tokens[21:] = (tokens[21:] + 5) % CONFIG.n_vocab
    return Document(
        tokens=tokens,
        text_positions=np.arange(2, n_ctx - 8, dtype=np.int32),
        answer_positions=np.array([20, n_ctx - 6, n_ctx - 2], np.int32),
        answer_distances=np.array([5, 9, 30], np.int32),
        n_facts=3,
    )


def bench(budget: int = 10**9) -> Bench:
    return Bench(CONFIG, WEIGHTS, budget, Plan(n_decode=4, repeats=2))


Opener = Callable[[Path, int], SessionLike]


def lanes(open_session: Opener, paths: list[str], of: Bench | None = None) -> list[Lane]:
    """A table's lanes along those paths."""
    shared = of or bench()
    return [Lane(shared, PATHS[name], partial(open_session, PATHS[name])) for name in paths]


def table(rows: list[Row], peaks: Peaks = PEAKS) -> Table:
    names = dict.fromkeys(row.path for row in rows)
    lines = [line_of(CONFIG, PATHS[name], [row for row in rows if row.path == name], peaks) for name in names]
    return Table("measured", "tiny", "llvmpipe", WEIGHTS, peaks, tuple(rows), tuple(lines))


def record(*tables: Table) -> Record:
    facts: dict[str, Any] = {"name": "llvmpipe (LLVM 15.0.6, 256 bits)", "driver": "llvmpipe", "driver_version": "25"}
    host = {"cpu": "cpu", "cpu_count": 2, "load_average": [1.0, 0.5, 0.25]}
    return Record("c", "2026-01-02T03:04:05+00:00", host, {}, facts, {"file": "tiny 1.5.gguf"}, {}, tables)
