"""compare without a device: what a fake session is asked to do, what fits, what is kept when one is lost."""

import math
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from fake_compare import CONFIG, FakeClock, FakeSession, Opener, bench, document, lanes, record, silent, table
from rich.console import Console

from harness import measure, report_tables
from harness.compare_run import make_prompt, measure_context, measure_rows
from harness.measure import Measurement, Plan, Prompt, SessionLike, take_turns
from harness.results import Row
from model.layout import PATHS, Path, cache_bytes
from model.tasks import Document
from vkbackend.errors import DeviceError, DeviceLostError


def turns(sessions: Sequence[FakeSession], doc: Document, plan: Plan) -> list[Measurement]:
    found = [Measurement(session, Prompt(doc.tokens, doc), plan, silent) for session in sessions]
    take_turns(found, plan)
    return found


@pytest.mark.parametrize("chunk", [1, 7, 8, 50])
def test_score_is_the_same_for_every_chunk(chunk: int) -> None:
    doc = document(45)
    score = turns([FakeSession(PATHS["mla"], 45, chunk)], doc, Plan())[0].score
    # Right everywhere but at the break: of the 35 text positions one, of the 3 answers one.
    right = math.log(math.exp(3) + CONFIG.n_vocab - 1) - 3
    assert score is not None
    assert score.recall_percent == pytest.approx(200 / 3)
    assert (score.questions, score.text_tokens) == (3, 35)
    assert score.perplexity == pytest.approx(math.exp((34 * right + (right + 3)) / 35), rel=1e-6)


