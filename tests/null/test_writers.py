"""Writes in threads: all of them done when the block ends, none after it, and no error lost."""

from threading import Event, Thread, get_ident
from time import sleep

import pytest

from model.writers import MOST_WAITING, Writers


def test_all_writes_are_done_when_the_block_ends_in_other_threads() -> None:
    done: list[tuple[int, int]] = []
    with Writers() as writers:
        for number in range(300):
            writers.add(lambda number=number: done.append((number, get_ident())))
    assert sorted(number for number, _ in done) == list(range(300))
    assert get_ident() not in {thread for _, thread in done}


def test_a_failed_write_is_the_blocks_error_after_the_others_ended() -> None:
    running, ended = Event(), Event()

    def fail() -> None:
        raise OSError("the file is gone")

    def slow() -> None:
        running.set()
        sleep(0.05)
        ended.set()

    with pytest.raises(OSError, match="the file is gone"), Writers() as writers:
        writers.add(slow)
        assert running.wait(30)
        writers.add(fail)
    assert ended.is_set()


def test_nothing_is_written_after_a_stop() -> None:
    """A buffer that could not be allocated: those before it are freed, and must not be written to."""
    begun, go_on, done = Event(), Event(), []

    def slow() -> None:
        begun.set()
        go_on.wait(30)
        done.append("begun before")

    with pytest.raises(MemoryError), Writers() as writers:
        for _ in range(MOST_WAITING):
            writers.add(slow)
        assert begun.wait(30)
        go_on.set()
        writers.stop()
        at_stop = len(done)
        assert at_stop > 0
        raise MemoryError
    assert len(done) == at_stop


def test_the_blocks_own_error_is_not_replaced_by_a_writes() -> None:
    def fail() -> None:
        raise OSError("the file is gone")

    with pytest.raises(MemoryError), Writers() as writers:
        writers.add(fail)
        raise MemoryError


def test_a_write_too_many_waits_for_the_oldest() -> None:
    """What waits may be a copy that the host holds."""
    go_on, added = Event(), Event()

    def wait() -> None:
        go_on.wait(30)

    with Writers() as writers:
        for _ in range(MOST_WAITING):
            writers.add(wait)

        def one_more() -> None:
            writers.add(wait)
            added.set()

        thread = Thread(target=one_more)
        thread.start()
        assert not added.wait(0.1)
        go_on.set()
        assert added.wait(30)
        thread.join(30)
