"""How much memory may be taken, under which limit, and what is said when it is too little."""

import argparse
from types import SimpleNamespace
from typing import Any

import pytest

from harness import options
from model import budget
from vkbackend import memory
from vkbackend.companion import MEMORY_DEVICE_LOCAL, MEMORY_HOST_CACHED, HeapUse
from vkbackend.errors import DeviceError
from vkbackend.memory import Memory, Room, Use
from vkbackend.physical import Heap

GIB = 2**30


def heap(size: int, used: int = 0, local: bool = True) -> HeapUse:
    """A heap of which ``used`` bytes are taken, all by us."""
    return HeapUse(size, local, size, used, used, used, 1, 0)


def device(kind: str, *heaps: HeapUse, fraction: float | None = None) -> Any:
    """A device with these heaps, all of them host-visible."""
    companion = SimpleNamespace(heaps=lambda: heaps, live_bytes=lambda: sum(h.live for h in heaps))
    visible = tuple(Heap(h.size, h.device_local, True) for h in heaps)
    info = SimpleNamespace(name="GPU", vendor_id=0, kind="cpu", unified=kind == "unified", heaps=visible)
    found: Any = SimpleNamespace(info=info, companion=companion, memory_fraction=fraction)
    found.memory = Memory(found)
    return found


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """32 GiB of host memory, 30 of them free."""
    found = SimpleNamespace(total=32 * GIB, available=30 * GIB)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: found)
    return found


def test_unified_memory_leaves_the_desktop_its_share() -> None:
    share = int(0.65 * 32 * GIB)
    assert budget.room(device("unified", heap(64 * GIB, 3 * GIB))) == Room(
        share - 3 * GIB, f"under --memory-fraction 0.65 of the host's {32 * GIB} bytes", "a larger --memory-fraction"
    )
    assert share > 18e9  # GLM-4.7-Flash in 4 bits, in 32 GB
    assert budget.available_bytes(device("unified", heap(64 * GIB), fraction=0.5)) == 16 * GIB


def test_budgets_of_a_split_memory_add_up_and_govern_where_they_are_narrower() -> None:
    split = device("unified", heap(5 * GIB, GIB, local=False), heap(10 * GIB, 2 * GIB))
    assert budget.room(split) == Room(12 * GIB, f"of the device's memory budget of {15 * GIB} bytes")
    assert budget.available_bytes(device("unified", heap(16 * GIB, 17 * GIB))) == 0


def test_device_local_memory_is_preferred_while_its_budget_lasts() -> None:
    split = device("unified", heap(5 * GIB, local=False), heap(10 * GIB, 9 * GIB)).memory
    for use in (Use.WEIGHTS, Use.CACHE, Use.SCRATCH, Use.PARAMETERS):
        assert split.preference(use, GIB) == MEMORY_DEVICE_LOCAL
        assert split.preference(use, GIB + 1) == 0
    card = device("discrete", heap(10 * GIB)).memory
    for use in Use:
        read = use in (Use.RESULTS, Use.STAGING)
        assert card.preference(use, 4) == (MEMORY_HOST_CACHED if read else 0)
        assert split.preference(use, 4) == (MEMORY_HOST_CACHED if read else MEMORY_DEVICE_LOCAL)


def test_what_the_host_has_free_governs_where_it_is_least(host: SimpleNamespace) -> None:
    host.available = 2 * GIB
    assert budget.room(device("unified", heap(64 * GIB))) == Room(
        2 * GIB - 2**29, f"of the {2 * GIB} bytes that the host has free, {2**29} kept back", "fewer other programs"
    )


def test_a_card_is_bound_by_its_own_memory(host: SimpleNamespace) -> None:
    host.available = 2 * GIB  # weights and cache do not lie there
    card = device("discrete", heap(8 * GIB, 3 * GIB), heap(16 * GIB, local=False))
    assert budget.room(card) == Room(
        int(0.95 * 8 * GIB) - 3 * GIB,
        f"under --memory-fraction 0.95 of the device's memory budget of {8 * GIB} bytes",
        "a larger --memory-fraction",
    )


def test_weights_that_do_not_fit_say_by_how_much_and_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    left = 16 * GIB
    small = device("unified", heap(left))
    with pytest.raises(DeviceError) as caught:
        budget.require_weights(small, "m.gguf", left + 5)
    assert str(caught.value) == (
        f"m.gguf: weights of {left + 5} bytes; GPU has {left} left of the device's memory budget of {left} bytes, "
        "5 short, so that no context fits: use a smaller quantisation"
    )
    monkeypatch.setattr(budget, "raise_hint", lambda info, needed: f"boot with {needed}")
    with pytest.raises(DeviceError) as caught:
        budget.require_weights(device("unified", heap(64 * GIB), fraction=0.25), "m.gguf", left)
    assert str(caught.value) == (
        f"m.gguf: weights of {left} bytes; GPU has {8 * GIB} left under --memory-fraction 0.25 of the host's "
        f"{32 * GIB} bytes, {8 * GIB} short, so that no context fits: use a smaller quantisation or a larger "
        f"--memory-fraction or boot with {left}"
    )
    budget.require_weights(small, "m.gguf", left)


def test_fractions_are_above_0_and_at_most_1() -> None:
    assert options.fraction("0.5") == 0.5 and options.fraction("1") == 1
    for text in ("0", "-0.1", "1.01", "nan", "half"):
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            options.fraction(text)
        assert str(caught.value) == f"found '{text}', expected a fraction above 0 and at most 1"
