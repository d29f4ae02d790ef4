"""Sources that were saved, as events: from a thread that waits for files to change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

import watchfiles

from vkbackend.errors import InputError

_SUFFIXES = (".comp", ".glsl", ".py")  # not what editors write beside them
_DEBOUNCE_MS, _STEP_MS = 200, 20  # changes that come closer together are one save
_IDLE_MS = 100  # how often the thread looks whether it is to end


class Saves:
    """What was saved and not yet asked for."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[frozenset[Path]] = SimpleQueue()
        self.failure = ""  # what ended the thread

    def waiting(self) -> bool:
        return not self.queue.empty()

    def next(self) -> frozenset[Path]:
        """Wait for a save; several that are there already count as one.

        Raises:
            InputError: the system tells of no more changes.
        """
        while True:
            if self.failure and self.queue.empty():
                raise InputError(
                    f"changes of files: the system tells of none ({self.failure}); expected it to: raise "
                    "fs.inotify.max_user_watches, and see that the folder is there"
                )
            try:
                # Not for ever: a wait without an end keeps Ctrl-C from being seen on some systems.
                changed = self.queue.get(timeout=0.5)
                break
            except Empty:
                continue
        while self.waiting():
            changed |= self.queue.get()
        return changed


@contextmanager
def saves(*folders: Path) -> Iterator[Saves]:
    """Events of files below these folders."""
    found, stop, begun = Saves(), threading.Event(), threading.Event()

    def follow() -> None:
        try:
            for changes in watchfiles.watch(
                *folders,
                stop_event=stop,
                debounce=_DEBOUNCE_MS,
                step=_STEP_MS,
                rust_timeout=_IDLE_MS,
                yield_on_timeout=True,
                raise_interrupt=False,
            ):
                begun.set()
                if paths := frozenset(Path(path) for _, path in changes if path.endswith(_SUFFIXES)):
                    found.queue.put(paths)
        except Exception as error:  # whatever it is, whoever waits must know
            found.failure = " ".join(str(error).split()) or type(error).__name__
        finally:
            begun.set()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    begun.wait()  # what is saved from now on is seen
    try:
        yield found
    finally:
        stop.set()
        thread.join()
