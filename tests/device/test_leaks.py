"""Opening, loading, running and closing again and again leaves nothing behind, and a leak would be seen."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
from child import in_child
from small_models import PLAIN, TYPES

from harness.synth import write_synthetic
from model.engine import Model, Session
from model.layout import PATHS
from vkbackend.buffer import Buffer
from vkbackend.companion import live_devices
from vkbackend.device import Device, open_device

ROUNDS = 50
# Rounds until allocators, caches and the driver have what they keep.
SETTLING = 25
# Of the median round after those. Allocators and lavapipe's compiler grow by up to 1.3 MB in some rounds and by nothing
# in most (the median was at most 25 KB in six runs); what leaks, leaks each round: a device left open 20 MB.
SLACK_BYTES = 64 << 10

Keep = Callable[[Device, list[Any]], None]


def nothing(device: Device, kept: list[Any]) -> None:
    """What a program that leaks nothing keeps."""


def a_buffer(device: Device, kept: list[Any]) -> None:
    kept.append(Buffer(device, 4096, "leaked"))


def an_open_device(device: Device, kept: list[Any]) -> None:
    kept.append(open_device())


def host_memory(device: Device, kept: list[Any]) -> None:
    kept.append(b"leaked" * 200_000)


LEAKS = {leak.__name__: leak for leak in (nothing, a_buffer, an_open_device, host_memory)}


def rounds(file: str, keep: Keep) -> list[str]:
    """What ROUNDS rounds left behind, one line for each kind of thing."""
    found, sizes, kept = set(), [], []
    for _ in range(ROUNDS):
        device = open_device()
        objects, held = device.companion.objects(), device.companion.live_bytes()
        model = Model.load(file, device)
        session = Session(model, PATHS["mla"], 64, chunk=4)
        session.prompt([5, 9, 33, 7, 200, 2])
        session.decode(session.decode(11))
        session.close()
        model.close()
        keep(device, kept)
        if device.companion.objects() != objects:
            found.add("objects")
        if device.companion.live_bytes() != held:
            found.add("bytes")
        device.close()
        sizes.append(psutil.Process().memory_info().rss)
        if live_devices():
            found.add("devices")
    settled = sizes[SETTLING:]
    growth = median(after - before for before, after in pairwise(settled))
    print(f"resident after {SETTLING} and {ROUNDS} rounds: {settled[0]} and {settled[-1]}, a round {growth} bytes")
    if growth > SLACK_BYTES:
        found.add("resident memory")
    return sorted(found)


def leaves(file: str, leak: str, *expected: str) -> None:
    """The child's body: the rounds leave exactly what is expected."""
    found = rounds(file, LEAKS[leak])
    assert found == list(expected), f"left behind: {found}; expected {list(expected)}"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model's file."""
    path: Path = tmp_path_factory.mktemp("leaks") / "plain.gguf"
    mix, overrides = TYPES["plain"]
    write_synthetic(PLAIN, path, mix, 1, overrides)
    return str(path)


@pytest.mark.parametrize("checks", ["", "core"])
def test_rounds_leave_nothing_behind(device: Device, file: str, checks: str) -> None:
    """Once under core validation too: it reports each object that outlives its device."""
    in_child(leaves, file, "nothing", LATENTVK_VALIDATE=checks)


@pytest.mark.parametrize(
    ("leak", "expected"),
    [
        ("a_buffer", ["bytes", "objects"]),
        ("an_open_device", ["devices", "resident memory"]),
        ("host_memory", ["resident memory"]),
    ],
)
def test_a_leak_is_noticed(device: Device, file: str, leak: str, expected: list[str]) -> None:
    """Without validation, which would speak of the buffer as well."""
    in_child(leaves, file, leak, *expected, LATENTVK_VALIDATE="")
