"""No submission runs long, measured: an artificially slow device, a really slow kernel, a long prompt; same results."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from helpers import fetch, upload
from small_models import SmallModel

from model.engine import Session
from model.layout import PATHS
from vkbackend.buffer import Buffer
from vkbackend.device import Device, open_device
from vkbackend.kernel import Kernel
from vkbackend.pace import LIMIT_S, TARGET_S, Pace
from vkbackend.program import Program

pytestmark = pytest.mark.alone
ARITHMETIC = Kernel("peak_arithmetic.comp", (("source", "r"), ("sink", "w")), ("ROUNDS",))
# What else runs on the machine may hold up a submission that was cut for TARGET_S; 1 s is the promise at worst.
BUSY_S = 1.0


@contextmanager
def slow(device: Device, seconds_per_workgroup: float) -> Iterator[Pace]:
    """The device with that much added to each workgroup, and nothing learnt yet; what it learns is forgotten after."""
    before, device.pace = device.pace, Pace()
    device.companion.slow_down(seconds_per_workgroup)
    try:
        yield device.pace
    finally:
        device.companion.slow_down(0)
        device.pace = before


def longest(pace: Pace) -> float:
    """Seconds of the longest submission since the last call."""
    found, pace.longest_s = pace.longest_s, 0.0
    return found


@pytest.mark.parametrize("path", ["mla", "mha"])
def test_a_slow_devices_submissions_are_short_and_its_results_equal(embedded: SmallModel, path: str) -> None:
    """From the first run on, though a chunk takes seconds there and its largest launch alone more than the limit."""
    device, tokens = embedded.model.device, [5, 900, 33, 7, 1200, 2, 64, 11]
    session = Session(embedded.model, PATHS[path], 64, chunk=8)
    expected = session.prompt(tokens, "all")
    groups = max(np.prod(launch.grid) for launch in session._forward.chunk.launches)
    pace_s = 2 * LIMIT_S / groups
    session.close()
    with slow(device, pace_s) as pace:
        session = Session(embedded.model, PATHS[path], 64, chunk=8)
        for run in range(2):
            session.rewind(0)
            before = pace.submissions
            found = session.prompt(tokens, "all")
            np.testing.assert_array_equal(found, expected)
            assert longest(pace) < (LIMIT_S if run else BUSY_S)
            assert pace.submissions - before > 3
        session.close()


@pytest.fixture
def hard(device: Device) -> Iterator[tuple[Program, Buffer]]:
    """One dispatch that takes about 1.5 s by itself, and what it writes."""
    groups, lanes = 96, device.subgroup_size
    source = upload(device, np.repeat(np.array([0.5, 1.0], np.float32), 4))
    sink = upload(device, np.zeros(groups * lanes, np.float32))

    def program(rounds: int) -> Program:
        made = Program(device, "hard")
        made.launch(ARITHMETIC, {"source": source, "sink": sink}, (groups, 1, 1), spec={"ROUNDS": rounds})
        return made

    trial, rounds, seconds = program(1024), 1024, 0.0
    while seconds < 0.02:  # faster devices need more rounds
        trial, rounds = program(4 * rounds), 4 * rounds
        for _ in range(2):
            started = time.perf_counter()
            trial.run()
            seconds = time.perf_counter() - started
        trial.free()
    made = program(min(2**31, int(rounds * 1.5 / seconds)))
    yield made, sink
    made.free()
    sink.free()
    source.free()


def test_a_really_slow_kernel_is_split(device: Device, hard: tuple[Program, Buffer]) -> None:
    program, sink = hard
    before = device.pace
    device.pace = pace = Pace()
    try:
        for run in range(4):
            sink.upload(np.zeros(96 * device.subgroup_size, np.float32))
            started, submissions = time.perf_counter(), pace.submissions
            program.run()
            assert longest(pace) < (LIMIT_S if run > 1 else BUSY_S)
            assert pace.submissions - submissions >= (time.perf_counter() - started) / (2 * LIMIT_S)
            np.testing.assert_array_equal(fetch(sink, 96 * device.subgroup_size), 24.0)
        assert pace.submissions - submissions > 3
    finally:
        device.pace = before


def test_a_jump_to_a_long_context_is_foreseen(embedded: SmallModel) -> None:
    """Decode learnt at position 0, then run behind 2000: bounded at once, in one submission soon after."""
    device = embedded.model.device
    before, device.pace = device.pace, Pace()
    try:
        session = Session(embedded.model, PATHS["mha"], 2048)
        first = session.decode(5)
        session.rewind(0)
        assert session.decode(5) == first
        rng = np.random.default_rng(0)
        session.prompt(rng.integers(0, embedded.config.n_vocab, 2000).tolist(), "none")
        assert longest(device.pace) < BUSY_S
        for _ in range(4):
            session.decode(5)
        assert longest(device.pace) < LIMIT_S
        submissions = device.pace.submissions
        session.decode(5)
        assert device.pace.submissions - submissions == 1
        session.close()
    finally:
        device.pace = before


def test_a_long_prompts_chunks_are_short_submissions(embedded: SmallModel) -> None:
    """The fallback's last chunk at 2048 does the most work a chunk does here."""
    device = embedded.model.device
    session = Session(embedded.model, PATHS["mha"], 2048, chunk=256)
    tokens = np.random.default_rng(1).integers(0, embedded.config.n_vocab, 2048).tolist()
    session.prompt(tokens, "none")
    session.rewind(2048 - 256)
    longest(device.pace)
    session.prompt(tokens[-256:], "none")
    found = longest(device.pace)
    assert TARGET_S / 100 < found < LIMIT_S
    session.close()


def test_profile_cuts_as_a_run_does(embedded: SmallModel) -> None:
    device = embedded.model.device
    session = Session(embedded.model, PATHS["mla"], 64, chunk=8)
    tokens = [5, 900, 33, 7, 1200, 2, 64, 11]
    session.prompt(tokens, "none")
    expected = session.prompt(tokens)
    session.rewind(8)
    groups = max(np.prod(launch.grid) for launch in session._forward.chunk.launches)
    with slow(device, 2 * LIMIT_S / groups) as pace:
        session._set(tokens)
        times = session._forward.chunk.profile(items=8, depth=16)
        assert longest(pace) < BUSY_S
    assert [t.label for t in times] == [launch.label for launch in session._forward.chunk.launches]
    assert all(t.seconds >= 0 for t in times) and sum(t.seconds for t in times) > 0
    session._forward.head_last.run()
    np.testing.assert_array_equal(session.last_logits(), expected)
    session.close()


def test_a_device_counts_its_submissions_from_the_start() -> None:
    device = open_device()
    assert device.pace.submissions > 0  # the health check
    assert 0 < device.pace.longest_first_s < BUSY_S
    device.close()
