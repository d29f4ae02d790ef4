"""The figures of this code that no noise excuses, against the committed baseline of the device: `make test` runs it.

Cache bytes, launches and allocations of every path must equal `results/DEVICE/gate.json` exactly. Times are judged as a
ratio within one run alone: path `mha` over `mla` in turns, which a slower `mla` lowers. `make baseline` writes the file
again; a device without one is not judged.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.atomic import write_text
from harness.judging import ADDED, EQUAL, MISSING, Finding, exact_findings
from harness.metrics import Exact, Side
from harness.regress_report import cells
from harness.regress_run import ROOT, measure_once, take_turns
from harness.significance import median_ratio, ratio_interval
from vkbackend.errors import DeviceError, InputError, LatentvkError
from vkbackend.tuning import OFF, VARIABLE

SCHEMA, SCHEMA_VERSION = "latentvk.gate", 1
RESULTS = ROOT / "results"
PATHS = ("mla", "mla-v", "mha")
EXACT_RUN = ("-p", "128", "-n", "2", "-d", "0,512", "-r", "1", "--no-peaks")
RATIO_RUN = ("-p", "0", "-n", "16", "-d", "2048")
TURNS = 10
# How far the ratio may fall, its interval wholly: on two cores that four other programs wanted, medians of ten turns
# lay between 1.4 and 2.2. A kernel that loses its subgroup form costs more than this.
RATIO_FALL = 0.25


@dataclass(frozen=True)
class Gate:
    """What is compared: a device's exact figures, and the ratio of decode times with its 95% interval's upper end."""

    device: str
    model: str
    exact: dict[str, Exact]
    ratio: float
    high: float


def measure() -> Gate:
    """Run every path once, then two of them in turns. Raises DeviceError where no device can."""
    exact: dict[str, Exact] = {}
    for path in PATHS:
        side = measure_once(ROOT, ["bench", *EXACT_RUN, "--path", path], path)
        exact |= {f"{name}, {path}": value for name, value in side.exact.items()}
    words = [["bench", *RATIO_RUN, "--path", path] for path in ("mla", "mha")]
    mla, mha = take_turns((ROOT, ROOT), (words[0], words[1]), TURNS, ("mla", "mha"))
    (name,) = mla.timed
    times = mla.timed[name].seconds, mha.timed[name].seconds
    _, high = ratio_interval(*times, paired=True, seed=1)
    return Gate(side.device, side.model, exact, median_ratio(*times), high)


def load(path: Path) -> Gate:
    """A committed baseline. Raises InputError where it is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if (found["schema"], found["schema_version"]) != (SCHEMA, SCHEMA_VERSION):
            raise ValueError(f"{found['schema']} version {found['schema_version']}")
        exact = {name: Exact(value, unit) for name, (value, unit) in found["exact"].items()}
        return Gate(found["device"], found["model"], exact, found["mha_over_mla"], found["mha_over_mla"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is no baseline ({error}), expected {SCHEMA} version {SCHEMA_VERSION}; write it with "
            "`make baseline`"
        ) from None


def save(path: Path, gate: Gate) -> None:
    exact = {name: [figure.value, figure.unit] for name, figure in gate.exact.items()}
    record = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "device": gate.device, "model": gate.model}
    record |= {"mha_over_mla": round(gate.ratio, 3), "exact": exact}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.replace("[\n   ", "[").replace(",\n   ", ", ").replace("\n  ]", "]") + "\n")


def baseline_of(device: str) -> Path | None:
    """The baseline whose device this is."""
    return next((path for path in sorted(RESULTS.glob("*/gate.json")) if load(path).device == device), None)


def changes(base: Gate, new: Gate) -> list[Finding]:
    """The exact figures that differ, and those that one side alone has."""
    one, other = (Side("", gate.device, gate.model, {}, gate.exact) for gate in (base, new))
    found = [finding for finding in exact_findings(one, other) if finding.verdict != EQUAL]
    gone = [(name, MISSING, base.exact[name].value, None) for name in base.exact if name not in new.exact]
    come = [(name, ADDED, None, new.exact[name].value) for name in new.exact if name not in base.exact]
    return found + [Finding(name, verdict, was, now, False) for name, verdict, was, now in gone + come]


def ratio_failure(base: Gate, new: Gate) -> str:
    """What is wrong with the ratio of times, empty where nothing is."""
    least = base.ratio * (1 - RATIO_FALL)
    if new.high >= least:
        return ""
    return (
        f"decoding along mha took {new.ratio:.2f} times as long as along mla (at most {new.high:.2f}), expected at "
        f"least {least:.2f} (the baseline's {base.ratio:.2f} less {RATIO_FALL:.0%}): mla has become slower, or mha "
        "faster"
    )


def judge(path: Path, base: Gate, new: Gate) -> int:
    """Print what changed and how to renew the baseline; 1 where anything did."""
    found, slower = changes(base, new), ratio_failure(base, new)
    if base.model != new.model:
        print(f"gate: {path} is of {base.model}, this is {new.model}; renew it with `make baseline`")
        return 1
    if found:
        _print_table(found)
    if slower:
        print(f"gate: {slower}")
    if found or slower:
        print(
            f"gate: differs from {path}; where that is meant, renew it with `make baseline` and say why in the commit"
        )
        return 1
    print(f"gate: {len(new.exact)} figures equal {path}; mha over mla {new.ratio:.2f}, baseline {base.ratio:.2f}")
    return 0


def _print_table(found: Sequence[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("figure", "was", "is", "change"):
        table.add_column(name, justify="left" if name == "figure" else "right", overflow="fold")
    for finding in found:
        table.add_row(*cells(finding)[:4])
    Console(highlight=False).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renew", action="store_true", help="write the baseline of this device again")
    args = parser.parse_args(argv)
    os.environ[VARIABLE] = OFF  # a baseline is this code's, not of what a user stored
    try:
        new = measure()
        path = baseline_of(new.device)
        if args.renew:
            path = path or RESULTS / new.device.split("(")[0].strip().lower().replace(" ", "-") / "gate.json"
            save(path, new)
            print(f"gate: wrote {path}")
            return 0
        if path is None:
            print(f"gate: not judged, there is no baseline of {new.device}; write one with `make baseline`")
            return 0
        return judge(path.relative_to(ROOT), load(path), new)
    except DeviceError as error:
        print(f"gate: not judged, {error}")
        return 0
    except LatentvkError as error:
        print(f"gate: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
