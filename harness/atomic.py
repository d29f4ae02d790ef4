"""Files that appear whole or not at all: written under a temporary name beside the target, then renamed."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vkbackend.errors import InputError


def require_writable(path: Path) -> Path:
    """The file that writing to `path` would replace: `path` itself, or what it links to.

    Raises InputError when that is a folder, a device, a FIFO or a socket, which a rename would destroy, or when no file
    can be made beside it. That is tried, not asked: root may write everywhere, but for places such as /proc.
    """
    _refuse_special(path)
    target = Path(os.path.realpath(path))
    descriptor, temporary = _temporary(path, target)
    try:
        os.close(descriptor)
    finally:
        temporary.unlink()
    return target


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; leaving the block normally renames it to `path`, an exception removes it and
    leaves whatever stood at `path` alone. A link stays, and its target is replaced. Raises InputError when `path` is no
    place for a file or cannot be written."""
    _refuse_special(path)
    target = Path(os.path.realpath(path))
    descriptor, temporary = _temporary(path, target)
    try:
        temporary.chmod(_usual_mode())
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _failed(path, error) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all. Raises InputError when it cannot be written."""
    with replacing(path) as stream:
        stream.write(text.encode())


def write_new(path: Path, text: str) -> None:
    """As ``write_text``, but never over a file: InputError where one is, even if it came to be meanwhile."""
    _refuse_special(path)
    descriptor, temporary = _temporary(path, path)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text.encode())
        temporary.chmod(_usual_mode())
        os.link(temporary, path)  # unlike a rename, it fails where something is
    except FileExistsError:
        raise InputError(
            f"{path}: exists, expected a new name as records are not written over; choose another"
        ) from None
    except OSError as error:
        raise _failed(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _usual_mode() -> int:
    """What the user's umask gives a new file; mkstemp makes a private one."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _failed(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: writing failed ({error.strerror or error}); free some space or choose another place")


def _refuse_special(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # nothing there yet, or making the temporary file says what is wrong
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: found a folder, expected a file name to write to; add one")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is not a regular file, expected a path to write a file to; choose another")


def _temporary(path: Path, target: Path) -> tuple[int, Path]:
    """Descriptor and path of a new file beside `target`; `path` is what the user calls it."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise InputError(
            f"{path}: cannot write there ({error.strerror}); choose a folder that exists and is writable"
        ) from None
    return descriptor, Path(name)
