"""What was measured to be the best way to launch a kernel on a device, looked up where launches are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """For one purpose the kernel's file and the specialization constants that were best."""

    kernel: str
    constants: Mapping[str, int]


@dataclass(frozen=True)
class Tuning:
    """Entries by purpose: words that whoever launches chooses, such as "linear q4_k token"."""

    entries: Mapping[str, Entry] = field(default_factory=dict)

    def find(self, purpose: str) -> Entry | None:
        """The entry for ``purpose``; None where nothing was measured."""
        return self.entries.get(purpose)
