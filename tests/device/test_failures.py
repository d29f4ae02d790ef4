"""Each Vulkan call that can fail is made to fail in turn: an exception each time, no crash, and everything freed."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from child import in_child
from small_models import PLAIN, TYPES

from harness.synth import write_synthetic
from model.engine import Model, Session
from model.layout import PATHS
from vkbackend import device as device_module
from vkbackend.companion import live_devices
from vkbackend.companion.testing import fail_call_of_next_device
from vkbackend.device import Device, open_device
from vkbackend.errors import OutOfMemoryError
from vkbackend.pace import Pace

TOKENS = [5, 9, 33, 7, 200, 2, 64, 11, 300, 41, 17]

# From here on calls are counted, and the one chosen fails.
Arm = Callable[[], None]


def load(model: Model, undo: ExitStack, arm: Arm) -> None:
    arm()
    undo.callback(Model.load(model.gguf, model.device).close)


def open_session(model: Model, undo: ExitStack, arm: Arm) -> Session:
    arm()
    session = Session(model, PATHS["mla"], 64, chunk=8)
    undo.callback(session.close)
    return session


def open_fallback_session(model: Model, undo: ExitStack, arm: Arm) -> None:
    """The path that expands weights first."""
    arm()
    undo.callback(Session(model, PATHS["mha"], 64, chunk=8).close)


def fallback_weights(model: Model, undo: ExitStack, arm: Arm) -> None:
    """What only that path reads: all of it is there then, or none."""
    fresh = Model.load(model.gguf, model.device)
    undo.callback(fresh.close)
    missing = fresh.weights.missing_fallback_bytes()
    assert missing
    arm()
    try:
        fresh.weights.need_fallback()
    except OutOfMemoryError:
        assert fresh.weights.missing_fallback_bytes() == missing
        raise
    assert not fresh.weights.missing_fallback_bytes()


def prompt(model: Model, undo: ExitStack, arm: Arm) -> None:
    session = open_session(model, undo, lambda: None)
    arm()
    session.prompt(TOKENS)


def decode(model: Model, undo: ExitStack, arm: Arm) -> None:
    session = open_session(model, undo, lambda: None)
    session.prompt(TOKENS)
    arm()
    session.decode(64)
    session.decode(11)


def first_decode(model: Model, undo: ExitStack, arm: Arm) -> None:
    """A device that has not met these launches runs each by itself, in growing pieces, and times it."""
    session = open_session(model, undo, lambda: None)
    model.device.pace = Pace()
    arm()
    session.decode(64)


def decode_ahead(model: Model, undo: ExitStack, arm: Arm) -> None:
    """Several tokens recorded one after the other."""
    session = open_session(model, undo, lambda: None)
    for token in TOKENS:
        session.decode(token)
    arm()
    session.decode_ahead(64)


def all_logits(model: Model, undo: ExitStack, arm: Arm) -> None:
    session = open_session(model, undo, lambda: None)
    arm()
    session.prompt(TOKENS, "all")


STAGES = {
    stage.__name__: stage
    for stage in (
        load,
        open_session,
        open_fallback_session,
        fallback_weights,
        prompt,
        decode,
        first_decode,
        decode_ahead,
        all_logits,
    )
}
# What makes buffers, layer by layer, has two; programs launch the same in every layer, and one has them all.
LAYERS = {"load": 2, "open_session": 2, "open_fallback_session": 2, "fallback_weights": 2}
# Decoding makes the same calls for every launch, alone the first time: these steps meet each of them somewhere.
STEPS = {"decode": 3, "first_decode": 7, "decode_ahead": 3}


def attempt(model: Model, stage: str, n: int) -> tuple[int, OutOfMemoryError | None]:
    """Run a stage, its ``n``-th call failing (0: none), and undo it; the calls made, and the error raised."""
    companion, began, error = model.device.companion, 0, None

    def arm() -> None:
        nonlocal began
        began = companion.fallible_calls()
        companion.fail_call(n)

    with ExitStack() as undo:
        try:
            STAGES[stage](model, undo, arm)
        except OutOfMemoryError as caught:
            error = caught
        finally:
            companion.fail_call(0)
            made = companion.fallible_calls() - began
    return made, error


def logits(model: Model) -> np.ndarray:
    """Of the last prompt token."""
    session = Session(model, PATHS["mla"], 64, chunk=8)
    session.prompt(TOKENS)
    found = session.last_logits()
    session.close()
    return found


def fail_each_call(file: str, stage: str) -> None:
    """The child's body."""
    device = open_device()
    model = Model.load(file, device)
    before = logits(model)
    for _ in range(2):  # the first one also measures how long launches take
        calls, _ = attempt(model, stage, 0)
    objects, held = device.companion.objects(), device.companion.live_bytes()
    tried = range(1, calls + 1, STEPS.get(stage, 1))
    failed = 0
    for n in tried:
        print(f"call {n} of {calls}", flush=True)  # the last words before a crash
        made, error = attempt(model, stage, n)
        # How often a program is submitted depends on measured time, so the last calls may not be reached every time.
        assert error is not None or made < n, f"call {n} of {made} failed and no error was raised"
        failed += error is not None
        assert device.companion.objects() == objects, f"{error} left {device.companion.objects()}, before {objects}"
        assert device.companion.live_bytes() == held, f"{error} left {device.companion.live_bytes()} bytes of {held}"
        assert str(error).startswith(f"{device.info.name}: ") or error is None, str(error)
    assert failed > 0.9 * len(tried), f"{failed} of {len(tried)} calls failed"
    np.testing.assert_array_equal(logits(model), before)
    model.close()
    device.close()


def fail_each_call_of_opening() -> None:
    """The child's body for the device itself, of which nothing may be left."""
    device_module._require_creation = lambda info: None  # its device would take the failure that is planned
    device = open_device()
    calls = device.companion.fallible_calls()
    device.close()
    for n in range(1, calls + 1):
        print(f"call {n} of {calls}", flush=True)
        fail_call_of_next_device(n)
        try:
            open_device().close()
        except OutOfMemoryError:
            pass
        else:
            raise AssertionError(f"call {n} failed and no error was raised")
        assert live_devices() == 0, f"the device of call {n} is still there"
    open_device().close()


@pytest.mark.parametrize("stage", STAGES)
def test_each_failing_call_is_an_error_and_everything_is_freed(device: Device, tmp_path: Path, stage: str) -> None:
    mix, overrides = TYPES["plain"]
    write_synthetic(replace(PLAIN, n_layer=LAYERS.get(stage, 1)), tmp_path / "plain.gguf", mix, 1, overrides)
    in_child(fail_each_call, str(tmp_path / "plain.gguf"), stage, LATENTVK_VALIDATE="core")


def test_each_failing_call_of_opening_a_device_is_an_error(device: Device) -> None:
    in_child(fail_each_call_of_opening, LATENTVK_VALIDATE="core")
