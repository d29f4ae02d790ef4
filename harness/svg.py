"""Line charts as SVG: points with their spread, lines that may be dashed, limits, a legend, and text for all of it.

Colours come from the page (`var(--c1)` and so on), and each series has a marker and a dash of its own as well, so that
no one needs to tell colours apart. A chart is an image with a title and a description; every point has a title too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 28, 14, 46
_LEGEND_ROW = 20
_CHARACTER = 7.2  # width of one in the legend's type, on average; wider ones only leave less space
COLOURS = 6
_SHAPES = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.5L5 4H-5z",
    "M0 -5.5L5.5 0L0 5.5L-5.5 0z",
)


@dataclass(frozen=True)
class Point:
    """One figure: where it lies, the ends of its spread, what its title says, and its data attributes."""

    x: float
    y: float
    title: str
    low: float | None = None
    high: float | None = None
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """Points of one kind, joined by a line where ``joined``, their markers filled unless ``hollow``; ``colour`` counts
    from 0; ``bound``: a limit and no figure."""

    name: str
    points: tuple[Point, ...]
    colour: int
    joined: bool = True
    hollow: bool = False
    bound: bool = False


@dataclass(frozen=True)
class Limit:
    """A level across the whole chart, such as the memory there is."""

    name: str
    y: float


@dataclass(frozen=True)
class Axis:
    """One axis; ``show`` turns a value into the text of its tick."""

    label: str
    show: Callable[[float], str]
    log: bool = False
    binary: bool = False  # ticks at powers of two, as contexts and bytes have them


@dataclass(frozen=True)
class Chart:
    """A chart's parts. ``key`` is its element's id; ``text`` describes it to who cannot see it."""

    key: str
    title: str
    text: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True)
class Scale:
    """Values to positions: from ``low`` at ``start`` to ``high`` at ``stop``."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.stop - self.start) * (at - low) / (high - low)


def ticks(low: float, high: float, log: bool, binary: bool, most: int = 7) -> list[float]:
    """Round values from at or below ``low`` to at or above ``high``: the axis begins and ends with one."""
    if log:
        return _log_ticks(low, high, binary, most)
    step = _round_step((high - low) / (most - 1), binary)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _round_step(least: float, binary: bool) -> float:
    if binary:
        return 2.0 ** math.ceil(math.log2(least))
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _log_ticks(low: float, high: float, binary: bool, most: int) -> list[float]:
    base = 2.0 if binary else 10.0
    first, last = math.floor(math.log(low, base) + 1e-9), math.ceil(math.log(high, base) - 1e-9)
    last = max(last, first + 1)
    if binary or last - first > 2:
        stride = math.ceil((last - first) / (most - 1))
        last = first + stride * math.ceil((last - first) / stride)
        return [base**power for power in range(first, last + 1, stride)]
    fine = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    begin = max(i for i, value in enumerate(fine) if value <= low * (1 + 1e-9))
    end = next((i for i, value in enumerate(fine) if value >= high * (1 - 1e-9)), len(fine) - 1)
    return fine[begin : max(end, begin + 1) + 1]


def draw(chart: Chart) -> str:
    """The chart as one <svg> element. Its series must hold a point or more, above 0 where an axis is logarithmic."""
    points = [point for series in chart.series for point in series.points]
    levels = [point.y for point in points] + [limit.y for limit in chart.limits]
    levels += [end for point in points for end in (point.low, point.high) if end is not None]
    x_ticks = ticks(min(p.x for p in points), max(p.x for p in points), chart.x.log, chart.x.binary)
    y_ticks = ticks(min(levels) if chart.y.log else 0.0, max(levels), chart.y.log, chart.y.binary)
    legend, rows = _legend(chart)
    bottom = HEIGHT - _BOTTOM
    x = Scale(x_ticks[0], x_ticks[-1], _LEFT, WIDTH - _RIGHT, chart.x.log)
    y = Scale(y_ticks[0], y_ticks[-1], bottom, _TOP, chart.y.log)
    parts = [
        f'<svg id="{chart.key}" viewBox="0 0 {WIDTH} {HEIGHT + rows * _LEGEND_ROW}" role="img" '
        f'aria-labelledby="{chart.key}-title {chart.key}-text">',
        f'<title id="{chart.key}-title">{escape(chart.title)}</title>',
        f'<desc id="{chart.key}-text">{escape(chart.text)}</desc>',
    ]
    for value in y_ticks:
        at = y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 8, at + 4, chart.y.show(value), "end"))
    for value in x_ticks:
        at = x(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{bottom}"/>')
        parts.append(_text(at, bottom + 18, chart.x.show(value), "middle"))
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, bottom + 38, chart.x.label, "middle", "label"))
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text class="label" text-anchor="middle" transform="translate(13 {middle:.1f}) rotate(-90)">'
        f"{escape(chart.y.label)}</text>"
    )
    for limit in chart.limits:
        parts.append(f'<path class="limit" d="M{_LEFT} {y(limit.y):.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT + 6, y(limit.y) - 5, limit.name, "start"))
    parts += [_series(series, x, y) for series in chart.series]
    return "\n".join([*parts, *legend, "</svg>"])


def _series(series: Series, x: Scale, y: Scale) -> str:
    style = f'class="s{series.colour % COLOURS + 1}{" bound" if series.bound else ""}"'
    parts = [f"<g {style}>"]
    if series.joined and len(series.points) > 1:
        path = "L".join(f"{x(p.x):.1f} {y(p.y):.1f}" for p in series.points)
        parts.append(f'<path class="line" d="M{path}"/>')
    for point in series.points if not series.bound else ():
        at = x(point.x)
        data = "".join(f' data-{key}="{escape(value)}"' for key, value in point.data.items())
        parts.append(f'<g class="point"{data}><title>{escape(point.title)}</title>')
        if point.low is not None and point.high is not None:
            low, high = y(point.low), y(point.high)
            parts.append(f'<path class="spread" d="M{at:.1f} {low:.1f}V{high:.1f}"/>')
        parts.append(_marker(series, at, y(point.y)) + "</g>")
    return "".join([*parts, "</g>"])


def _marker(series: Series, x: float, y: float) -> str:
    """A shape of its own for each colour: circle, square, triangle, diamond."""
    style = "mark hollow" if series.hollow else "mark"
    shape = _SHAPES[series.colour % len(_SHAPES)]
    return f'<path class="{style}" transform="translate({x:.1f} {y:.1f})" d="{shape}"/>'


def _legend(chart: Chart) -> tuple[list[str], int]:
    """The legend's elements below the chart, and how many rows they take."""
    parts: list[str] = []
    at, row = float(_LEFT), 0
    for series in chart.series:
        width = 34 + _CHARACTER * len(series.name) + 14
        if at + width > WIDTH - _RIGHT and at > _LEFT:
            at, row = float(_LEFT), row + 1
        y = HEIGHT + row * _LEGEND_ROW + 6
        style = f"s{series.colour % COLOURS + 1}{' bound' if series.bound else ''}"
        sample = f'<path class="line" d="M{at:.0f} {y}h26"/>' if series.joined else ""
        mark = "" if series.bound else _marker(series, at + 13, y)
        parts.append(f'<g class="{style}">{sample}{mark}</g>' + _text(at + 34, y + 4, series.name, "start"))
        at += width
    return parts, row + 1


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
