"""Other runtimes beside our own paths: programs that run in turns with ours, a server, or results that they wrote.

A peer's turn is one run of its own benchmark at the context in question, so that it and ours share the machine's drift;
what it loads and fills each time is not in its figures, as llama-bench and sweep-bench time their tests alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.inference import Point
from harness.measure import Turn
from harness.measurements import Measurements, parse_measurements, read_measurements
from harness.results import Row
from vkbackend.errors import InputError, shown

KINDS = ("llama-bench", "sweep-bench", "ollama")
_EXPECTED = "expected llama-bench=PROGRAM, sweep-bench=PROGRAM, ollama=MODEL[@URL] or a file of results"
_NEAR = 0.05  # an imported point within this share of a context stands in its rows
_MOST_BATCH = 512  # llama.cpp's default micro-batch, sweep-bench's step


@dataclass(frozen=True)
class PeerSpec:
    """One --peer as given: ``kind`` of KINDS, or '' for a file of results whose runtime nobody named."""

    kind: str
    where: str


def peer_spec(text: str) -> PeerSpec:
    """'llama-bench=/usr/bin/llama-bench -fa 1' or a file's name; for argparse."""
    kind, mark, where = text.partition("=")
    if mark and kind in KINDS and where:
        return PeerSpec(kind, where)
    if text and not mark:
        return PeerSpec("", text)
    raise argparse.ArgumentTypeError(f"found '{text}', {_EXPECTED}")


class PeerError(Exception):
    """A peer could not measure a context: a row without figures, not the end of ours."""


@dataclass(frozen=True)
class Job:
    """One context of a peer: tokens decoded up to ``context``, and what gives the tokens before them as text."""

    context: int
    n_decode: int
    text: Callable[[], str]

    @property
    def depth(self) -> int:
        """Tokens cached when decoding starts."""
        return self.context - self.n_decode


class Peer(Protocol):
    """A runtime that can be run: each call is one test, whose rate in tokens a second comes back (None: it has no such
    test). Both raise PeerError."""

    name: str

    def decode(self, job: Job) -> Point: ...

    def prompt(self, job: Job) -> float | None: ...

    def about(self) -> str:
        """What ran, for the report's notes; known after the first run."""


@dataclass
class PeerTurn(Turn):
    """A peer's samples at one context; after a failure its turns are skipped."""

    peer: Peer
    job: Job
    points: list[Point] = field(default_factory=list)
    prompt_seconds: list[float] = field(default_factory=list)
    failed: str = ""

    def time_prompt(self) -> None:
        try:
            rate = self.peer.prompt(self.job)
            self.prompt_seconds += [] if rate is None else [self.job.context / rate]
        except PeerError as error:
            self.failed = str(error)

    def time_decode(self) -> None:
        if self.failed:
            return
        try:
            self.points.append(self.peer.decode(self.job))
        except PeerError as error:
            self.failed = str(error)

    def row(self) -> Row:
        """The peer's row, with one sample for each turn."""
        if self.failed:
            return Row(self.peer.name, self.job.context, None, peer=True, not_run=self.failed)
        return Row(
            self.peer.name,
            self.job.context,
            None,
            peer=True,
            decode_seconds=tuple((point.seconds,) for point in self.points),
            decode_contexts=(round(self.points[0].context),) if self.points else (),
            prompt_seconds=tuple(self.prompt_seconds),
        )


def peer_turns(
    peers: Sequence[Peer], texts: Mapping[int, Callable[[], str]], n_decode: int
) -> dict[int, list[PeerTurn]]:
    """For each context, with what gives its prompt as text, the turns of every peer."""
    return {c: [PeerTurn(peer, Job(c, n_decode, text)) for peer in peers] for c, text in texts.items()}


def imported_rows(name: str, found: Measurements, contexts: Sequence[int]) -> list[Row]:
    """Rows of results that were measured elsewhere: at the asked context that a point is near, else at its own."""
    rows = []
    for point in found.points:
        near = min(contexts, key=lambda context: abs(context - point.context))
        context = near if abs(near - point.context) <= _NEAR * near else round(point.context)
        decode = ((point.seconds,),)
        rows.append(Row(name, context, None, peer=True, decode_seconds=decode, decode_contexts=(round(point.context),)))
    rows += [Row(name, context, None, peer=True, not_run="out of memory") for context in found.out_of_memory]
    return rows


@dataclass
class Program:
    """A program whose output is llama-bench's jsonl or sweep-bench's."""

    name: str
    program: Path
    model: Path
    cache_type: str
    extra: list[str]
    device: list[str] = field(default_factory=list)
    ran: dict[str, Any] = field(default_factory=dict)

    def run(self, *arguments: str) -> list[dict[str, Any]]:
        """The records that one run prints. Raises PeerError when it fails, with its own last line."""
        command = [str(self.program), "-m", str(self.model), *arguments, "-ctk", self.cache_type]
        command += ["-ctv", self.cache_type, *self.device, *self.extra]
        done = _run(command)
        records = []
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                try:
                    records.append(json.loads(line))
                except ValueError:
                    raise PeerError(f"{self.name} printed {shown(line)}, expected JSON") from None
        if done.returncode or not records:
            last = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise PeerError(f"{self.name} ended with code {done.returncode} and said: {shown(last)}")
        self.ran = records[-1]
        return records

    def about(self) -> str:
        where = self.ran.get("gpu_info") or self.ran.get("cpu_info")
        facts = {
            "build": self.ran.get("build_commit"),
            "backend": self.ran.get("backends"),
            "on": where,
            "threads": self.ran.get("n_threads"),
            "layers on the GPU": self.ran.get("n_gpu_layers"),
            "flash attention": self.ran.get("flash_attn"),
        }
        told = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        return f"{self.program.name} {' '.join([*self.device, *self.extra])}".strip() + (f": {told}" if told else "")


