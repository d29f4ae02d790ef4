"""compare without a device: what a fake session is asked to do, what fits, what the tables and the report say."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
from random_model import BASE
from rich.console import Console

from harness import measure, report_tables
from harness.cli import main
from harness.compare import report_stem
from harness.compare_run import Bench, Lane, make_prompt, measure_context, measure_rows
from harness.measure import Measurement, Plan, Prompt, SessionLike, Want, take_turns
from harness.predict import line_of
from harness.results import Record, Row, Table, ratios
from harness.roofline import Peaks, Weights
from model.layout import PATHS, Path, cache_bytes
from model.tasks import Document
from vkbackend.errors import DeviceError, DeviceLostError

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


Opener = Callable[[Path, int], SessionLike]


def context_rows(open_session: Opener, prompt: Prompt, paths: list[str], budget: int = 10**9) -> list[Row]:
    return measure_context(lanes(open_session, paths, bench(budget)), prompt, silent)


def lanes(open_session: Opener, paths: list[str], of: Bench | None = None) -> list[Lane]:
    """A table's lanes along those paths."""
    shared = of or bench()
    return [Lane(shared, PATHS[name], partial(open_session, PATHS[name])) for name in paths]


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


def table(rows: list[Row], peaks: Peaks = PEAKS) -> Table:
    names = dict.fromkeys(row.path for row in rows)
    lines = [line_of(CONFIG, PATHS[name], [row for row in rows if row.path == name], peaks) for name in names]
    return Table("measured", "tiny", "llvmpipe", WEIGHTS, peaks, tuple(rows), tuple(lines))


def record(*tables: Table) -> Record:
    facts: dict[str, Any] = {"name": "llvmpipe (LLVM 15.0.6, 256 bits)", "driver": "llvmpipe", "driver_version": "25"}
    host = {"cpu": "cpu", "cpu_count": 2, "load_average": [1.0, 0.5, 0.25]}
    return Record("c", "2026-01-02T03:04:05+00:00", host, {}, facts, {"file": "tiny 1.5.gguf"}, {}, tables)


def linear_rows(seconds_per_row: dict[str, float]) -> list[Row]:
    """Rows whose decode time is 10 ms plus an exact slope."""
    rows = []
    for context in (512, 2048):
        for name, slope in seconds_per_row.items():
            size = cache_bytes(CONFIG, PATHS[name].layout, "f16", context)
            seconds = 0.01 + slope * context
            rows.append(
                Row(
                    name,
                    context,
                    size,
                    cache_bytes=size,
                    decode_seconds=((seconds,) * 3,) * 2,
                    decode_contexts=(context,),
                    prompt_seconds=(1.0,),
                    first_token_seconds=(1.0,),
                )
            )
    return rows


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


def test_slope_times_bandwidth_is_bytes_per_token() -> None:
    found = table(linear_rows({"mla": 2e-6, "mha": 5e-6}))
    assert {line.path: line.bytes_per_token for line in found.lines} == {
        "mla": pytest.approx(2000.0),
        "mha": pytest.approx(5000.0),
    }


def test_markdown_report_shows_ratio_rows_that_do_not_fit_and_undecided_ratios() -> None:
    rows = linear_rows({"mla": 2e-6, "mha": 2e-6})
    rows.append(Row("mha", 65536, 123 * 2**30, not_run="does not fit", needed_bytes=125 * 2**30))
    text = report_tables.markdown(record(table(rows)), "samples.json")
    blow_up = rows[1].cache_bytes_formula / rows[0].cache_bytes_formula
    assert f"({blow_up:.2f}x)" in text
    assert "| 65,536 | mha | does not fit | 123.0 GiB |" in text
    assert "- mha at 65,536: does not fit, 125.0 GiB needed with the weights." in text
    assert "| ~1.00 | 512 | ?1.00 | 1.00 s | ?1.00 |" in text  # decode has two repeats, the prompt one
    assert "- ? marks a ratio of single runs: nothing says how much they vary.\n" in text
    assert "~ marks a ratio whose 95% interval includes 1" in text
    assert "| all samples | samples.json |" in text


def test_first_row_of_each_path_is_its_own_base() -> None:
    found = table(linear_rows({"mla": 2e-6, "mha": 4e-6}))
    mla, mha = found.rows[:2]
    assert ratios(mla, found.base(mla))["decode_rate"].value == 1.0
    assert ratios(mha, found.base(mha))["decode_rate"].value == pytest.approx((0.01 + 512 * 2e-6) / (0.01 + 512 * 4e-6))


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal_with_no_cell_cut(width: int) -> None:
    console = Console(width=width, record=True, file=StringIO())
    report_tables.show(record(table(linear_rows({"mla": 2e-6, "mla-v": 3e-6, "mha": 5e-6}))), console)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert "tiny, measured on llvmpipe" in text
    # Wide terminals get one comparison table, narrow ones two.
    assert text.count("x mla") == 4
    assert len([line for line in text.splitlines() if line.startswith("512")]) == (3 if width == 120 else 6)


def test_report_names_are_made_of_model_device_and_date() -> None:
    assert report_stem(record(table([]))) == "compare-tiny-1.5-llvmpipe-20260102-030405"


def test_predicted_reports_are_written_and_marked(tmp_path: FilePath, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--preset", "glm-4.7-flash", "--predict", "780m", "-o", str(tmp_path / "new folder")]) == 0
    names = sorted(path.name for path in (tmp_path / "new folder").iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["html", "json", "md"]
    assert names[1].startswith("compare-glm-4.7-flash-radeon-780m-")
    text = (tmp_path / "new folder" / names[2]).read_text()
    assert "| 4,096 | mha | predicted | 3.672 GiB | 17.78 | ≤ 13.1 | 0.39 |" in text
    assert "| 131,072 | mha | does not fit | 117.5 GiB | 17.78 | n/a |" in text
    assert "| 131,072 | mla | predicted | 6.609 GiB | 1 | ≤ 8.63 | 1 |" in text
    out = capsys.readouterr().out
    assert all(name in out for name in names)
