"""What the processes of one run share: the lines that it ends with, and the machine, which they take in turns.

`tools/test.sh` runs the tests in two processes (pytest-xdist; files in order, the long ones first). Those marked
``alone`` measure time: nothing of the other process runs beside them.
"""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# No test holds how long an example takes, which what else runs on the machine decides.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


class Ending:
    """The lines that the run ends with, which xdist's workers hand to the process that prints them.

    Attributes:
        lines: as they are.
        messages, tests: of validation and of the device tests that ran under it, by the checks that were on.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.messages: Counter[str] = Counter()
        self.tests: Counter[str] = Counter()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["ending"] = [self.lines, dict(self.messages), dict(self.tests)]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        lines, messages, tests = getattr(node, "workeroutput", {}).get("ending", ([], {}, {}))
        self.lines += lines
        self.messages.update(messages)
        self.tests.update(tests)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.lines:
            terminalreporter.write_line(line)
        for checks, tests in self.tests.items():
            left = self.messages[checks]
            terminalreporter.write_line(f"validation ({checks}): {left} messages in {tests} device tests")


class Turns:
    """Locks that xdist's workers share: many tests in the room, or one that is alone."""

    def __init__(self, folder: Path) -> None:
        self._gate, self._room = ((folder / name).open("w") for name in ("gate", "room"))

    @contextmanager
    def taken(self, alone: bool) -> Iterator[None]:
        """Inside it is this test's turn. Who waits to be alone holds the gate, so that no other test goes in before."""
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(self._gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
            fcntl.flock(self._gate, fcntl.LOCK_UN)


TURNS = pytest.StashKey[Turns]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: measures time, and has the machine to itself")
    config.pluginmanager.register(Ending(), "ending")
    if hasattr(config, "workerinput"):
        config.stash[TURNS] = Turns(config.cache.mkdir("turns"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    turns = item.config.stash.get(TURNS, None)
    if turns is None:
        return (yield)
    with turns.taken(alone=item.get_closest_marker("alone") is not None):
        return (yield)
