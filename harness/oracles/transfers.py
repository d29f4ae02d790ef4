"""What the backend runs for itself: copies, zeroes, the two kernels that measure peaks, the probe of a subgroup."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from harness.oracles.case import CANARY, Case, Draft, Expected, Target


def copy_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Words from the middle of one buffer to the middle of another."""
    each = target.spec["EACH"] * target.lanes
    for count in (1, each - 1, each, 3 * each + 5, int(rng.integers(1, 5000))):
        draft = Draft(target.info, f"{count} words")
        source = rng.integers(0, 2**32, count + 9, np.uint32)
        before = rng.integers(0, 2**32, count + 13, np.uint32)
        to = draft.upload(before)
        buffers = {"source": draft.upload(source), "target": to}
        push = {"from": 4, "to": 7, "count": count}
        draft.launch(target.kernel, buffers, (-(-count // each), 1, 1), spec=target.spec, push=push)
        expected = before.copy()
        expected[7 : 7 + count] = source[4 : 4 + count]
        yield draft.case({to: Expected(expected, np.uint32, axes=("word",))})


def zero_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Words in the middle of a buffer."""
    each = target.spec["EACH"] * target.lanes
    for count in (1, each - 1, each, 3 * each + 5, int(rng.integers(1, 5000))):
        draft = Draft(target.info, f"{count} words")
        before = rng.integers(1, 2**32, count + 13, np.uint32)
        to = draft.upload(before)
        push = {"to": 7, "count": count}
        draft.launch(target.kernel, {"target": to}, (-(-count // each), 1, 1), spec=target.spec, push=push)
        expected = before.copy()
        expected[7 : 7 + count] = 0
        yield draft.case({to: Expected(expected, np.uint32, axes=("word",))})


def read_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Every lane's sink holds the exclusive or of all that the lane loaded."""
    loads, lanes = target.spec["LOADS"], target.lanes
    for groups in (1, int(rng.integers(2, 9))):
        draft = Draft(target.info, f"{groups} workgroups")
        source = rng.integers(0, 2**32, (groups, loads, lanes, 4), np.uint32)
        sink = draft.untouched(groups * lanes)
        buffers = {"source": draft.upload(source), "sink": sink}
        draft.launch(target.kernel, buffers, (groups, 1, 1), spec=target.spec)
        expected = np.bitwise_xor.reduce(source, axis=(1, 3))
        yield draft.case({sink: Expected(expected, np.uint32, axes=("workgroup", "lane"))})


def arithmetic_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Factors of 1/2 and 1/4 bring every chain to addend / (1 - factor), exactly: the sum of 12 of them."""
    for factor, addend, groups in ((0.5, 1.0, 1), (0.25, 0.75, int(rng.integers(2, 9)))):
        draft = Draft(target.info, f"factor {factor:g}, {groups} workgroups")
        sink = draft.canary(groups * target.lanes)
        source = np.repeat(np.array([factor, addend], np.float32), 4)
        draft.launch(target.kernel, {"source": draft.upload(source), "sink": sink}, (groups, 1, 1), spec=target.spec)
        expected = np.full((groups, target.lanes), 12 * addend / (1 - factor), np.float32)
        yield draft.case({sink: Expected(expected, axes=("workgroup", "lane"))})


def probe_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """A workgroup is one whole subgroup."""
    draft = Draft(target.info, "one workgroup")
    result = draft.upload(np.full(2, CANARY))
    draft.launch(target.kernel, {"result": result}, (1, 1, 1))
    size = np.full(2, target.lanes, np.uint32)
    yield draft.case({result: Expected(size, np.uint32, axes=("size, lanes",))})
