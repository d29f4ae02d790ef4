"""Every kernel in every variant that the forward pass uses: listed by planning it, for a device that need not be there.

The paths of a model at its true shape give the variants of its own types; the same model planned once for each further
weight type, in every tensor whose rows hold it, gives the others.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod

from gguf import GGML_QUANT_SIZES

from model.config import ModelConfig
from model.launches import planned_launches
from model.layout import PATHS, CacheLayout, Path
from model.linear import NARROW_SUBGROUP
from model.mix import mix_types
from model.tensors import SUPPORTED_TYPES, file_tensors
from vkbackend import health, peaks, staging
from vkbackend.errors import InputError
from vkbackend.physical import DeviceInfo
from vkbackend.program import Launch

N_CTX = 4096  # of the planned caches; a longer one changes grids alone
LEAST_BINDING = 2**27  # bytes: maxStorageBufferRange of the Vulkan specification's "Required Limits"
NARROW, WIDE = 8, 64  # lanes: lavapipe's and RDNA's
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
    config: ModelConfig,
    mix: str,
    info: DeviceInfo,
    patterns: Sequence[str] = (),
    paths: Iterable[Path] | None = None,
    everything: bool = False,
) -> list[Variant]:
    """The variants, by name; with ``patterns`` those whose name begins with one of them (wildcards * and ? allowed).

    With ``everything`` also those of caches in f32, of latent caches larger than one binding, the products' forms of
    narrow and of wide subgroups whichever the device's are, and the backend's own kernels.

    Raises:
        InputError: a pattern matches none, or the mix is unknown.
    """
    found: dict[str, Launch] = {}
    among = list(paths or PATHS.values())
    launches = _launches(config, mix, info, among)
    if everything:
        other = replace(info, subgroup_size=WIDE if info.subgroup_size < NARROW_SUBGROUP else NARROW)
        forms = chain(_launches(config, mix, other, among), _cache_launches(config, mix, other))
        products = (launch for launch in forms if launch.kernel.file in ("matvec.comp", "matmul.comp"))
        launches = chain(launches, _cache_launches(config, mix, info), products, _backend_launches())
    for launch in launches:
        name = variant_name(launch)
        if name not in found or prod(launch.grid) > prod(found[name].grid):
            found[name] = launch
    return [Variant(name, found[name]) for name in choose(found, patterns)]


def choose(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Those that begin with one of ``patterns`` (wildcards * and ? allowed; no patterns: all), sorted.

    Raises:
        InputError: a pattern matches none.
    """
    among = sorted(names)
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in among):
            kernels = ", ".join(sorted({name.split()[0] for name in among}))
            raise InputError(
                f"no kernel variant matches {pattern!r}, expected one of {kernels}, or the beginning of a variant's "
                "name; `latentvk shaders stats` lists them"
            )
    return [name for name in among if not patterns or any(_matches(name, p) for p in patterns)]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, f"{pattern} *") or fnmatch.fnmatchcase(name, pattern)


def _two_layers(config: ModelConfig) -> ModelConfig:
    """A dense layer and a mixture one, where the model has both."""
    two = replace(config, n_layer=config.n_dense + 1 if config.n_dense < config.n_layer else 1, n_nextn=0)
    return replace(two, n_dense=min(two.n_dense, 1), n_layer=min(two.n_layer, 2))


def _launches(config: ModelConfig, mix: str, info: DeviceInfo, paths: list[Path]) -> Iterator[Launch]:
    two = _two_layers(config)
    for path in paths:
        for launches in planned_launches(two, mix_types(two, mix), path, info, n_ctx=N_CTX).values():
            yield from launches
    for kind in SUPPORTED_TYPES:
        block = GGML_QUANT_SIZES[kind][0]
        fitting = [re.escape(name) for name, shape in file_tensors(two).items() if shape[-1] % block == 0]
        types = mix_types(two, mix, [(f"^({'|'.join(fitting)})$", kind)])
        for launches in planned_launches(two, types, paths[0], info, n_ctx=N_CTX).values():
            yield from launches


def _cache_launches(config: ModelConfig, mix: str, info: DeviceInfo) -> Iterator[Launch]:
    """Of each path with a cache in f32; of latent caches in shards, which the least binding that Vulkan guarantees
    splits, in f16 and in f32."""
    two = _two_layers(config)
    types = mix_types(two, mix)
    narrow = replace(info, max_storage_buffer_range=LEAST_BINDING)
    shard = LEAST_BINDING // (2 * two.latent_dim)  # positions in f16
    for path in PATHS.values():
        # The sums of shards grow with the chunk and must be bound too; a small one changes grids alone.
        shards = [] if path.layout is CacheLayout.PER_HEAD else [(of, 2 * shard, narrow, 8) for of in ("f16", "f32")]
        for of, n_ctx, device, chunk in [("f32", N_CTX, info, None), *shards]:
            made = planned_launches(two, types, replace(path, cache_type=of), device, n_ctx=n_ctx, chunk=chunk)
            for launches in made.values():
                yield from (launch for launch in launches if _of_a_cache(launch))


def _of_a_cache(launch: Launch) -> bool:
    return bool({"CACHE_F32", "SHARD", "ROWS_FROM_CACHE", "UNITS_FROM_CACHE"} & launch.kernel.macros.keys())


def _backend_launches() -> Iterator[Launch]:
    """Copies, zeroes, the kernels that measure peaks and the probe of a subgroup, by themselves."""
    each = {"EACH": staging.EACH}
    for kernel, spec in (
        (staging.COPY, each),
        (staging.ZERO, each),
        (peaks.READ, {"LOADS": peaks.LOADS}),
        (peaks.ARITHMETIC, {"ROUNDS": peaks.ROUNDS}),
        (health.PROBE, {}),
    ):
        yield Launch(kernel, {}, spec, {}, (1, 1, 1), kernel.file, False)
