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
