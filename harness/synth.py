"""``latentvk synth``: a GGUF of any ``deepseek2`` shape with random weights, for timing and testing without a
download."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from harness import options
from harness.atomic import replacing, require_writable
from harness.synth_tokenizer import tokenizer_keys
from harness.units import bytes_text
from model.config import ModelConfig
from model.gguf_write import file_bytes, write_model
from model.mix import MIXES, mix_types
from model.presets import PRESETS, get_preset
from model.random_blocks import RANDOM_TYPES, random_blocks
from model.tensors import file_tensors
from vkbackend.errors import InputError

HELP = "write a GGUF with a model's true shape and random weights"
EXAMPLE = "latentvk synth --preset glm-4.7-flash --layers 3 --vocab 32000 --mix q4_k_m -o glm-3-layers.gguf"

PIECE_BYTES = 8 << 20  # generated and written at once
ROUTER_BIAS_STD = 0.1
LOGIT_STD = 3.0
TypeOverride = tuple[str, GGMLQuantizationType]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", default="glm-4.7-flash", metavar="NAME", help=f"shape to start from: {_list(PRESETS)}"
    )
    parser.add_argument(
        "--layers", type=options.positive_int, metavar="N", help="number of layers (default: the preset's)"
    )
    parser.add_argument("--vocab", type=options.positive_int, metavar="N", help="vocabulary (default: the preset's)")
    parser.add_argument(
        "--shape",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="other values, such as n_expert=8 n_ff_exp=256 tied_output=true split_kv_b=false",
    )
    parser.add_argument("--mix", default="q4_k_m", metavar="NAME", help=f"types of the weights: {_list(MIXES)}")
    parser.add_argument(
        "--type",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN=TYPE",
        help="type of the tensors whose name matches a regular expression, such as attn_v_b=Q8_0",
    )
    parser.add_argument(
        "--seed", type=options.non_negative_int, default=0, metavar="N", help="of the weights (default 0)"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="the file to write")


def run(args: argparse.Namespace) -> int:
    config = shaped(get_preset(args.preset), args.layers, args.vocab, args.shape)
    overrides = [_parse_override(text) for text in args.type]
    types = mix_types(config, args.mix, overrides)
    started = time.perf_counter()
    with _progress(file_bytes(config, types), args.output.name) as report:
        n_bytes = write_synthetic(config, args.output, args.mix, args.seed, overrides, report)
    seconds = time.perf_counter() - started
    counts = Counter(kind.name for kind in types.values())
    options.emit_json(
        args,
        {
            "path": str(args.output),
            "bytes": n_bytes,
            "seconds": seconds,
            "seed": args.seed,
            "mix": args.mix,
            "tensors_by_type": dict(counts),
            "config": {field.name: getattr(config, field.name) for field in fields(config) if field.name != "yarn"},
        },
    )
    if not options.json_to_stdout(args):
        tensors = ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
        print(f"{args.output}: {bytes_text(n_bytes)} in {seconds:.1f} s ({bytes_text(n_bytes / seconds)}/s); {tensors}")
    return 0


def shaped(config: ModelConfig, layers: int | None, vocab: int | None, settings: Sequence[str]) -> ModelConfig:
    """``config`` with values replaced; ``settings`` are 'field=value'. MTP layers, which nothing runs, are
    left out unless a setting asks for them.

    Raises InputError for an unknown field, a value of another type, or values that contradict each other.
    """
    changes: dict[str, Any] = {"n_nextn": 0}
    if layers is not None:
        changes |= {"n_layer": layers, "n_dense": min(config.n_dense, layers)}
    if vocab is not None:
        changes["n_vocab"] = vocab
    kinds = {f.name: type(getattr(config, f.name)) for f in fields(config) if f.name not in ("arch", "yarn")}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in kinds:
            raise InputError(
                f"--shape {setting!r}: unknown field, expected FIELD=VALUE with one of {_list(kinds)}; correct it"
            )
        changes[name] = _parse_value(setting, text, kinds[name])
    return replace(config, **changes)


def write_synthetic(
    config: ModelConfig,
    path: Path,
    mix: str = "q4_k_m",
    seed: int = 0,
    overrides: Iterable[TypeOverride] = (),
    report: Callable[[int], None] = lambda n_bytes: None,
) -> int:
    """Write ``config`` with random weights to ``path`` (whole or not at all) and return the file's size.

    One piece of a tensor is in memory at a time; ``report`` is told the bytes of each. A tensor's values depend on
    its name, type, shape and ``seed`` only. Raises InputError for an unknown mix or type, too little room on the
    disk, or a folder that cannot be written.
    """
    types = mix_types(config, mix, overrides)
    for name, kind in types.items():
        if kind not in RANDOM_TYPES:
            known = _list(t.name for t in RANDOM_TYPES)
            raise InputError(
                f"tensor {name}: no random {kind.name} blocks, expected one of {known}; choose one with --type"
            )
    kv = {
        "general.type": "model",
        "general.name": f"{config.name} (random weights)",
        "general.description": f"Synthetic: random weights, mix {mix}, seed {seed}. Timing and tests only.",
        "general.quantization_version": 2,
        "general.file_type": int(MIXES[mix][1]),
        **tokenizer_keys(config.n_tokens),
    }
    _require_room(require_writable(path), file_bytes(config, types))
    shapes = file_tensors(config)

    def data(name: str) -> Iterator[np.ndarray]:
        for piece in tensor_pieces(name, shapes[name], types[name], seed, config.tied_output):
            yield piece
            report(piece.nbytes)

    with replacing(path) as stream:
        return write_model(stream, config, types, kv, data)


def tensor_pieces(
    name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, seed: int, tied_output: bool = False
) -> Iterator[np.ndarray]:
    """One random tensor's encoded bytes in pieces of at most PIECE_BYTES.

    Standard deviations are 1/sqrt(fan in), so that every activation stays near unit size from layer to layer; norms are
    1 +- 0.1, the selection bias of the router is small but not zero, and logits spread over LOGIT_STD (with
    ``tied_output`` the embedding makes them).
    """
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    block, block_bytes = GGML_QUANT_SIZES[kind]
    n_blocks = prod(shape) // block
    step = max(1, PIECE_BYTES // block_bytes)
    for start in range(0, n_blocks, step):
        piece = random_blocks(kind, min(step, n_blocks - start), rng, _deviation(name, shape, tied_output))
        if name.endswith("norm.weight"):
            piece = (piece.view("<f4") + np.float32(1)).view(np.uint8)
        yield piece


def _deviation(name: str, shape: tuple[int, ...], tied_output: bool) -> float:
    if name.endswith(("norm.weight", "exp_probs_b.bias")):
        return ROUTER_BIAS_STD
    if name == ("token_embd.weight" if tied_output else "output.weight"):
        return LOGIT_STD / sqrt(shape[-1])
    if name == "token_embd.weight":
        return 1.0
    if name.endswith("attn_k_b.weight"):  # stored transposed: keys are sums over the latent, its middle axis
        return 1 / sqrt(shape[-2])
    return 1 / sqrt(shape[-1])


def _require_room(path: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        raise InputError(
            f"{path}: {bytes_text(free)} are free there, expected at least {bytes_text(n_bytes)}; "
            "choose another disk, fewer --layers or a smaller --mix"
        )


@contextmanager
def _progress(total: int, name: str) -> Iterator[Callable[[int], None]]:
    if not sys.stderr.isatty():
        yield lambda n_bytes: None
        return
    from rich.console import Console

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"writing {name}", total=total)
        yield lambda n_bytes: progress.advance(task, n_bytes)


def _parse_override(text: str) -> TypeOverride:
    pattern, _, kind = text.rpartition("=")
    names = {t.name for t in RANDOM_TYPES}
    if not pattern or kind.upper() not in names:
        raise InputError(f"--type {text!r}: expected PATTERN=TYPE with a type of {_list(sorted(names))}; correct it")
    try:
        re.compile(pattern)
    except re.error:
        raise InputError(f"--type {text!r}: {pattern!r} is no regular expression; correct it") from None
    return pattern, GGMLQuantizationType[kind.upper()]


def _parse_value(setting: str, text: str, kind: type) -> Any:
    switches = {"true": True, "false": False}
    try:
        return switches[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        expected = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise InputError(
            f"--shape {setting!r}: the value is no {kind.__name__}, expected {expected}; correct it"
        ) from None


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
