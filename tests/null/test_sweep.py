"""Files and cache types side by side, without a device: divergence, grouping, the grid, what is said of the weights."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from fake_compare import CONFIG, PEAKS, FakeSession, document, record, silent
from rich.console import Console

from harness import report_tables, sweep
from harness.cli import build_parser, load, main
from harness.compare import plan_job
from harness.compare_run import Bench, Lane, measure_context
from harness.measure import Measurement, Plan, Prompt, Want, take_turns
from harness.predict import line_of
from harness.results import Row, Score, Table
from harness.roofline import Weights
from harness.turns import RefusedError, side_by_side
from model.layout import PATHS, Path
from model.tasks import divergences
from vkbackend.errors import DeviceError, InputError


def test_divergence_is_that_of_the_distributions() -> None:
    rng = np.random.default_rng(1)
    p, q = (rng.normal(size=(5, 9)).astype(np.float32) for _ in range(2))
    expected = []
    for a, b in zip(p.astype(np.float64), q.astype(np.float64), strict=True):
        a, b = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
        expected.append((a * np.log(a / b)).sum())
    assert divergences(p, q) == pytest.approx(expected, abs=1e-12)
    # Only differences of logits matter, and none is none.
    assert divergences(p, p + 3) == pytest.approx(np.zeros(5), abs=1e-6)
    assert (divergences(p, q) > 0).all()
    assert np.isfinite(divergences(np.array([[0.0, -1e30]]), np.array([[1e4, -1e4]]))).all()


class Scaled(FakeSession):
    """Its logits are the fake's times a factor."""

    def __init__(self, path: Path, n_ctx: int, chunk: int = 8, factor: float = 1.0) -> None:
        super().__init__(path, n_ctx, chunk)
        self.factor = factor

    def prompt(self, tokens: Sequence[int], want: Want) -> np.ndarray | None:
        found = super().prompt(tokens, want)
        return None if found is None else found * self.factor


@pytest.mark.parametrize(("chunk", "other"), [(8, 8), (7, 3), (50, 1)])
@pytest.mark.parametrize("scored", [True, False])
def test_the_divergence_does_not_depend_on_the_chunks(chunk: int, other: int, scored: bool) -> None:
    doc = document(45)
    prompt = Prompt(doc.tokens, doc if scored else None)
    plan = Plan(n_decode=4, repeats=2)
    base = Measurement(Scaled(PATHS["mla"], 45, chunk), prompt, plan, silent)
    half = Measurement(Scaled(PATHS["mla"], 45, other, 0.5), prompt, plan, silent, base)
    same = Measurement(Scaled(PATHS["mla"], 45, other), prompt, plan, silent, base)
    take_turns([base, half, same], plan)
    # Every position alike: one token is favoured by a margin of 3, or of half of it.
    logits = np.zeros((1, CONFIG.n_vocab))
    logits[0, 0] = 3.0
    expected = float(divergences(logits, logits / 2)[0])
    assert base.divergence is None
    assert half.divergence == pytest.approx(expected)
    assert same.divergence == pytest.approx(0, abs=1e-12)
    assert (base.score is not None) is scored
    assert [len(each.decode_seconds) for each in (base, half, same)] == [2, 2, 2]


def test_prompts_of_different_lengths_go_in_turns() -> None:
    tokens = np.arange(45, dtype=np.int32) % CONFIG.n_vocab
    plan = Plan(n_decode=4, repeats=2, repeat_prompt_seconds=0)
    sessions = [FakeSession(PATHS["mla"], n, 8) for n in (13, 45)]
    found = [Measurement(s, Prompt(tokens[: s.n_ctx], None), plan, silent) for s in sessions]
    take_turns(found, plan)
    assert [each.decode_contexts for each in found] == [(10, 11, 12, 13), (42, 43, 44, 45)]


def test_halves_are_tried_where_the_whole_is_refused() -> None:
    tried: list[list[int]] = []

    def run(group: Sequence[int]) -> list[str]:
        tried.append(list(group))
        if sum(group) > 5:
            raise RefusedError(f"{sum(group)} is too much")
        return [f"ran {value}" for value in group]

    found = side_by_side([1, 2, 3, 9], run, lambda value, error: f"{value}: {error}")
    assert found == ["ran 1", "ran 2", "ran 3", "9: 9 is too much"]
    assert tried == [[1, 2, 3, 9], [1, 2], [3, 9], [3], [9]]