@pytest.mark.parametrize(
    ("limit", "expected", "scored"),
    [
        (100.0, (0.4, 0.4, 0.4), False),  # all repeats
        (0.9, (0.4, 0.4), False),  # 0.4 s each: a third would pass 0.9 s
        (0.7, (0.4,), True),  # no two fit: the scoring pass is the sample
    ],
)
def test_prompts_are_repeated_while_their_time_lasts(
    limit: float, expected: tuple[float, ...], scored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock(seconds_per_token=0.01)
    monkeypatch.setattr(measure, "perf_counter", clock)
    session = FakeSession(PATHS["mla"], 40, clock=clock)
    found = turns([session], document(40), Plan(repeats=3, repeat_prompt_seconds=limit))[0]
    assert found.prompt_seconds == pytest.approx(expected)
    assert found.first_token_seconds == pytest.approx(expected)
    assert found.prompt_scored is scored
    again = [call.name for call in session.calls].count("prompt last")
    assert again == (0 if scored else len(expected))


def test_one_slow_path_keeps_all_paths_from_repeating(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = [FakeClock(0.001), FakeClock(1.0)]
    monkeypatch.setattr(measure, "perf_counter", lambda: clocks[0].now + clocks[1].now)
    sessions = [FakeSession(PATHS["mla"], 40, clock=clock) for clock in clocks]
    assert [found.prompt_scored for found in turns(sessions, document(40), Plan())] == [True, True]


def test_paths_take_turns() -> None:
    log: list[str] = []

    class Logged(FakeSession):
        def decode(self, token: int) -> int:
            log.append(self.path.name)
            return super().decode(token)

    turns([Logged(PATHS["mla"], 40), Logged(PATHS["mha"], 40)], document(40), Plan(n_decode=2, repeats=3, warmup=1))
    assert log == ["mla", "mha"] + ["mla", "mla", "mha", "mha"] * 3


def test_decode_begins_at_the_same_place_each_time_and_ends_at_the_context() -> None:
    session = FakeSession(PATHS["mla"], 40)
    found = turns([session], document(40), Plan(n_decode=4, repeats=3, warmup=2))[0]
    assert found.decode_contexts == (37, 38, 39, 40)
    assert [len(repeat) for repeat in found.decode_seconds] == [4, 4, 4]
    assert len(found.warmup_seconds) == 2
    assert [call.n_past for call in session.calls if call.name == "decode"] == [36, 37] + [36, 37, 38, 39] * 3


def context_rows(open_session: Opener, prompt: Prompt, paths: list[str], budget: int = 10**9) -> list[Row]:
    return measure_context(lanes(open_session, paths, bench(budget)), prompt, silent)


def blank(context: int) -> Prompt:
    return Prompt(np.zeros(context, np.int32), None)


def test_row_over_the_budget_is_never_tried() -> None:
    def refuse(path: Path, n_ctx: int) -> SessionLike:
        raise AssertionError("a session was opened for a row that does not fit")

    needed = 1000 + cache_bytes(CONFIG, PATHS["mha"].layout, "f16", 40)
    row = context_rows(refuse, blank(40), ["mha"], budget=needed - 1)[0]
    assert (row.not_run, row.needed_bytes, row.cache_bytes) == ("does not fit", needed, None)
    assert row.decode_rate is None


def test_row_that_fits_exactly_runs_and_closes_its_session() -> None:
    opened: list[FakeSession] = []

    def open_session(path: Path, n_ctx: int) -> SessionLike:
        opened.append(FakeSession(path, n_ctx))
        return opened[-1]

    needed = 1000 + cache_bytes(CONFIG, PATHS["mha"].layout, "f16", 40)
    doc = document(40)
    row = context_rows(open_session, Prompt(doc.tokens, doc), ["mha"], budget=needed)[0]
    assert row.ran
    assert row.cache_bytes == row.cache_bytes_formula == needed - 1000
    assert opened[0].n_ctx == 40
    assert opened[0].closed
    assert [len(repeat) for repeat in row.decode_seconds] == [4, 4]


@pytest.mark.parametrize("together", [True, False])
def test_sessions_are_open_together_only_where_their_caches_fit_together(together: bool) -> None:
    most = 0
    live: list[FakeSession] = []

    def open_session(path: Path, n_ctx: int) -> SessionLike:
        nonlocal most
        live.append(FakeSession(path, n_ctx))
        most = max(most, sum(not session.closed for session in live))
        return live[-1]

    both = 1000 + sum(cache_bytes(CONFIG, PATHS[name].layout, "f16", 40) for name in ("mla", "mha"))
    rows = context_rows(open_session, blank(40), ["mla", "mha"], budget=both if together else both - 1)
    assert [row.ran for row in rows] == [True, True]
    assert most == (2 if together else 1)
    assert all(session.closed for session in live)


def test_a_session_the_device_refuses_is_a_row_with_its_words() -> None:
    def refuse_mha(path: Path, n_ctx: int) -> SessionLike:
        if path.name == "mha":
            raise DeviceError("buffer of 200 MiB, at most 128 MiB")
        return FakeSession(path, n_ctx)

    rows = context_rows(refuse_mha, blank(40), ["mha", "mla"])
    assert rows[0].not_run == "does not fit: buffer of 200 MiB, at most 128 MiB"
    assert rows[1].ran


def test_sessions_are_closed_when_measuring_fails() -> None:
    class Broken(FakeSession):
        def decode(self, token: int) -> int:
            raise DeviceError("lost")

    opened: list[FakeSession] = []

    def open_session(path: Path, n_ctx: int) -> SessionLike:
        opened.append((Broken if path.name == "mha" else FakeSession)(path, n_ctx))
        return opened[-1]

    with pytest.raises(DeviceError, match="lost"):
        context_rows(open_session, blank(40), ["mla", "mha"])
    assert [session.closed for session in opened] == [True, True]


def test_a_model_without_the_task_runs_on_drawn_tokens_and_says_why() -> None:
    class Model:
        class tokenizer:
            @staticmethod
            def encode(text: str, add_bos: bool) -> list[int]:
                return [1, 2]

    prompt = make_prompt(Model(), CONFIG, 64, seed=1, questions=4)
    assert prompt.document is None
    assert prompt.unscored.startswith("recall task: the tokenizer holds 0 of 256 keys")
    assert prompt.tokens.shape == (64,)
    assert 0 <= prompt.tokens.min() <= prompt.tokens.max() < CONFIG.n_vocab
    row = context_rows(FakeSession, prompt, ["mla"])[0]
    assert (row.recall, row.perplexity) == (None, None)
    text = report_tables.markdown(record(table([row])), "x.json")
    assert "| n/a | n/a |" in text
    assert f"No scores: {prompt.unscored}." in text


def test_rows_come_context_by_context_in_the_order_of_the_paths() -> None:
    prompts = {c: Prompt(np.zeros(c, np.int32), None) for c in (16, 40)}
    rows, lost = measure_rows(lanes(FakeSession, ["mha", "mla"]), prompts)
    assert [(row.context, row.path) for row in rows] == [(16, "mha"), (16, "mla"), (40, "mha"), (40, "mla")]
    assert all(row.ran for row in rows) and lost is None


@pytest.mark.parametrize("when", ["opening", "running"])
def test_a_lost_device_keeps_the_contexts_before_it(when: str) -> None:
    opened: list[FakeSession] = []
    message = "Imaginary iGPU was lost; expected it to finish: try again"

    class Lost(FakeSession):
        def __init__(self, path: Path, n_ctx: int) -> None:
            if when == "opening" and n_ctx == 40:
                raise DeviceLostError(message)
            super().__init__(path, n_ctx)
            opened.append(self)

        def decode(self, token: int) -> int:
            if self.n_ctx == 40 and self.path.name == "mla":
                raise DeviceLostError(message)
            return super().decode(token)

    prompts = {c: Prompt(np.zeros(c, np.int32), None) for c in (16, 40, 64)}
    rows, lost = measure_rows(lanes(Lost, ["mha", "mla"]), prompts)
    assert str(lost) == message
    assert [(row.context, row.not_run) for row in rows] == [(c, why) for c, why in
        ((16, ""), (40, "device lost"), (64, "device lost")) for _ in range(2)]  # fmt: skip
    assert all(row.decode_seconds for row in rows[:2]) and not any(row.decode_seconds for row in rows[2:])
    assert all(session.closed for session in opened)
    assert max(session.n_ctx for session in opened) == (16 if when == "opening" else 40)
    text = report_tables.markdown(replace(record(table(rows)), incomplete=str(lost)), "samples.json")
    assert f"\n\n**Incomplete:** {message}\n\n" in text
    assert "- mla at 40: device lost.\n" in text
    console = Console(file=StringIO(), width=200)
    report_tables.show(replace(record(table(rows)), incomplete=str(lost)), console)
    assert console.file.getvalue().startswith(f"Incomplete: {message}\n")  # type: ignore[attr-defined]
