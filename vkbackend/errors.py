"""The one exception family. Every message is one line: what was found, what was expected, the remedy."""


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
