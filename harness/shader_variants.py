"""Every kernel in every variant that the forward pass uses: listed by planning it, for a device that need not be there.

The paths of a model at its true shape give the variants of its own types; the same model planned once for each further
weight type, in every tensor whose rows hold it, gives the others.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import prod

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from model import attention_shape, kernels
from model.config import ModelConfig
from model.launches import planned_launches
from model.layout import CACHE_TYPES, PATHS, PLAIN_CACHE_TYPES, CacheLayout, Path
from model.mix import mix_types
from model.norm import norm_held
from model.prompt_attention import TILED_FROM
from model.tensors import SUPPORTED_TYPES, file_tensors
from model.tiling import IN_HALVES, ROLES, candidates, purpose, usual
from model.weights import NARROW_SUBGROUP
from vkbackend import health, peaks, staging
from vkbackend.dry import DryDevice
from vkbackend.errors import InputError
from vkbackend.physical import DeviceInfo
from vkbackend.program import Launch
from vkbackend.tuning import Tuning

N_CTX = 4096  # of the planned caches; a longer one changes grids alone
LEAST_BINDING = 2**27  # bytes: maxStorageBufferRange of the Vulkan specification's "Required Limits"
NARROW, WIDE = 8, 64  # lanes: lavapipe's and RDNA's
_FORMAT = "FORMAT_"
# Tensors that are multiplied together with another one, where their types agree.
_BESIDE = r"[.](ffn_up|ffn_down_shexp|attn_kv_a)"


# Where a launch is from, best first: a forward pass of the mix, one of another type of weights, all logits of a chunk.
RANKS = ("mix", "type", "all logits")


@dataclass(frozen=True)
class Variant:
    """A kernel with macros and specialization constants, and one of its launches.

    Attributes:
        tokens, n_past: that the launch works on, and the cache positions before them.
        rank: index in RANKS of what the launch is from.
        plan: the launches of the same forward pass on a device with another tuning, or with none.
    """

    name: str
    launch: Launch
    tokens: int = 1
    n_past: int = 0
    rank: int = 0
    plan: Callable[[Tuning | None], Iterator[Variant]] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Shape:
    """What forward passes are planned for.

    Attributes:
        n_ctx, chunk: as for ``Session``.
        every_type: add weights of all types to those of the mix.
        most_bytes: of a variant's launches prefer those whose buffers are no larger; None: the largest launch.
        tuning: what the launches are chosen by besides the device.
    """

    n_ctx: int = N_CTX
    chunk: int | None = None
    every_type: bool = True
    most_bytes: int | None = None
    tuning: Tuning | None = None


def variant_name(launch: Launch) -> str:
    """What tells a variant from others of its kernel: 'matvec q4_k chosen rows=2'."""
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
    *,
    alternatives: bool = False,
    shape: Shape | None = None,
) -> list[Variant]:
    """The variants, by name; with ``patterns`` those whose name begins with one of them (wildcards * and ? allowed).

    With ``alternatives`` also a chunk's products by the other kernels that the device could be told to take, and
    attention over quantised caches by each that it can. With ``everything`` those, too, and those of caches in other
    types, of latent caches larger than one binding, the products' forms of narrow and of wide subgroups and the norms'
    of CPUs and GPUs whichever the device's are, and the backend's own kernels.

    Raises:
        InputError: a pattern matches none, or the mix is unknown.
    """
    found: dict[str, Variant] = {}
    shape = shape or Shape()
    among = list(paths or PATHS.values())
    variants = _variants(config, mix, info, among, shape)
    if alternatives or everything:
        variants = chain(
            variants,
            _alternatives(config, mix, info, among[0], shape),
            _attention_forms(config, mix, info, shape),
        )
    if everything:
        forms = _other_forms(info)
        others = chain(
            _variants(config, mix, info, among, replace(shape, tuning=forms)),
            _cache_variants(config, mix, info, replace(shape, tuning=forms)),
        )
        if shape.tuning is not None and shape.tuning.entries:  # what is chosen without it
            untuned = replace(shape, tuning=None)
            parts = _variants(config, mix, info, among, untuned), _cache_variants(config, mix, info, untuned)
            variants = chain(variants, *parts)
        files = {kernels.MATVEC.file, kernels.MATVEC_ROWS.file, kernels.MATMUL.file}
        products = (v for v in others if v.launch.kernel.file in files)
        own = list(variants)
        caches = _cache_variants(config, mix, info, shape)
        variants = chain(own, _other_norms(own, info), caches, products, _backend_variants())
    for variant in variants:
        name = variant.name
        if name not in found or _preference(variant, shape) > _preference(found[name], shape):
            found[name] = variant
    return [found[name] for name in choose(found, patterns)]


def _preference(variant: Variant, shape: Shape) -> tuple[int, int, int]:
    """Of launches of one variant that which reads most shows most of it, among those that the wished shape has."""
    rank, launch = variant.rank, variant.launch
    sizes = {name: buffer.nbytes for name, buffer in launch.buffers.items()}
    read = max((sizes.get(name, 0) for name, access in launch.kernel.bindings if access == "r"), default=0)
    if shape.most_bytes is not None and max(sizes.values(), default=0) > shape.most_bytes:
        rank += len(RANKS)
    return -rank, read, prod(launch.grid)


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
                f"no kernel variant matches {pattern!r}, expected one of {kernels}, or whole words that begin "
                "a variant's name; `latentvk shaders stats` lists them"
            )
    return [name for name in among if not patterns or any(_matches(name, p) for p in patterns)]


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern + rest) for rest in ("", " *", "=*"))


def _two_layers(config: ModelConfig) -> ModelConfig:
    """A dense layer and a mixture one, where the model has both."""
    two = replace(config, n_layer=config.n_dense + 1 if config.n_dense < config.n_layer else 1, n_nextn=0)
    return replace(two, n_dense=min(two.n_dense, 1), n_layer=min(two.n_layer, 2))


def _variants(
    config: ModelConfig,
    mix: str,
    info: DeviceInfo,
    paths: list[Path],
    shape: Shape,
    kinds: Sequence[GGMLQuantizationType] = SUPPORTED_TYPES,
) -> Iterator[Variant]:
    """Of the mix on every path, and on the first with weights of each of ``kinds``."""
    two = _two_layers(config)
    for path in paths:
        yield from _planned(two, mix_types(two, mix), path, info, shape, "mix")
    for kind in kinds if shape.every_type else ():
        block = GGML_QUANT_SIZES[kind][0]
        fitting = [re.escape(name) for name, size in file_tensors(two).items() if size[-1] % block == 0]
        rules = [(f"^({'|'.join(fitting)})$", kind)]
        # Also with tensors beside these in another type, which no launch can take together with them.
        beside = GGMLQuantizationType.F32 if kind is not GGMLQuantizationType.F32 else GGMLQuantizationType.F16
        for first in ([], [(_BESIDE, beside)]):
            types = mix_types(two, mix, [*first, *rules])
            yield from _planned(two, types, paths[0], info, shape, "type")


def _planned(
    config: ModelConfig,
    types: Mapping[str, GGMLQuantizationType],
    path: Path,
    info: DeviceInfo,
    shape: Shape,
    rank: str,
) -> Iterator[Variant]:
    def plan(tuning: Tuning | None) -> Iterator[Variant]:
        planned = planned_launches(config, types, path, info, n_ctx=shape.n_ctx, chunk=shape.chunk, tuning=tuning)
        # The first kernel of each program, an embedding or a norm, has a workgroup for each token.
        n_past = shape.n_ctx - planned["chunk"][0].grid[0]
        for name, launches in planned.items():
            of = RANKS.index("all logits" if name == "head_all" else rank)
            for launch in launches:
                yield Variant(variant_name(launch), launch, launches[0].grid[0], n_past, of, plan)

    return plan(shape.tuning)


def _cache_variants(config: ModelConfig, mix: str, info: DeviceInfo, shape: Shape) -> Iterator[Variant]:
    """Of each path with each further type of cache; of latent caches also in shards, which the least binding that
    Vulkan guarantees makes."""
    two = _two_layers(config)
    types = mix_types(two, mix)
    narrow = replace(info, max_storage_buffer_range=LEAST_BINDING)
    for path in PATHS.values():
        latent = path.layout is not CacheLayout.PER_HEAD
        for of in CACHE_TYPES if latent else PLAIN_CACHE_TYPES:
            typed = replace(path, cache_type=of)
            wanted = [(shape, info)] if of != "f16" else []
            if latent:
                # The sums of shards grow with the chunk and must be bound too; a small one changes grids alone.
                rows = LEAST_BINDING // typed.row_bytes(two.latent_dim)
                wanted.append((replace(shape, n_ctx=2 * rows, chunk=TILED_FROM), narrow))
            for planned, device in wanted:
                made = _planned(two, types, typed, device, planned, "mix")
                yield from (variant for variant in made if _of_a_cache(variant.launch))


def _other_forms(info: DeviceInfo) -> Tuning:
    """What takes the products' forms of the other subgroups, wide or narrow, than the device's."""
    lanes = WIDE if info.subgroup_size < NARROW_SUBGROUP else NARROW
    return Tuning(
        {
            purpose(kind, tokens, role): usual(kind, tokens, lanes, role)
            for kind in SUPPORTED_TYPES
            for tokens in (1, 2)
            for role in ROLES
        }
    )


def _alternatives(config: ModelConfig, mix: str, info: DeviceInfo, path: Path, shape: Shape) -> Iterator[Variant]:
    """A chunk's products by each kernel that a device can take besides its usual one, and what these need launched."""
    lanes = info.subgroup_size
    for file in kernels.CHUNK_PRODUCTS:
        kinds = [k for k in SUPPORTED_TYPES if file in candidates(k, 2, info) and usual(k, 2, lanes).kernel != file]
        roles = ("", "routed")
        told = Tuning({purpose(k, 2, role): usual(k, 2, lanes, role, file) for k in kinds for role in roles})
        for variant in _variants(config, mix, info, [path], replace(shape, tuning=told), kinds) if kinds else ():
            launch = variant.launch
            # Of the many types of experts in halves, which compile slowly, only those of the mix.
            if file in IN_HALVES and variant.rank and "ROUTED" in launch.kernel.macros:
                continue
            if launch.kernel.file in (file, kernels.QUANTIZE_INPUTS.file):
                yield variant


