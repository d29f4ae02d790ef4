"""Cutting by time: boxes cover a grid once, segments keep to the target, probes grow slowly, predictions are bounds."""

import math
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vkbackend.pace import LIMIT_S, RECUT_S, TARGET_S, Box, Cost, Grid, Pace, Probe, Segment, Work, cut, outgrown, whole
from vkbackend.shader import SHADER_ROOT

sizes = st.integers(1, 9)
grids = st.tuples(sizes, sizes, sizes)
large = st.tuples(st.integers(1, 5000), st.integers(1, 60), st.integers(1, 60))
works = st.builds(Work, st.floats(1, 1e4), st.floats(1, 1e6))


def cells(box: Box) -> list[Grid]:
    """Every workgroup of a box."""
    x, y, z = (range(b, b + n) for b, n in zip(box.base, box.count, strict=True))
    return list(product(x, y, z))


def covers_once(boxes: list[Box], grid: Grid) -> bool:
    return sorted(cell for box in boxes for cell in cells(box)) == cells(whole(grid))


@given(grids, st.integers(0, 800))
def test_pieces_cover_a_grid_once(grid: Grid, most: int) -> None:
    boxes = list(whole(grid).pieces(most))
    assert covers_once(boxes, grid)
    assert max(box.groups for box in boxes) <= max(1, most)


