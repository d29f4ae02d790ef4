"""Tokens in, tokens out: the loop that continues a prompt, and the text of it as it may be shown."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from model.scratch import AHEAD
from vkbackend.errors import InputError

if TYPE_CHECKING:
    from model.engine import Session
    from model.sampling import Sampler


def continuation(session: "Session", prompt: Sequence[int], sampler: "Sampler | None") -> Iterator[int]:
    """Tokens after ``prompt``, without end. Without a sampler the device chooses, several ahead, and logits never leave
    it. Closed, it leaves the session behind the last token that it gave, unless that was used otherwise meanwhile; what
    ``last_logits`` says may then be of a token that nobody was given.

    Raises InputError and DeviceError as the session does.
    """
    if sampler is None:
        if len(prompt) > 1:
            session.prompt(prompt[:-1], "none")
        token = prompt[-1]
        most = 1  # nobody waits longer for the first one
        while True:
            began, taken = session.n_past, 0
            chosen = session.decode_ahead(token, most)
            try:
                for token in chosen:
                    taken += 1
                    yield token
            finally:
                if taken < len(chosen) and session.n_past == began + len(chosen):
                    session.rewind(began + taken)
            most = AHEAD
    sampler.accept(prompt)
    session.prompt(prompt, "last")
    while True:
        likeliest = session.candidates(sampler.params.candidates)
        token = sampler(session.last_logits()) if likeliest is None else sampler.among(*likeliest)
        sampler.accept([token])
        yield token
        session.decode(token)


class StopStrings:
    """Text that may be shown: all up to the first of ``stops``; what could yet become one is held back."""

    def __init__(self, stops: Iterable[str]) -> None:
        """Raises InputError on an empty one, which every text would have."""
        self._stops = tuple(stops)
        if "" in self._stops:
            raise InputError("a stop text is empty, expected at least one character; give some text")
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What can be shown after ``text`` came, perhaps nothing. After a stop was ``found`` there is no more."""
        if self.found:
            return ""
        self._held += text
        starts = [start for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if starts:
            self.found = True
            return self._take(min(starts))
        return self._take(len(self._held) - max((self._begun(stop) for stop in self._stops), default=0))

    def finish(self) -> str:
        """What was held back and became no stop."""
        return self._take(len(self._held))

    def _begun(self, stop: str) -> int:
        """Characters at the end of the text that begin ``stop``."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)

    def _take(self, count: int) -> str:
        shown, self._held = self._held[:count], "" if self.found else self._held[count:]
        return shown
