#!/usr/bin/env python3
"""Fuzzes the GGUF reader, the config and the tokenizer: damaged models, each opened, checked, inspected and tokenized.

A case is made from its number alone: `--seed S --first N` goes on where a run of that seed stopped, `--cases 1` repeats
one. Anything but an InputError of one line is a finding: another exception, a case over its time limit, a process that
dies or holds more than a gigabyte. Prints the findings, the slowest case, the peak memory, and which of the places that
raise an InputError were reached. Exit code 1 where there is a finding. Run it in the project's environment:

    .venv/bin/python tools/fuzz_gguf.py --cases 1000000 --processes 2
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fuzz.mutate import case
from tests.fuzz.target import run, sites, write

MOST_MEMORY = 10**9  # bytes resident
MOST_SECONDS = 10.0  # a case, on a machine that has other work too
HUNG = 60.0  # seconds without a case done: the process is stuck where no Python runs
WHOLE_EVERY = 20  # cases; the whole takes longer than all the rest


class TooSlow(BaseException):
    """A case ran past its time limit. No Exception, so that nothing under test can catch it."""


def too_slow(number: int, frame: object) -> None:
    raise TooSlow


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(seed: int, first: int, end: int, step: int, at: Synchronized[int], report: Path) -> None:
    """Cases ``first``, ``first + step`` ... below ``end``; ``at`` is the one at work, the findings go to ``report``."""
    signal.signal(signal.SIGALRM, too_slow)
    # What mmap of small files and threads' stacks take of address space, on top of what must not be passed.
    resource.setrlimit(resource.RLIMIT_AS, (4 * MOST_MEMORY, resource.RLIM_INFINITY))
    reached: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    parent = multiprocessing.parent_process()
    assert parent is not None
    slowest = (0.0, 0)
    unharmed = 0
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    for done, index in enumerate(range(first, end, step), start=1):
        at.value = index
        place, before, known, started = folder / "case", peak(), len(findings), time.perf_counter()
        place.mkdir()
        try:
            signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
            raised = run(write(case(seed, index), place), whole=index % WHOLE_EVERY == 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            reached.update(f"{module}:{line}" for module, line in raised)
            unharmed += not raised
        except BaseException as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            if isinstance(error, KeyboardInterrupt):
                raise
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            where = " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
            findings.append({"case": index, "what": f"{type(error).__name__} at {where}", "text": str(error)[:300]})
        if peak() > MOST_MEMORY >= before:
            findings.append({"case": index, "what": "memory", "text": f"{peak()} bytes resident"})
        slowest = max(slowest, (time.perf_counter() - started, index))
        shutil.rmtree(place)
        if done % 1000 == 0 and not parent.is_alive():
            return
        if done % 1000 == 0 or index + step >= end or len(findings) > known:
            found = {"done": done, "unharmed": unharmed, "reached": reached, "findings": findings}
            report.write_text(json.dumps(found | {"slowest": slowest, "peak": peak(), "last": index}))
    folder.rmdir()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, metavar="N", help="how many (default 10000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other cases (default 0)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case (default 0)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="default 1")
    args = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        reports = [Path(folder) / f"{n}.json" for n in range(args.processes)]
        stuck = watch(args, reports)
        found = [json.loads(report.read_text()) for report in reports if report.exists()]
    return show(found, stuck, time.perf_counter() - started)


def watch(args: argparse.Namespace, reports: list[Path]) -> list[str]:
    """Run the processes to their end; a line for each that died or hung."""
    context = multiprocessing.get_context("spawn")
    end, step = args.first + args.cases, len(reports)
    ats = [context.Value("q", -1, lock=False) for _ in reports]
    workers = [
        context.Process(target=work, args=(args.seed, args.first + n, end, step, ats[n], reports[n]))
        for n in range(step)
    ]
    for worker in workers:
        worker.start()
    last, since, stuck = [-1] * step, [time.monotonic()] * step, []
    while any(worker.is_alive() for worker in workers):
        time.sleep(1)
        for n, worker in enumerate(workers):
            if ats[n].value != last[n]:
                last[n], since[n] = ats[n].value, time.monotonic()
            elif worker.is_alive() and time.monotonic() - since[n] > HUNG:
                worker.kill()
                stuck.append(f"case {last[n]}: hung for {HUNG:.0f} s outside Python")
    stuck += [f"case {last[n]}: the process ended with {w.exitcode}" for n, w in enumerate(workers) if w.exitcode]
    return stuck


def show(found: list[dict[str, Any]], stuck: list[str], seconds: float) -> int:
    done = sum(part["done"] for part in found)
    findings = [finding for part in found for finding in part["findings"]]
    reached: Counter[str] = Counter()
    for part in found:
        reached.update(part["reached"])
    lines = {(place.split(":")[0], int(place.split(":")[1])) for place in reached}
    places = sites()
    missed = [s for s in places if not any(s[0] == module and s[1] <= line <= s[2] for module, line in lines)]
    unharmed = sum(part["unharmed"] for part in found)
    print(f"{done} cases in {seconds:.0f} s ({done / seconds:.0f}/s), {unharmed} without an error")
    if found:
        slowest, memory = max(part["slowest"] for part in found), max(part["peak"] for part in found)
        print(f"slowest: case {slowest[1]}, {slowest[0] * 1e3:.0f} ms; peak {memory / 1e6:.0f} MB resident")
    print(f"InputError reached from {len(places) - len(missed)} of {len(places)} places", end="")
    print("; not from " + ", ".join(f"{module}.py:{line}" for module, line, _ in missed) if missed else "")
    kinds = Counter(finding["what"] for finding in findings)
    first = {finding["what"]: finding for finding in reversed(findings)}
    for what, count in kinds.most_common():
        print(f"FOUND {count} x {what}, first in case {first[what]['case']}: {first[what]['text']}")
    for line in stuck:
        print(f"FOUND {line}")
    if not findings and not stuck:
        print("nothing but InputErrors of one line")
    return 1 if findings or stuck else 0


if __name__ == "__main__":
    sys.exit(main())
