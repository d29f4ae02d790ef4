"""Threads that fill mapped buffers while further ones are allocated.

Kompute writes zeros into every new buffer, whose pages a CPU's driver then meets first: half of the time that loading
takes, and it holds the interpreter's lock. NumPy's copies do not.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

MOST_THREADS = 4  # that read a file, too: more of them make a disk seek
MOST_WAITING = 2 * MOST_THREADS  # writes, a buffer's window each


class Writers:
    """Leaving the ``with`` block waits for all writes, and raises the first one's exception that failed."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0))), "writer")
        self._writes: deque[Future[None]] = deque()

    def add(self, write: Callable[[], None]) -> None:
        """Have a thread call ``write``, whose buffer must stay until then. Waits where many others wait, whose sources
        may be copies that the host holds; raises the exception of one that failed."""
        while len(self._writes) >= MOST_WAITING:
            self._writes.popleft().result()
        self._writes.append(self._pool.submit(write))

    def stop(self) -> None:
        """Drop the writes that have not begun and wait for the others, so that buffers may be freed."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for write in self._writes:
                    write.result()
        finally:
            self.stop()
