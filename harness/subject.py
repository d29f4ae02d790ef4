"""What a command is asked about without running it: a file's or a published shape's config and tensor types."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from harness import options
from harness.running import open_gguf
from model.config import ModelConfig, expected_tensors, require_supported
from model.gguf_file import GGUFFile
from model.mix import MIXES, mix_types
from model.presets import PRESETS, get_preset
from vkbackend.errors import InputError

DEFAULT_MIX = "q4_k_m"


@dataclass(frozen=True)
class Subject:
    """What is inspected: a config, the type of each tensor, and where both come from (``mix`` None: the file
    itself)."""

    config: ModelConfig
    types: Mapping[str, GGMLQuantizationType]
    source: str
    mix: str | None
    unsupported: str | None  # why the forward pass cannot run it


def add_preset(parser: argparse._ActionsContainer) -> None:
    """What stands in place of MODEL: ``get_subject`` reads all three."""
    add = parser.add_argument
    add("--preset", metavar="NAME", help=f"a published shape in place of a file: {', '.join(PRESETS)}")
    add("--mix", metavar="NAME", help=f"with --preset, types assumed: {', '.join(MIXES)} (default {DEFAULT_MIX})")


def get_subject(args: argparse.Namespace) -> Subject:
    """The subject that MODEL or --preset and --mix name. Raises InputError for both, or neither's."""
    if args.preset is not None:
        if args.model is not None:
            raise InputError(
                f"MODEL {args.model!r} and --preset {args.preset!r} are both given, expected one; drop one"
            )
        if args.override_kv:
            raise InputError(options.NO_KEYS_TO_OVERRIDE)
        config, mix = get_preset(args.preset), args.mix or DEFAULT_MIX
        return Subject(config, mix_types(config, mix), f"preset {args.preset}", mix, _unsupported(config, None))
    if args.mix is not None:
        raise InputError("--mix is given without --preset, expected both: a file has its own types; leave --mix out")
    gguf = open_gguf(args)
    config = ModelConfig.from_gguf(gguf)
    types = {name: gguf.tensors[name].type for name in expected_tensors(config)}
    return Subject(config, types, str(gguf.path), None, _unsupported(config, gguf))


def _unsupported(config: ModelConfig, gguf: GGUFFile | None) -> str | None:
    try:
        require_supported(config, gguf)
    except InputError as error:
        return str(error)
    return None
