"""Typed access to a GGUF's metadata: a missing key or a value of another type is an error that names file and key."""

from __future__ import annotations

from typing import Any

from model.gguf_file import GGUFFile
from vkbackend.errors import InputError, quoted

RECONVERT = "convert the model again with a current llama.cpp"
_LARGEST = 3.4028234663852886e38  # of f32, in which the model is computed; NaN compares as no number
_KINDS: dict[type, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


class TypedKeys:
    """The keys under one prefix, such as ``deepseek2``."""

    def __init__(self, gguf: GGUFFile, prefix: str) -> None:
        self.path = gguf.path
        self._kv = gguf.kv
        self._prefix = prefix

    def get(self, suffix: str, kind: type[Any], default: Any = None) -> Any:
        """``prefix.suffix`` as ``kind``, or ``default`` where the file lacks it; InputError when there is neither."""
        key = f"{self._prefix}.{suffix}"
        if key not in self._kv:
            if default is not None:
                return default
            raise InputError(f"{self.path}: key {key} is missing, expected {_KINDS[kind]}; {RECONVERT}")
        value = self._kv[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (kind is float and not abs(value) <= _LARGEST):
            raise InputError(f"{self.path}: key {key} is {quoted(value)}, expected {_KINDS[kind]}; {RECONVERT}")
        return value