@given(large, st.integers(1, 10**7))
def test_pieces_are_not_needlessly_many(grid: Grid, most: int) -> None:
    boxes = list(whole(grid).pieces(max(most, math.prod(grid) // 200)))
    # Halves of an odd length differ by one, a third of three at worst at each of the three axes' ends.
    assert len(boxes) <= max(1, 8 * math.prod(grid) / max(most, math.prod(grid) // 200))


@given(grids, st.booleans())
def test_probe_covers_a_grid_once_and_grows_slowly(grid: Grid, warm: bool) -> None:
    probe, boxes, counted = Probe(grid, warm), [], 0
    while (box := probe.next()) is not None:
        assert box.groups <= max(1, counted)
        counted += box.groups if probe.warm else 0
        probe.took(box, 1e-6 * box.groups)
        boxes.append(box)
    assert covers_once(boxes, grid)
    if counted:
        assert probe.pace == pytest.approx(1e-6)
    else:
        assert probe.pace is None and not warm and grid == (1, 1, 1)


@given(large, st.floats(1e-7, 0.2), st.floats(0, 1e-3), st.floats(0, 60))
def test_probe_of_an_even_launch_never_runs_long(grid: Grid, pace: float, overhead: float, compiling: float) -> None:
    """Whatever a workgroup takes, and the first submission's compilation left out."""
    probe, runs = Probe(grid), 0
    while (box := probe.next()) is not None and runs < 300:
        seconds = overhead + pace * box.groups
        assert seconds <= max(TARGET_S + overhead, pace + overhead)
        probe.took(box, seconds if runs else seconds + compiling)
        runs += 1
    if box is None and math.prod(grid) > 1:
        assert probe.pace is not None and probe.pace == pytest.approx(pace, abs=overhead + 1e-9)


def test_probe_takes_the_dearer_of_mean_and_last_piece() -> None:
    probe = Probe((8, 1, 1), warm=True)
    found = []
    for x, seconds in enumerate((1.0, 1.0, 4.0, 1.0)):
        box = probe.next()
        assert box == Box((x, 0, 0), (1, 1, 1))  # two workgroups would pass TARGET_S
        probe.took(box, seconds)
        found.append(probe.pace)
    assert found == [1.0, 1.0, 4.0, 7 / 4]


@given(st.lists(st.builds(Cost, grids, st.floats(0, 0.3), st.booleans()), max_size=12), works)
def test_segments_hold_every_workgroup_once_within_the_target(costs: list[Cost], work: Work) -> None:
    segments = cut(dict(enumerate(costs)), work)
    pieces = [piece for segment in segments for piece in segment.pieces]
    assert [p.launch for p in pieces] == sorted(p.launch for p in pieces)
    for index, cost in enumerate(costs):
        assert covers_once([p.box for p in pieces if p.launch == index], cost.grid)
    for segment in segments:
        seconds = sum(p.box.groups * costs[p.launch].pace for p in segment.pieces)
        assert segment.predict(work) == pytest.approx(seconds)
        assert segment.predict(work) <= TARGET_S or not segment.divisible
    for one, other in pairwise(segments):  # greedy: nothing more would have fitted
        first = other.pieces[0]
        assert one.predict(work) + first.box.groups * costs[first.launch].pace > TARGET_S


@given(st.lists(st.builds(Cost, large, st.floats(0, 1e-6), st.booleans()), min_size=1, max_size=12), works, works)
def test_more_work_is_foreseen_and_cut(costs: list[Cost], before: Work, after: Work) -> None:
    """The prediction at other work bounds a launch whose time grows with it in proportion, or does not grow."""
    segments = cut(dict(enumerate(costs)), before)
    for segment in segments:
        segment.took(segment.predict(before), before)
        flat = sum(p.box.groups * p.pace for p in segment.pieces if not costs[p.launch].deep)
        deep = sum(p.box.groups * p.pace for p in segment.pieces if costs[p.launch].deep)
        grown = flat * after.items / before.items
        grown += deep * after.items * after.depth / (before.items * before.depth)
        assert segment.predict(after) >= grown * (1 - 1e-9)
        assert segment.predict(after) >= (flat + deep) * (1 - 1e-9)


def test_measurements_correct_a_segment() -> None:
    (segment,) = cut({0: Cost((10, 1, 1), 1e-3), 1: Cost((10, 1, 1), 1e-3, deep=True)}, Work(1, 100))
    segment.took(0.04, Work(1, 100))
    assert segment.predict(Work(1, 100)) == pytest.approx(0.04)
    assert segment.predict(Work(1, 200)) == pytest.approx(0.02 + 0.04)
    assert segment.predict(Work(2, 100)) == pytest.approx(0.08)
    assert segment.predict(Work(1, 1)) == pytest.approx(0.04)  # less work is believed when it is measured
    assert segment.growth(deep=True) == segment.growth(deep=False) == pytest.approx(2)
    segment.took(0.01, Work(1, 1))
    assert segment.predict(Work(1, 1)) == pytest.approx(0.01)
    assert segment.predict(Work(1, 100)) == pytest.approx(0.005 + 0.5)


def test_a_program_is_cut_anew_when_too_coarse_or_far_too_fine() -> None:
    def segments(*seconds: float, groups: int = 2) -> list[Segment]:
        made = cut({i: Cost((groups, 1, 1), LIMIT_S) for i in range(len(seconds))}, Work())[: len(seconds)]
        for segment, measured in zip(made, seconds, strict=True):
            segment.took(measured, Work())
        return made

    one = cut({0: Cost((2, 1, 1), TARGET_S / 2)}, Work())
    assert not outgrown(one, Work())
    assert outgrown(one, Work(1.01 * RECUT_S / TARGET_S))
    assert 1.2 * RECUT_S < LIMIT_S
    one[0].took(RECUT_S * 1.01, Work())
    assert outgrown(one, Work())
    assert not outgrown(segments(10.0), Work())  # a single workgroup cannot be cut
    assert not outgrown(segments(1e-6), Work())  # nor one segment be merged
    assert not outgrown(segments(TARGET_S, 1e-3), Work())
    assert outgrown(segments(TARGET_S / 5, 1e-3), Work())
    assert not outgrown([], Work())


@given(st.lists(st.builds(Cost, grids, st.floats(1e-6, 0.3)), min_size=1, max_size=12), st.floats(1e-3, 1e3))
def test_cutting_anew_settles_at_once(costs: list[Cost], wrong_by: float) -> None:
    """After a cut by true paces nothing asks for another cut, however wrong the first one was."""
    first = cut({i: Cost(c.grid, c.pace * wrong_by) for i, c in enumerate(costs)}, Work())
    for segment in first:
        segment.took(sum(p.box.groups * costs[p.launch].pace for p in segment.pieces), Work())
    assert not outgrown(cut(dict(enumerate(costs)), Work()), Work())


def test_pace_is_kept_with_the_work_it_was_measured_at() -> None:
    pace = Pace()
    assert not pace.knows("matmul")
    assert not pace.probe("matmul", (1, 1, 1)).warm
    assert not pace.knows("matmul")
    assert pace.probe("matmul", (1, 1, 1)).warm
    pace.learn("matmul", 1e-3, 100)
    assert pace.knows("matmul")
    assert [pace.predict("matmul", amount) for amount in (1, 100, 250)] == pytest.approx([1e-3, 1e-3, 2.5e-3])


def test_submissions_are_counted_and_the_longest_kept() -> None:
    pace = Pace()
    pace.submitted(3.0, first=True)
    pace.submitted(0.2)
    pace.submitted(0.1)
    assert (pace.submissions, pace.longest_s, pace.longest_first_s) == (3, 0.2, 3.0)


def test_no_shader_asks_for_its_grid() -> None:
    """A piece of a launch would see its own count; grids reach shaders as push constants."""
    sources = [p for p in SHADER_ROOT.rglob("*") if p.suffix in (".comp", ".glsl")]
    assert len(sources) > 20
    assert [p.name for p in sources if "gl_NumWorkGroups" in p.read_text()] == []
