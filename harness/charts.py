"""Which charts a compare record gives: speeds and memory against context, the roofline, files and cache types."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from harness import sweep
from harness.results import Record, Row, Table
from harness.roofline import Bound
from harness.stats import median
from harness.svg import Axis, Chart, Limit, Point, Series
from harness.units import bytes_text, decimal_bytes_text, rate_text, seconds_text, significant

_ZEROS = re.compile(r"\.0+(?![0-9])")


def _plain(text: str) -> str:
    """A round value's text without the zeros behind its point, as ticks have it: '16 MiB'."""
    return _ZEROS.sub("", text)


def _rate(value: float) -> str:
    return _plain(significant(value))


def _seconds(value: float) -> str:
    """In seconds from one on, as powers of ten of minutes are not round."""
    return _plain(f"{significant(value)} s" if value >= 1 else seconds_text(value))


_CONTEXT = Axis("context, tokens", lambda value: f"{value:,.0f}", log=True, binary=True)
_Figure = Callable[[Row], float | None]
_Samples = Callable[[Row], Sequence[float]]


def of_table(table: Table, key: str) -> list[Chart]:
    """A table's charts; one that would be empty is left out."""
    found = [
        _speed(table, f"{key}-decode", "Decoding", _decode, _decode_samples, lambda row: row.decode_bound, 1),
        _speed(table, f"{key}-prompt", "Prompt", _prompt, _prompt_samples, lambda row: row.prompt_bound, None),
        _first_token(table, f"{key}-first"),
        _memory(table, f"{key}-memory"),
        _roofline(table, f"{key}-roofline"),
    ]
    return [chart for chart in found if chart is not None]


def of_sweep(record: Record) -> list[Chart]:
    """Decoding of every file or cache type against context, a chart for each path; none for a single table."""
    tables = sweep.measured_tables(record)
    if len(tables) < 2:
        return []
    differ = len({table.weights.active_bytes for table in tables}) > 1
    found = []
    for path in dict.fromkeys(row.path for table in tables for row in table.rows):
        series = []
        for index, table in enumerate(tables):
            rows = [row for row in table.rows if row.path == path and row.decode_rate]
            points = tuple(_point(row, table.label, row.decode_rate or 0, _decode_samples(row)) for row in rows)
            read = f", {decimal_bytes_text(table.weights.active_bytes)} a token" if differ else ""
            if points:
                series.append(Series(f"{table.label}{read}", points, index))
        if series:
            title = f"Decoding along {path} by file or cache type, tokens a second"
            found.append(_chart(f"sweep-{path}", title, _CONTEXT, Axis("tokens a second", _rate), series))
    return found


def _speed(
    table: Table,
    key: str,
    what: str,
    figure: _Figure,
    samples: _Samples,
    bound: Callable[[Row], Bound | None],
    tokens: int | None,
) -> Chart | None:
    """Tokens a second against context, each path's bound dashed; ``tokens``: what a bound's seconds are for."""
    series, bounds = [], []
    for index, path in enumerate(_paths(table)):
        rows = [row for row in table.rows if row.path == path]
        points = tuple(_point(row, path, value, samples(row)) for row in rows if (value := figure(row)))
        if points:
            series.append(Series(path, points, index))
        limits = tuple(
            Point(row.context, (tokens or row.context) / limit.seconds, "")
            for row in rows
            if (limit := bound(row)) is not None
        )
        if table.kind == "measured" and points and limits:
            bounds.append(Series(f"{path}: what the peaks allow", limits, index, bound=True))
    if not series:
        return None
    levels = [point.y for one in series + bounds for point in one.points]
    axis = Axis("tokens a second", _rate, log=max(levels) > 20 * min(levels))
    return _chart(key, f"{what} against context, tokens a second", _CONTEXT, axis, [*series, *bounds])


def _first_token(table: Table, key: str) -> Chart | None:
    series = []
    for index, path in enumerate(_paths(table)):
        rows = [row for row in table.rows if row.path == path and row.first_token]
        points = tuple(_point(row, path, row.first_token or 0, row.first_token_seconds, seconds_text) for row in rows)
        if points:
            series.append(Series(path, points, index))
    if not series:
        return None
    return _chart(key, "Time to the first token against context", _CONTEXT, Axis("time", _seconds, log=True), series)