class LlamaBench(Program):
    """llama.cpp's llama-bench: decoding from a depth, a whole prompt from nothing, one repetition a run."""

    def decode(self, job: Job) -> Point:
        records = self.run(
            "-p", "0", "-n", str(job.n_decode), "-d", str(job.depth), "-r", "1", "-o", "jsonl"
        )  # fmt: skip
        return _only_point(self.name, records)

    def prompt(self, job: Job) -> float:
        records = self.run("-p", str(job.context), "-n", "0", "-r", "1", "-o", "jsonl")
        return _rate(self.name, records[-1].get("avg_ts"))


class SweepBench(Program):
    """ik_llama.cpp's sweep-bench: one sweep up to the depth in equal steps, of which the last one's line counts."""

    def decode(self, job: Job) -> Point:
        record = self._last(job)
        tokens = record.get("tg")
        context = record["n_kv"] + (tokens + 1) / 2 if isinstance(tokens, int) else record["n_kv"]
        return Point(context, _rate(self.name, record.get("speed_tg")))

    def prompt(self, job: Job) -> None:
        """A sweep times prompts step by step, never a whole one from nothing."""

    def _last(self, job: Job) -> dict[str, Any]:
        steps = max(1, -(-job.depth // _MOST_BATCH))
        batch = max(1, job.depth // steps)
        records = self.run(
            "-c", str((steps + 1) * batch), "-ub", str(batch), "-n", str(job.n_decode), "--output-format", "jsonl"
        )  # fmt: skip
        found = [record for record in records if record.get("n_kv") == steps * batch]
        if not found:
            raise PeerError(f"{self.name} printed no line at n_kv {steps * batch}, expected one")
        return found[0]


def _only_point(name: str, records: Sequence[dict[str, Any]]) -> Point:
    """The one decode test of llama-bench's records."""
    try:
        points = parse_measurements("\n".join(map(json.dumps, records)), name).points
    except InputError as error:
        raise PeerError(str(error)) from None
    return points[-1]


def _rate(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not value > 0:
        raise PeerError(f"{name} printed a rate of {value!r}, expected tokens a second")
    return float(value)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise PeerError(f"{shown(command[0])} cannot be run ({error.strerror})") from None


def split_program(where: str) -> tuple[Path, list[str]]:
    """A program and the arguments after it. Raises InputError when there is no such program."""
    if Path(where).exists():
        return Path(where), []
    try:
        program, *extra = shlex.split(where)
    except ValueError:
        program, extra = where, []
    path = Path(program).expanduser()
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise InputError(f"--peer: {shown(program)} is no program, {_EXPECTED}; check the path")
    return path, extra


def device_options(program: Path, device: str) -> list[str]:
    """llama-bench's option for our device, by its name in `--list-devices`; empty where it is not listed there."""
    try:
        listed = _run([str(program), "--list-devices"]).stdout
    except PeerError:
        return []
    wanted = device.split("(")[0].strip()
    for line in listed.splitlines():
        name, mark, description = line.strip().partition(":")
        if mark and " " not in name and wanted and wanted in description:
            return ["-dev", name, "-ngl", "99"]
    return []


@dataclass(frozen=True)
class Imported:
    """Results that a peer wrote before."""

    name: str
    found: Measurements
    file: str

    def about(self) -> str:
        return f"{self.found.format} of {Path(self.file).name}, measured elsewhere and not in turns with ours"


def open_peers(
    specs: Sequence[PeerSpec], model: Path, cache_type: str, device: str
) -> tuple[list[Peer], list[Imported]]:
    """What the options name. Raises InputError for a program, a server or a file that is not there."""
    from harness.peer_ollama import Ollama

    running: list[Peer] = []
    imported: list[Imported] = []
    for spec in specs:
        names = [peer.name for peer in running] + [results.name for results in imported]
        if spec.kind == "ollama":
            running.append(Ollama.connect(_numbered("ollama", names), spec.where))
            continue
        path = Path(spec.where)
        if not spec.kind or (path.is_file() and not os.access(path, os.X_OK)):
            name = _numbered(spec.kind or path.stem, names)
            imported.append(Imported(name, read_measurements(spec.where), spec.where))
            continue
        program, extra = split_program(spec.where)
        name = _numbered(spec.kind, names)
        if spec.kind == "llama-bench":
            running.append(LlamaBench(name, program, model, cache_type, extra, device_options(program, device)))
        else:
            running.append(SweepBench(name, program, model, cache_type, extra))
    return running, imported


def _numbered(name: str, taken: Sequence[str]) -> str:
    """The name, or with a number where it is taken."""
    return next(n for n in (name, *(f"{name} {i}" for i in range(2, len(taken) + 3))) if n not in taken)
