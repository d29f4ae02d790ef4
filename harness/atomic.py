"""Files that appear whole or not at all: written under a temporary name beside the target, then renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vkbackend.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file in `path`'s folder; leaving the block normally renames it to `path`, an exception
    removes it and leaves whatever stood at `path` alone. Raises InputError when the folder cannot be written."""
    if path.is_dir():
        raise InputError(f"{path}: found a folder, expected a file name to write to; add one")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InputError(
            f"{path}: cannot write there ({error.strerror}); choose a folder that exists and is writable"
        ) from None
    temporary = Path(name)
    try:
        # mkstemp makes the file private; a result file gets what the user's umask gives any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{path}: writing failed ({error.strerror or error}); free some space or choose another place"
        ) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all. Raises InputError when it cannot be written."""
    with replacing(path) as stream:
        stream.write(text.encode())
