"""Figures as text: one spelling of bytes, seconds and rates for every command."""

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")


def bytes_text(value: float) -> str:
    """Bytes with a binary unit and four significant digits: '432 B', '117.5 GiB'."""
    unit = 0
    while value >= 1024 and unit < len(_BINARY) - 1:
        value /= 1024
        unit += 1
    return f"{value:,.0f} B" if unit == 0 else f"{significant(value, 4)} {_BINARY[unit]}"


def decimal_bytes_text(value: float) -> str:
    """Bytes with a decimal unit, as bandwidths have: '2.17 GB'."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{significant(value / size)} {unit}"
    return f"{value:,.0f} B"


def rate_text(value: float) -> str:
    """Tokens a second, three significant digits."""
    return significant(value)


def seconds_text(value: float) -> str:
    """From '789 ns' over '12.3 ms' to '46.1 min'; negative values (a fitted line's start) keep their sign."""
    size = abs(value)
    if size < 1e-6:
        return f"{significant(1e9 * value)} ns"
    if size < 1e-3:
        return f"{significant(1e6 * value)} \u00b5s"
    if size < 1:
        return f"{significant(1e3 * value)} ms"
    return f"{significant(value)} s" if size < 120 else f"{significant(value / 60)} min"


def significant(value: float, digits: int = 3) -> str:
    """At least that many significant digits, no exponent above 1e-4: '1,234', '12.3', '0.0123'."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.1e}"


def about_text(value: float) -> str:
    """A count of two significant digits: 1,271 -> '1,300'."""
    return f"{float(f'{value:.2g}'):,.0f}"