def _memory(table: Table, key: str) -> Chart | None:
    """Weights and cache of every row, those that do not fit too, against what there is."""
    series = []
    for index, path in enumerate(_paths(table)):
        points = []
        for row in (row for row in table.rows if row.path == path):
            if row.cache_figure is None:
                continue
            total = table.weights.total_bytes + row.cache_figure
            title = f"{path} at {row.context:,}: {bytes_text(total)}" + (f", {row.not_run}" if row.not_run else "")
            data = {"path": path, "context": str(row.context), "value": str(total)}
            points.append(Point(row.context, total, title, data=data))
        if points:
            series.append(Series(path, tuple(points), index))
    if not series:
        return None
    limits = (Limit(f"there is {_plain(bytes_text(table.memory))}", table.memory),) if table.memory else ()
    axis = Axis("weights and cache", lambda value: _plain(bytes_text(value)), log=True, binary=True)
    return _chart(key, "Memory of weights and cache against context", _CONTEXT, axis, series, limits)


def _roofline(table: Table, key: str) -> Chart | None:
    """Operations a second over operations a byte: the roof that the peaks set, and where each row lies below it."""
    if table.peaks is None or table.kind != "measured":
        return None
    series = []
    for index, path in enumerate(_paths(table)):
        for what, figure, bound_of, hollow in (
            ("decode", _decode_seconds, lambda row: row.decode_bound, False),
            ("prompt", _prompt_seconds, lambda row: row.prompt_bound, True),
        ):
            points = []
            for row in (row for row in table.rows if row.path == path):
                seconds, bound = figure(row), bound_of(row)
                if seconds is None or bound is None:
                    continue
                rate = bound.flops / seconds
                title = (
                    f"{what} {path} at {row.context:,}: {rate / 1e9:,.3g} GFLOP/s, "
                    f"{100 * bound.seconds / seconds:.0f}% of what the peaks allow"
                )
                data = {"path": path, "context": str(row.context), "kind": what, "value": repr(rate)}
                points.append(Point(bound.flops / bound.bytes_read, rate, title, data=data))
            if points:
                series.append(Series(f"{what} {path}", tuple(points), index, joined=False, hollow=hollow))
    if not series:
        return None
    at = [point.x for one in series for point in one.points]
    low, high = min(*at, table.peaks.balance) / 2, max(*at, table.peaks.balance) * 2
    roof = [Point(x, min(x * table.peaks.bandwidth, table.peaks.flops), "") for x in (low, table.peaks.balance, high)]
    series.append(Series("roof: the measured peaks", tuple(roof), 5, bound=True))
    x = Axis("operations a byte", _rate, log=True)
    y = Axis("operations a second", lambda value: f"{_rate(value / 1e9)} G", log=True)
    return _chart(key, "Roofline: operations a second over operations a byte", x, y, series)


def _chart(key: str, title: str, x: Axis, y: Axis, series: Sequence[Series], limits: tuple[Limit, ...] = ()) -> Chart:
    """The chart with a description made of its own figures."""
    parts = []
    for one in series:
        if not one.bound:
            figures = ", ".join(f"{y.show(point.y)} at {x.show(point.x)}" for point in one.points)
            parts.append(f"{one.name}: {figures}")
    parts += [limit.name for limit in limits]
    return Chart(key, title, f"{y.label} against {x.label}. {'; '.join(parts)}.", x, y, tuple(series), limits)


def _tokens_a_second(value: float) -> str:
    return f"{rate_text(value)} tok/s"


def _point(
    row: Row, name: str, value: float, samples: Sequence[float], show: Callable[[float], str] = _tokens_a_second
) -> Point:
    """A row's figure with the least and the most of its repeats."""
    low, high = (min(samples), max(samples)) if len(samples) > 1 else (None, None)
    data = {"path": name, "context": str(row.context), "value": repr(value)}
    return Point(row.context, value, f"{name} at {row.context:,}: {show(value)}", low, high, data)


def _paths(table: Table) -> list[str]:
    """Our paths first: they have the same colours in every chart, with other runtimes beside them or without."""
    return list(dict.fromkeys(row.path for row in sorted(table.rows, key=lambda row: row.peer)))


def _decode(row: Row) -> float | None:
    return row.decode_rate


def _prompt(row: Row) -> float | None:
    return row.prompt_rate


def _decode_seconds(row: Row) -> float | None:
    return 1 / row.decode_rate if row.decode_rate else None


def _prompt_seconds(row: Row) -> float | None:
    return row.context / row.prompt_rate if row.prompt_rate else None


def _decode_samples(row: Row) -> list[float]:
    """Each repeat's tokens a second."""
    return [1 / median(repeat) for repeat in row.decode_seconds]


def _prompt_samples(row: Row) -> list[float]:
    return [row.context / seconds for seconds in row.prompt_seconds]
