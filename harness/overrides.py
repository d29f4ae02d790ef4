"""`--override-kv KEY=TYPE:VALUE`, as llama.cpp has it: a file's metadata put right without writing it anew."""

import argparse
import re
from collections.abc import Callable
from typing import Any

_SWITCHES = {"true": True, "false": False}
_TYPES: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (_SWITCHES.__getitem__, "true or false"),
    "str": (str, "text"),
}
_NEXT = re.compile(r",(?=[^=,]+=(?:int|float|bool|str):)")  # several in one argument, as llama.cpp has them


def overrides(text: str) -> dict[str, Any]:
    """'a.key=int:3,b.key=bool:true' -> {"a.key": 3, "b.key": True}."""
    found = {}
    for part in _NEXT.split(text):
        match = re.fullmatch(r"([^=]+)=([a-z]+):(.*)", part, re.DOTALL)
        if match is None or match[2] not in _TYPES:
            raise argparse.ArgumentTypeError(
                f"found '{part}', expected KEY=TYPE:VALUE with a type of {', '.join(_TYPES)}"
            )
        key, kind, value = match.groups()
        read, expected = _TYPES[kind]
        try:
            found[key] = read(value)
        except (KeyError, ValueError):
            raise argparse.ArgumentTypeError(f"found '{part}', expected {expected} after '{kind}:'") from None
    return found


def spelt(found: dict[str, Any]) -> str:
    """What ``overrides`` reads as ``found``, for a child process."""
    kinds = {bool: "bool", int: "int", float: "float", str: "str"}
    return ",".join(
        f"{key}={kinds[type(value)]}:{str(value).lower() if type(value) is bool else value}"
        for key, value in found.items()
    )
