"""Committed figures of the kernels on one chip, and whether new ones are worse.

A baseline is judged only by the compiler that made it: another Mesa allocates registers in another way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from harness.atomic import write_text
from harness.shader_row import Row, row_json
from vkbackend.errors import InputError

SCHEMA, VERSION = "latentvk.shader-stats", 1
# How much more is no regression. Registers are handed out in steps of at least 8 to a wave of 64; a unit's
# instructions move by a few in a hundred with the scheduling of address arithmetic.
REGISTERS_MORE, INSTRUCTIONS_MORE = 4, 0.02
_EXACT = {"spilled_vgprs": "spilled VGPRs", "spilled_sgprs": "spilled SGPRs", "scratch_bytes": "scratch bytes"}


def save(path: Path, chip: str, driver: str, rows: Sequence[Row]) -> None:
    """Write the figures, by variant, whole or not at all."""
    variants = {row.name: {k: v for k, v in row_json(row).items() if k != "name"} for row in rows}
    record = {"schema": SCHEMA, "schema_version": VERSION, "chip": chip, "driver": driver, "variants": variants}
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def load(path: Path) -> dict[str, Any]:
    """A baseline. InputError when the file is none, or of another version."""
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), expected a baseline; write one with --save"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}), expected a baseline; write one with --save") from None
    found = (record.get("schema"), record.get("schema_version")) if isinstance(record, dict) else (None, None)
    if found != (SCHEMA, VERSION):
        raise InputError(
            f"{path}: schema {found[0]!r} version {found[1]!r}, expected {SCHEMA!r} version {VERSION}; "
            "write it again with --save"
        )
    return record


def judge(path: Path, chip: str, driver: str, rows: Sequence[Row], exact: bool = False) -> int:
    """Print what is worse than the baseline at ``path``, or ``exact``: whatever differs; 1 if anything is, else 0.

    Raises InputError for a baseline of another chip. One made by another driver version is not judged, and said so.
    """
    base = load(path)
    if base["chip"] != chip:
        raise InputError(f"{path}: a baseline of {base['chip']}, expected one of {chip}; choose it with --chip")
    if base["driver"] != driver:
        print(f"not judged: {path} was made by {base['driver']}, this is {driver}; renew it with --save")
        return 0
    compare = differences if exact else regressions
    worse = [(row.name, *change) for row in rows for change in compare(base["variants"].get(row.name), row)]
    missing = [row.name for row in rows if row.name not in base["variants"]]
    if missing:
        print(f"not in the baseline: {len(missing)} variants, the first: {missing[0]}; renew it with --save")
    if not worse:
        what = "differs from" if exact else "is worse than"
        print(f"no variant {what} {path} ({len(rows) - len(missing)} compared)")
        return int(exact and bool(missing))
    table = Table(box=box.SIMPLE_HEAD, title=f"{'other' if exact else 'worse'} than {path}", title_justify="left")
    for name in ("variant", "what", "was", "is"):
        table.add_column(name, justify="left" if name in ("variant", "what") else "right")
    for name, what, was, now in worse:
        table.add_row(name, what, f"{was:g}", f"{now:g}")
    Console(highlight=False).print(table)
    print("where that is meant, renew the baseline with --save and say why in the commit")
    return 1


def differences(base: dict[str, Any] | None, row: Row) -> list[tuple[str, float, float]]:
    """(what, was, is) for each of the driver's figures that is another; none without a ``base``."""
    if base is None:
        return []
    return [(key, base.get(key, 0), value) for key, value in row.statistics.items() if value != base.get(key, 0)]


def regressions(base: dict[str, Any] | None, row: Row) -> list[tuple[str, float, float]]:
    """(what, was, is) for each figure of ``row`` that grew by more than its tolerance; none without a ``base``."""
    if base is None:
        return []
    found: list[tuple[str, float, float]] = []
    for key, name in _EXACT.items():
        if row.statistics.get(key, 0) > base.get(key, 0):
            found.append((name, base.get(key, 0), row.statistics[key]))
    if row.statistics["vgprs"] > base["vgprs"] + REGISTERS_MORE:
        found.append(("VGPRs", base["vgprs"], row.statistics["vgprs"]))
    if row.cost is not None and base["unit"] is not None:
        for key, name in (("valu", "VALU"), ("loaded_bytes", "bytes loaded")):
            was, now = base["unit"][key], getattr(row.cost, key)
            if now > was * (1 + INSTRUCTIONS_MORE):
                found.append((f"{name} for each {row.cost.unit}", was, now))
    return found
