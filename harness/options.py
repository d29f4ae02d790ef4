"""Command-line options that several commands share: one spelling, one meaning, one parser for each."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.atomic import require_writable, write_text
from harness.overrides import overrides
from vkbackend.errors import InputError

if TYPE_CHECKING:
    from model.layout import Path as AttentionPath

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
NO_KEYS_TO_OVERRIDE = "--override-kv is given with --preset, expected a MODEL: a shape has no keys; leave one out"
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def embedded_model_path() -> Path:
    """Path of the model that ships inside the package. Raises InputError when the installation lacks it."""
    path = Path(str(files("model") / "data" / "latentvk-tiny.gguf"))
    if not path.is_file():
        raise InputError(
            f"{path}: the embedded model is missing, expected a GGUF file there; reinstall latentvk or name a MODEL"
        )
    return path


def model_path(args: argparse.Namespace) -> Path:
    """The MODEL argument, or the embedded model when it was left out. Raises InputError when that one is missing."""
    return embedded_model_path() if args.model is None else Path(args.model)


def model_paths(args: argparse.Namespace) -> list[Path]:
    """MODEL and the files of --weights, each once; the embedded model where there is neither."""
    named = [*([args.model] if args.model is not None else []), *args.weights]
    return [Path(name) for name in dict.fromkeys(named)] or [model_path(args)]


def add_weights(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--weights", nargs="+", default=[], metavar="GGUF", help="several quantisations of one model, measured in turns"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, and what may be put right in it; ``harness.running.open_gguf`` opens what these ask for."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a GGUF file (left out: the embedded model)")
    parser.add_argument(
        "--override-kv",
        type=overrides,
        action="append",
        default=[],
        metavar="KEY=TYPE:VALUE",
        help="take a metadata key of the file as this; TYPE is int, float, bool or str; may be repeated",
    )


def add_path(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--path",
        default="mla",
        metavar="PATH",
        help="how attention and its cache work: mla, mla-v or mha (default mla)",
    )


def add_cache(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--cache",
        default="f16",
        metavar="TYPE",
        help="type of the cache's numbers, llama.cpp's -ctk and -ctv in one: f16; q8_0 or q4_0 (mla, mla-v); f32 for "
        "checks (default f16)",
    )


def paths_over(names: Sequence[str], cache_type: str, strict: bool) -> "tuple[AttentionPath, ...]":
    """The named paths over a cache of that type; those that have no kernel for it are left out, unless ``strict``.

    Raises InputError for an unknown name or type, and where no path is left.
    """
    from model.layout import PATHS, get_path

    found = []
    for name in names:
        try:
            found.append(get_path(name, cache_type))
        except InputError:
            if strict or name not in PATHS or (name == names[-1] and not found):
                raise
    return tuple(found)


def add_common(parser: argparse.ArgumentParser) -> None:
    """The two options that every command has; `harness.cli` adds them, no command does."""
    group = parser.add_argument_group("options of every command")
    group.add_argument("--device", metavar="WHICH", help="index, or part of the name, as `latentvk devices` lists them")
    group.add_argument("--json", metavar="FILE", help="write the result as JSON ('-': standard output, nothing else)")


def add_chunk(parser: argparse._ActionsContainer, *spellings: str) -> None:
    """``spellings``: what another program calls it."""
    parser.add_argument(
        "--chunk",
        *spellings,
        dest="chunk",
        type=positive_int,
        metavar="N",
        help="prompt tokens a pass (default: 512, or what fits)",
    )


def add_memory(parser: argparse._ActionsContainer) -> None:
    """For every command that opens a model; `open_device` takes it as ``memory_fraction``."""
    parser.add_argument(
        "--memory-fraction",
        type=fraction,
        metavar="F",
        help="share of the host's memory, on a discrete card of the card's, that may be used (default 0.65, 0.95)",
    )


def json_to_stdout(args: argparse.Namespace) -> bool:
    return args.json == "-"


def check_json(args: argparse.Namespace) -> None:
    """Raises InputError when --json names a place that cannot be written: before the work, not after it."""
    if args.json is not None and not json_to_stdout(args):
        require_writable(Path(args.json))


def emit_json(args: argparse.Namespace, value: Any) -> None:
    """Write `value` where --json points: nowhere, standard output, or a file (written whole or not at all)."""
    if args.json is None:
        return
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if json_to_stdout(args):
        sys.stdout.write(text)
    else:
        write_text(Path(args.json), text)


def positive_int(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a whole number of at least 1")
    return value


def non_negative_int(text: str) -> int:
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a whole number of at least 0")
    return value


def positive_ints(text: str) -> list[int]:
    """'512,2048' -> [512, 2048], sorted, each once."""
    return sorted({positive_int(part) for part in text.split(",")})


def non_negative_ints(text: str) -> list[int]:
    return sorted({non_negative_int(part) for part in text.split(",")})


def names(text: str) -> list[str]:
    """'mla,mha' -> ['mla', 'mha'], in the order given, each once."""
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        raise argparse.ArgumentTypeError(f"found '{text}', expected names with commas between them")
    return list(dict.fromkeys(parts))


def fraction(text: str) -> float:
    """'0.5' -> 0.5, more than 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a fraction above 0 and at most 1")
    return value


def size_bytes(text: str) -> int:
    """'96GiB', '64 GB', '1.5gib' or plain bytes -> bytes."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a size such as 96GiB or 64GB")
    return round(float(match[1]) * _UNITS[match[2].upper()])


def bandwidth(text: str) -> float:
    """'80GB/s', '80 GB' or '80' (GB) -> bytes a second."""
    size = text.strip().lower().removesuffix("/s")
    try:
        found = size_bytes(size if _SIZE.fullmatch(size) and not size.replace(".", "").isdigit() else f"{size}GB")
    except argparse.ArgumentTypeError:
        found = 0
    if not found:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a bandwidth such as 80GB/s")
    return float(found)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a whole number") from None
