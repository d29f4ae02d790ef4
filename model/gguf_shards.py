"""A model split over several GGUF files, as llama.cpp's gguf-split writes them and its loader reads them.

Parts are named NAME-00001-of-00003.gguf. Each holds ``split.no`` (from 0), ``split.count`` and ``split.tensors.count``
(of all parts together); the model's keys are in the first alone, which is the one to open. Each part aligns its own
tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.gguf_parse import MAX_TENSORS, TensorInfo, parse
from vkbackend.errors import InputError, quoted, shown

NO, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
MAX_PARTS = 2**16 - 1  # split.count is 16 bits wide
_SPLIT_AGAIN = "split the model again with llama-gguf-split"


def part_name(prefix: str, index: int, count: int) -> str:
    """File name of part ``index`` (from 0) of ``count``."""
    return f"{prefix}-{index + 1:05d}-of-{count:05d}.gguf"


def other_parts(path: Path, kv: Mapping[str, Any], tensors: dict[str, TensorInfo]) -> tuple[Path, ...]:
    """Add the tensors of the parts after the first, ``path``, to ``tensors`` and return those parts' paths.

    Nothing happens for a file that is not split. Raises InputError when ``path`` is not the first part, or a part is
    missing, misnamed, out of place or inconsistent with the others.
    """
    count = _number(path, kv, COUNT, 0, MAX_PARTS) if COUNT in kv else 0
    if count <= 1:
        return ()
    prefix = _prefix(path, _number(path, kv, NO, 0, count - 1), count)
    total = _number(path, kv, TENSORS, 0, MAX_TENSORS)
    others = tuple(path.with_name(part_name(prefix, index, count)) for index in range(1, count))
    for index, other in enumerate(others, start=1):
        _add(other, index, count, tensors)
        if len(tensors) > total:
            break  # more can only be more
    if len(tensors) != total:
        raise InputError(
            f"{path}: key {TENSORS} is {total}, expected the number of tensors in all parts, of which there are "
            f"{'more' if len(tensors) > total else len(tensors)}; {_SPLIT_AGAIN}"
        )
    return others


def _add(path: Path, index: int, count: int, tensors: dict[str, TensorInfo]) -> None:
    """Add the tensors of part ``index`` (from 0)."""
    if not (path.is_symlink() or path.exists()):  # a broken link is no absent part: reading it says what is wrong
        raise InputError(
            f"{path}: is missing, expected part {index + 1} of {count}; download or copy all parts into one folder"
        )
    kv, found = parse(path)
    for key, expected in ((NO, index), (COUNT, count)):
        number = _number(path, kv, key, 0, MAX_PARTS)
        if number != expected:
            raise InputError(
                f"{path}: key {key} is {number}, expected {expected} in part {index + 1} of {count}; {_SPLIT_AGAIN}"
            )
    for name in found:
        if name in tensors:
            raise InputError(f"{path}: tensor {shown(name)} is in an earlier part too, expected once; {_SPLIT_AGAIN}")
    tensors |= found


def _prefix(path: Path, index: int, count: int) -> str:
    """NAME of the first part; InputError for a later one and for a name without the convention's end."""
    ending = part_name("", index, count)
    prefix = path.name.removesuffix(ending)
    if prefix in ("", path.name):
        raise InputError(
            f"{path}: is part {index + 1} of {count}, expected a name that ends in {ending}, by which the other parts "
            "are found; give every part the name it was published under"
        )
    if index != 0:
        raise InputError(
            f"{path}: is part {index + 1} of {count}, expected the first, which holds the model's keys; "
            f"open {path.with_name(part_name(prefix, 0, count))}"
        )
    return prefix


def _number(path: Path, kv: Mapping[str, Any], key: str, least: int, most: int) -> int:
    if key not in kv:
        raise InputError(f"{path}: key {key} is missing, expected a number from {least} to {most}; {_SPLIT_AGAIN}")
    value = kv[key]
    if type(value) is not int or not least <= value <= most:
        raise InputError(
            f"{path}: key {key} is {quoted(value)}, expected a number from {least} to {most}; {_SPLIT_AGAIN}"
        )
    return value
