"""Sessions that are measured in turns: all at the same time where the device holds them, else in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

from harness.measure import SessionLike
from vkbackend.errors import DeviceError, DeviceLostError

Entry = TypeVar("Entry")
Found = TypeVar("Found")


class RefusedError(DeviceError):
    """A session that the device would not open, as opposed to one that failed while it ran."""


def open_or_refuse(stack: ExitStack, opening: Callable[[], SessionLike]) -> SessionLike:
    """The opened session, closed with ``stack``. Raises RefusedError with the device's words when it does not fit."""
    try:
        session = opening()
    except DeviceLostError:
        raise
    except DeviceError as error:
        raise RefusedError(str(error)) from error
    stack.callback(session.close)
    return session


def side_by_side(
    entries: Sequence[Entry],
    run: Callable[[Sequence[Entry]], list[Found]],
    refused: Callable[[Entry, RefusedError], Found],
) -> list[Found]:
    """What ``run`` finds for all entries together; where the device refuses that, for either half, down to single ones,
    of which ``refused`` then says what was found."""
    try:
        return run(entries)
    except RefusedError as error:
        if len(entries) == 1:
            return [refused(entries[0], error)]
    half = len(entries) // 2
    return side_by_side(entries[:half], run, refused) + side_by_side(entries[half:], run, refused)
