"""Where a side of `regress` comes from: record files, committed records of a git revision, a file that is measured."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness.metrics import Side, merge, parse, read_side
from vkbackend.errors import InputError

RESULTS = "results"  # committed records lie there, from a repository's top


def load(argument: str, like: str | None = None) -> Side:
    """The record that `argument` names; several, with commas between, merge.

    Args:
        like: a path that a bare revision stands for: REV means REV:./like.

    Raises:
        InputError: there is no such file or revision, or it holds no record.
    """
    sides = []
    for name in argument.split(","):
        if Path(name).exists() or (":" not in name and not (like and is_revision(name))):
            text = _read(name)
        else:
            name = name if ":" in name else f"{name}:./{like}"
            text = _git("show", name, what=name)
        sides.append(read_side(parse(text, name), name))
    return sides[0] if len(sides) == 1 else merge(sides, argument)


def committed(base: str, new: str) -> list[tuple[Side, Side]]:
    """The records below `results` that two revisions both hold, pair by pair. InputError where there is none."""
    listed = [
        _git("ls-tree", "-r", "--name-only", "--full-tree", rev, RESULTS, what=rev).splitlines() for rev in (base, new)
    ]
    pairs = []
    for path in sorted(set(listed[0]) & set(listed[1])):
        texts = [_git("show", f"{rev}:{path}", what=rev) for rev in (base, new)]
        if path.endswith(".json") and all(_is_record(text) for text in texts):
            sides = [
                read_side(parse(text, label), label)
                for text, label in zip(texts, (f"{base}:{path}", f"{new}:{path}"), strict=True)
            ]
            pairs.append((sides[0], sides[1]))
    if not pairs:
        raise InputError(
            f"{base} and {new} share no record below {RESULTS}/, expected at least one; name files, or REV:path"
        )
    return pairs


def is_revision(name: str, checkout: Path = Path()) -> bool:
    """Whether `name` is a commit of the repository around a folder (the working folder unless told), and no file."""
    if Path(name).exists() or name.startswith("-") or ":" in name:
        return False
    command = ["git", "-C", str(checkout), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    return shutil.which("git") is not None and subprocess.run(command, capture_output=True).returncode == 0


def _is_record(text: str) -> bool:
    return '"latentvk.compare"' in text or '"samples_ns"' in text


def _read(name: str) -> str:
    try:
        return Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise InputError(
            f"{name}: cannot be read ({why}), expected a record's file, REV:path or a git revision; check it"
        ) from None


def _git(*arguments: str, what: str) -> str:
    try:
        found = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise InputError(
            f"{what}: git is not installed, expected it to read a revision; install it, or name files"
        ) from None
    if found.returncode:
        lines: Sequence[str] = found.stderr.strip().splitlines() or ["no message"]
        raise InputError(
            f"{what}: git says '{lines[0]}', expected a revision and a path in it, such as HEAD~1:results/r.json; "
            "check both"
        )
    return found.stdout
