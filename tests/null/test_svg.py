"""Charts as SVG: ticks and scales by their definition, the elements that a reader, a screen reader and a test need."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.svg import HEIGHT, WIDTH, Axis, Chart, Limit, Point, Scale, Series, draw, ticks

NS = "{http://www.w3.org/2000/svg}"
POSITIVE = st.floats(1e-6, 1e12)


@given(POSITIVE, POSITIVE, st.booleans())
def test_logarithmic_ticks_hold_all_values(one: float, other: float, binary: bool) -> None:
    low, high = sorted((one, other))
    found = ticks(low, high, log=True, binary=binary)
    assert found[0] <= low * (1 + 1e-6) and found[-1] >= high * (1 - 1e-6)
    assert 2 <= len(found) <= 8
    assert all(a < b for a, b in pairwise(found))
    if binary:
        assert all(math.log2(value).is_integer() for value in found)


@given(st.floats(1e-6, 1e12), st.booleans())
def test_linear_ticks_begin_at_zero_and_hold_all_values(high: float, binary: bool) -> None:
    found = ticks(0.0, high, log=False, binary=binary)
    assert found[0] == 0 and found[-1] >= high * (1 - 1e-6)
    assert 2 <= len(found) <= 8
    assert found[-1] <= 3 * high


def test_ticks_are_round() -> None:
    assert ticks(0, 33.4, log=False, binary=False) == [0, 10, 20, 30, 40]
    assert ticks(512, 8192, log=True, binary=True) == [512, 1024, 2048, 4096, 8192]
    assert ticks(30, 420, log=True, binary=False) == [20, 50, 100, 200, 500]
    assert ticks(0.3, 40_000, log=True, binary=False) == [0.1, 1, 10, 100, 1000, 10_000, 100_000]
    assert ticks(4096, 4096, log=True, binary=True) == [4096, 8192]


def test_scales() -> None:
    assert Scale(10, 1000, 0, 200, log=True)(100) == pytest.approx(100)
    assert Scale(0, 50, 300, 0, log=False)(10) == pytest.approx(240)


def made(**changes: object) -> Chart:
    points = (
        Point(512, 200.0, "mla at 512: 200 tok/s", 180.0, 210.0, {"path": "mla", "value": "200.0"}),
        Point(2048, 50.0, "mla at 2,048: 50 tok/s"),
    )
    series = (
        Series("mla", points, 0),
        Series("<mha> & co", (Point(512, 20.0, "<x>"),), 1, joined=False, hollow=True),
        Series("bound", (Point(512, 400.0, ""), Point(2048, 90.0, "")), 0, bound=True),
    )
    x, y = Axis("context", lambda v: f"{v:.0f}", log=True, binary=True), Axis("tok/s", lambda v: f"{v:g}")
    parts: dict[str, object] = {"series": series, "limits": (Limit("there is 300", 300.0),)}
    return Chart("c1", "A <title>", "What & why", x, y, **(parts | changes))  # type: ignore[arg-type]


def parsed(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(draw(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def test_a_chart_says_what_it_is_to_who_cannot_see_it() -> None:
    root = parsed(made())
    assert root.attrib["role"] == "img"
    ids = root.attrib["aria-labelledby"].split()
    texts = {element.attrib["id"]: element.text for element in root if "id" in element.attrib}
    assert [texts[name] for name in ids] == ["A <title>", "What & why"]
    titles = [element.text for element in root.iter(f"{NS}title")]
    assert titles == ["A <title>", "mla at 512: 200 tok/s", "mla at 2,048: 50 tok/s", "<x>"]


def test_points_lie_where_their_values_are_and_carry_them() -> None:
    root = parsed(made())
    points = [g for g in root.iter(f"{NS}g") if g.attrib.get("class") == "point"]
    assert points[0].attrib == {"class": "point", "data-path": "mla", "data-value": "200.0"}
    at = [tuple(map(float, re.findall(r"[\d.]+", g[-1].attrib["transform"]))) for g in points]
    ends = {t.text: float(t.attrib["y"]) - 4 for t in root.iter(f"{NS}text") if t.attrib["text-anchor"] == "end"}
    assert at[0][1] == pytest.approx(ends["200"], abs=0.1)  # the axis goes to 400: 200 has a tick
    assert at[0][0] == 84.0 and at[1][0] == WIDTH - 28  # the first and the last tick
    spread = next(g for g in points[0] if g.attrib.get("class") == "spread").attrib["d"]
    low, high = (float(v) for v in re.fullmatch(r"M84\.0 ([\d.]+)V([\d.]+)", spread).groups())  # type: ignore[union-attr]
    assert high < at[0][1] < low  # up is less in SVG


def test_everything_is_inside_the_picture_and_named_in_the_legend() -> None:
    root = parsed(made())
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    assert (width, height) == (WIDTH, HEIGHT + 20)
    texts = [t for t in root.iter(f"{NS}text") if "x" in t.attrib]
    assert {"mla", "<mha> & co", "bound", "there is 300", "context"} <= {t.text for t in texts}
    for text in texts:
        assert 0 <= float(text.attrib["x"]) <= width and 0 <= float(text.attrib["y"]) <= height
    dashed = [g for g in root.iter(f"{NS}g") if "bound" in g.attrib.get("class", "")]
    assert len(dashed) == 2  # in the chart and in its legend
    assert not any(e.attrib.get("class", "").startswith("mark") for g in dashed for e in g)


def test_many_series_take_more_rows_of_legend_and_other_shapes() -> None:
    series = tuple(Series(f"a rather long name {i}", (Point(1 + i, 1, ""),), i) for i in range(6))
    root = parsed(made(series=series, limits=()))
    rows = {float(t.attrib["y"]) for t in root.iter(f"{NS}text") if (t.text or "").startswith("a rather")}
    assert len(rows) == 3
    shapes = {e.attrib["d"] for e in root.iter(f"{NS}path") if e.attrib.get("class") == "mark"}
    assert len(shapes) == 4