def _attention_forms(config: ModelConfig, mix: str, info: DeviceInfo, shape: Shape) -> Iterator[Variant]:
    """Attention over quantised latent caches by each kernel that the device can take, cut as usual."""
    two, device = _two_layers(config), DryDevice(info)
    types = mix_types(two, mix)
    for path in PATHS.values():
        for of in CACHE_TYPES if path.layout is not CacheLayout.PER_HEAD else ():
            kind, typed = CACHE_TYPES[of], replace(path, cache_type=of)
            for file in attention_shape.candidates(kind, info) if of not in PLAIN_CACHE_TYPES else ():
                told = Tuning(
                    {
                        attention_shape.purpose(two.kv_lora, two.qk_rope, two.n_head, kind, tokens): replace(
                            attention_shape.AttentionShape.choose(device, two, kind, tokens), kernel=file
                        ).entry
                        for tokens in (1, 2)
                    }
                )
                planned = _planned(two, types, typed, info, replace(shape, tuning=told), "mix")
                yield from (variant for variant in planned if variant.launch.kernel.file == file)


def _other_norms(variants: Iterable[Variant], info: DeviceInfo) -> Iterator[Variant]:
    """The norms among ``variants`` in the form of GPUs, or of CPUs, whichever the device's is not."""
    kind = "discrete" if info.kind == "cpu" else "cpu"
    for variant in variants:
        launch = variant.launch
        if launch.kernel.file == kernels.RMS_NORM.file:
            spec = {"HELD": norm_held(int(launch.push["width"]), WIDE, kind)}
            made = replace(launch, spec=spec)
            yield replace(variant, name=variant_name(made), launch=made)


def _of_a_cache(launch: Launch) -> bool:
    return any(
        name.startswith("CACHE_") or name in ("SHARD", "ROWS_FROM_CACHE", "UNITS_FROM_CACHE")
        for name in launch.kernel.macros
    )


def _backend_variants() -> Iterator[Variant]:
    """Copies, zeroes, the kernels that measure peaks and the probe of a subgroup, by themselves."""
    each = {"EACH": staging.EACH}
    for kernel, spec in (
        (staging.COPY, each),
        (staging.ZERO, each),
        (peaks.READ, {"LOADS": peaks.LOADS}),
        (peaks.READ_TEXELS, {"LOADS": peaks.LOADS_CPU}),
        (peaks.ARITHMETIC, {"ROUNDS": peaks.ROUNDS}),
        (health.PROBE, {}),
    ):
        launch = Launch(kernel, {}, spec, {}, (1, 1, 1), kernel.file, False)
        yield Variant(variant_name(launch), launch)
