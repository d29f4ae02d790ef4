"""Every kernel in every variant that the forward pass uses: listed by planning it, for a device that need not be there.

The paths of a model at its true shape give the variants of its own types; a narrow copy of it, planned once for each
further weight type, gives the others.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q

from model.config import ModelConfig
from model.launches import planned_launches
from model.layout import PATHS, Path
from model.mix import mix_types
from model.tensors import SUPPORTED_TYPES
from vkbackend.errors import InputError
from vkbackend.physical import DeviceInfo
from vkbackend.program import Launch

N_CTX = 4096  # of the planned caches; a longer one changes grids alone
_FORMAT = "FORMAT_"


@dataclass(frozen=True)
class Variant:
    """A kernel with macros and specialization constants, and its largest launch."""

    name: str
    launch: Launch


def variant_name(launch: Launch) -> str:
    """What tells a variant from others of its kernel: 'matvec q4_k chosen rows=4'."""
    macros = launch.kernel.macros
    kinds = [name.removeprefix(_FORMAT).lower() for name in macros if name.startswith(_FORMAT)]
    others = [name.lower() for name in macros if not name.startswith(_FORMAT)]
    constants = [f"{name.lower()}={value}" for name, value in launch.spec.items()]
    return " ".join([launch.kernel.file.removesuffix(".comp"), *kinds, *sorted(others), *constants])


def find_variants(
    config: ModelConfig, mix: str, info: DeviceInfo, patterns: Sequence[str] = (), paths: Iterable[Path] | None = None
) -> list[Variant]:
    """The variants, by name; with ``patterns`` those whose name begins with one of them (wildcards * and ? allowed).

    Raises:
        InputError: a pattern matches none, or the mix is unknown.
    """
    found: dict[str, Launch] = {}
    for launch in _launches(config, mix, info, list(paths or PATHS.values())):
        name = variant_name(launch)
        if name not in found or prod(launch.grid) > prod(found[name].grid):
            found[name] = launch
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in found):
            kernels = ", ".join(sorted({name.split()[0] for name in found}))
            raise InputError(
                f"no kernel variant matches {pattern!r}, expected one of {kernels}, or the beginning of a variant's "
                "name; `latentvk shaders stats` lists them"
            )
    chosen = {
        name: launch for name, launch in found.items() if not patterns or any(_matches(name, p) for p in patterns)
    }
    return [Variant(name, chosen[name]) for name in sorted(chosen)]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, f"{pattern} *") or fnmatch.fnmatchcase(name, pattern)


def _launches(config: ModelConfig, mix: str, info: DeviceInfo, paths: list[Path]) -> Iterator[Launch]:
    two = replace(config, n_layer=config.n_dense + 1 if config.n_dense < config.n_layer else 1, n_nextn=0)
    two = replace(two, n_dense=min(two.n_dense, 1), n_layer=min(two.n_layer, 2))  # a dense layer and a mixture one
    for path in paths:
        for launches in planned_launches(two, mix_types(two, mix), path, info, n_ctx=N_CTX).values():
            yield from launches
    widest = max(GGML_QUANT_SIZES[kind][0] for kind in SUPPORTED_TYPES)
    narrow = replace(two, n_vocab=widest, n_ff=widest, n_ff_exp=widest)
    for kind in SUPPORTED_TYPES:
        # k_b's rows are too short for most types and keep what the mix falls back to.
        types = mix_types(narrow, "q4_k_m", [("" if kind in (Q.F32, Q.F16, Q.BF16) else "^(?!.*attn_k_b)", kind)])
        for launches in planned_launches(narrow, types, paths[0], info, n_ctx=N_CTX).values():
            yield from launches