def lane(weights: int, factor: float, label: str, reference: Lane | None = None, budget: int = 10**9) -> Lane:
    bench = Bench(CONFIG, Weights(weights, weights // 2, "test"), budget, Plan(n_decode=4, repeats=2))
    return Lane(bench, PATHS["mla"], lambda n: Scaled(PATHS["mla"], n, 8, factor), label, reference)


def test_lanes_of_two_files_are_measured_together_and_compared() -> None:
    base = lane(1000, 1.0, "a.gguf")
    other = lane(600, 0.5, "b.gguf", base)
    doc = document(40)
    rows = measure_context([base, other], Prompt(doc.tokens, doc), silent)
    assert [row.divergence is None for row in rows] == [True, False]
    assert [row.divergence_from for row in rows] == ["", "a.gguf"]


def test_files_over_the_budget_together_are_measured_apart_and_not_compared() -> None:
    base = lane(1000, 1.0, "a.gguf")
    budget = 1000 + 600 + base.planned(40).cache_bytes_formula  # both files' weights, one cache
    base = lane(1000, 1.0, "a.gguf", budget=budget)
    other = lane(600, 0.5, "b.gguf", base, budget=budget)
    doc = document(40)
    rows = measure_context([base, other], Prompt(doc.tokens, doc), silent)
    assert all(row.ran for row in rows)
    assert [row.divergence for row in rows] == [None, None]
    assert [row.divergence_from for row in rows] == ["", ""]


def test_a_lane_that_fails_while_it_runs_is_not_taken_for_refused() -> None:
    class Broken(FakeSession):
        def decode(self, token: int) -> int:
            raise DeviceError("lost its way")

    broken = replace(lane(1000, 1.0, ""), open=lambda n: Broken(PATHS["mla"], n))
    with pytest.raises(DeviceError, match="lost its way"):
        measure_context([broken], Prompt(np.zeros(40, np.int32), None), silent)


def made_table(label: str, active: int, seconds: float, *, cache_type: str = "f16", group: int = 0) -> Table:
    rng = np.random.default_rng(active)
    rows = []
    for context in (512, 2048):
        repeats = tuple(tuple(seconds * np.exp(rng.normal(0, 0.01, 4))) for _ in range(6))
        rows.append(
            Row(
                "mla", context, 100 * context, decode_seconds=repeats, decode_contexts=(context,) * 4,
                score=Score(4, 3, 9, 12.5), divergence=None if label == "first" else 1.5e-3,
                divergence_from="" if label == "first" else "first",
            )
        )  # fmt: skip
    lines = (line_of(CONFIG, PATHS["mla"], rows, PEAKS),)
    weights = Weights(2 * active, active, "test")
    return Table(
        "measured", "tiny", "llvmpipe", weights, PEAKS, tuple(rows), lines, label, cache_type, label, group
    )  # fmt: skip


def test_the_grid_has_files_side_by_side_and_says_that_weights_do_not_matter() -> None:
    found = record(made_table("first", 8_000_000, 0.010), made_table("second", 5_000_000, 0.0098))
    grid = sweep.grid(found)
    assert grid.columns == (
        "context", "path", "of", "weights\na token", "tok/s", "x", "recall\n%", "perplexity", "diverges\nnats",
    )  # fmt: skip
    assert [row[:4] for row in grid.rows] == [
        (context, "mla", name, size)
        for context in ("512", "2,048")
        for name, size in (("first", "8.00 MB"), ("second", "5.00 MB"))
    ]
    assert [row[5] for row in grid.rows][::2] == ["1", "1"]
    assert [row[-1] for row in grid.rows] == ["n/a", "1.5e-03"] * 2
    assert grid.breaks == {2}
    notes = sweep.notes(found)
    assert notes[0].startswith(
        "mla at 512: second reads 1.60x fewer weight bytes than first and decodes 1.02x as fast; "
    )
    assert notes[0].endswith("of a token's time goes with the weights' bytes: the weights are not the bottleneck.")
    assert notes[-2] == (
        "Divergence: mean Kullback-Leibler divergence of the next token's distribution from that of first, over the "
        "scored text."
    )


def test_weights_that_matter_and_files_measured_apart_are_said_so() -> None:
    found = record(made_table("first", 5_000_000, 0.005), made_table("second", 8_000_000, 0.0079, group=1))
    notes = sweep.notes(found)
    assert notes[0].endswith("of a token's time goes with the weights' bytes: the weights are the bottleneck.")
    assert "second" in notes[0].split("than")[1]  # the larger is what the smaller is held against
    assert any(note.startswith("Not all files fitted the device together") for note in notes)


def test_cache_types_side_by_side_leave_the_weights_out() -> None:
    found = record(made_table("cache f16", 5_000_000, 0.01), made_table("cache f32", 5_000_000, 0.01, cache_type="f32"))
    grid = sweep.grid(found)
    assert "weights\na token" not in grid.columns
    assert [row[2] for row in grid.rows[:2]] == ["f16", "f32"]
    assert grid.rows[1][5].startswith("~")


def test_several_cache_types_need_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--preset", "glm-4.7-flash", "--cache", "f32,f16"]) == 2
    assert capsys.readouterr().err == (
        "latentvk: error: --cache f32,f16 is given with --preset, expected one type where nothing is run; choose one\n"
    )


def test_a_type_that_a_path_has_no_kernel_for_is_left_out_of_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    job = plan_job(arguments("--cache", "q8_0,f16", "--paths", "mla,mha"))
    assert {kind: [path.name for path in paths] for kind, paths in job.typed.items()} == {
        "f16": ["mla", "mha"],
        "q8_0": ["mla"],
    }
    assert list(job.typed) == ["f16", "q8_0"]
    for argv in (["--cache", "q8_0", "--paths", "mla,mha"], ["--cache", "f16,q8_0", "--paths", "mha"]):
        with pytest.raises(InputError, match="path 'mha' keeps values transposed"):
            plan_job(arguments(*argv))
    with pytest.raises(InputError, match="cache type 'q3' has no kernel"):
        plan_job(arguments("--cache", "f16,q3"))


def arguments(*argv: str) -> argparse.Namespace:
    return build_parser("compare", load("compare")).parse_args(argv)


def test_reports_show_the_side_by_side_first_and_each_table_in_the_file() -> None:
    found = record(made_table("first", 8_000_000, 0.010), made_table("second", 5_000_000, 0.0098))
    text = report_tables.markdown(found, "x.json")
    assert text.index(sweep.TITLE) < text.index("## tiny (first), measured on llvmpipe")
    assert "## tiny (second), measured on llvmpipe" in text
    console = Console(file=StringIO(), width=100)
    report_tables.show(found, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.startswith("tiny, measured on llvmpipe\n")
    assert "tiny (second)" not in shown
    assert not sweep.sweeps(record(made_table("", 1, 0.01)))
