"""The one exception family. Every message is one line: what was found, what was expected, the remedy."""

SHOWN = 120  # characters of a file's own text that a message repeats


class LatentvkError(Exception):
    """Base of all errors a user can meet; ``exit_code`` is what the command line returns for it."""

    exit_code = 2


class InputError(LatentvkError):
    """Wrong usage or bad input: a file, a key, a tensor, an argument."""

    exit_code = 2


class DeviceError(LatentvkError):
    """The device cannot: absent, too small, lacking a capability, or lost."""

    exit_code = 3


class OutOfMemoryError(DeviceError):
    """An allocation failed; what it was part of has been freed again."""


class DeviceLostError(DeviceError):
    """The device was lost or hangs; only another ``Device`` can go on."""


def printable(text: str) -> str:
    """``text`` with everything that a terminal acts on (controls, line breaks, direction marks) spelt as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(text: str) -> str:
    """Text from a file as a message may repeat it: ``printable``, and cut when it is long."""
    return printable(text) if len(text) <= SHOWN else f"{printable(text[:SHOWN])}..."


def quoted(value: object) -> str:
    """A value from a file as a message may repeat it: as Python writes it, cut when it is long, an array by its
    length."""
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if isinstance(value, str) and len(value) > SHOWN:
        return f"{value[:SHOWN]!r}..."
    return repr(value)
