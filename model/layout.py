"""What a model costs: cache bytes for each layout and type; parameters and weight bytes, total and active.

A cache layout is what one token leaves behind in one layer (H heads, R kv_lora, P qk_rope, N qk_nope, V v_head):
``latent`` one row of R + P, shared by all heads; ``latent_v`` that row and a second copy of its R values for the value
side; ``per_head`` a key of N + P and a value of V for each head, as a runtime without MLA stores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from math import prod

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from model.config import ModelConfig
from model.tensors import expected_tensors
from vkbackend.errors import InputError

UNIT = 32  # columns that a matrix kernel reads at once; shorter rows of plain numbers are padded to whole units


def whole_units(n: int) -> int:
    """``n`` rounded up to a multiple of UNIT."""
    return -(-n // UNIT) * UNIT


class CacheLayout(Enum):
    """What is cached for one token in one layer; see the module's first lines."""

    LATENT = "latent"
    LATENT_V = "latent_v"
    PER_HEAD = "per_head"


# What a cache can be held in: f16 to work with, f32 to check against others without its rounding; of latent rows also
# ggml's blocks of 32. A per-head cache keeps values transposed, so that a block would be 32 positions of which the next
# token adds one.
CACHE_TYPES = {
    "f16": GGMLQuantizationType.F16,
    "f32": GGMLQuantizationType.F32,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q4_0": GGMLQuantizationType.Q4_0,
}
PLAIN_CACHE_TYPES = ("f16", "f32")


def require_cache_type(cache_type: str) -> GGMLQuantizationType:
    """The GGUF type that a cache type's name stands for. InputError listing the names where it is none of them."""
    if cache_type not in CACHE_TYPES:
        raise InputError(
            f"cache type {cache_type!r} has no kernel, expected one of {', '.join(CACHE_TYPES)}; choose one with "
            "--cache"
        )
    return CACHE_TYPES[cache_type]


@dataclass(frozen=True)
class Path:
    """One way to run attention: cache layout, cache type, and whether scores and values are one fused kernel."""

    name: str
    layout: CacheLayout
    fused: bool
    cache_type: str = "f16"

    @property
    def kind(self) -> GGMLQuantizationType:
        """The cache's numbers."""
        return require_cache_type(self.cache_type)

    @property
    def number_bytes(self) -> int:
        """Bytes of one number of a plain cache."""
        return GGML_QUANT_SIZES[self.kind][1]

    def row_bytes(self, width: int) -> int:
        """Bytes of a latent cache's row of ``width`` numbers; a quantised one ends with a whole word."""
        return latent_row_bytes(width, self.kind)


PATHS = {
    path.name: path
    for path in (
        Path("mla", CacheLayout.LATENT, fused=True),
        Path("mla-v", CacheLayout.LATENT_V, fused=True),
        Path("mha", CacheLayout.PER_HEAD, fused=False),
    )
}


def get_path(name: str, cache_type: str = "f16") -> Path:
    """The path called ``name`` over a cache of that type. InputError listing what there is where there is no such."""
    if name not in PATHS:
        raise InputError(f"path {name!r} is unknown, expected one of {', '.join(PATHS)}; choose one with --path")
    require_cache_type(cache_type)
    path = replace(PATHS[name], cache_type=cache_type)
    if path.layout is CacheLayout.PER_HEAD and cache_type not in PLAIN_CACHE_TYPES:
        raise InputError(
            f"path {name!r} keeps values transposed, which {cache_type} has no blocks for; expected a cache of "
            f"{' or '.join(PLAIN_CACHE_TYPES)}; choose it with --cache, or another --path"
        )
    return path


def pairs_a_word(kind: GGMLQuantizationType) -> int:
    """Pairs of numbers in a word of a latent cache (f32, whose pairs are two words: 1)."""
    return {GGMLQuantizationType.Q8_0: 2, GGMLQuantizationType.Q4_0: 4}.get(kind, 1)


def require_whole_words(config: ModelConfig, path: Path) -> None:
    """InputError where the rotated part of a latent row would begin inside a word of the path's cache type."""
    aligned = 2 * pairs_a_word(path.kind)
    if path.layout is not CacheLayout.PER_HEAD and config.kv_lora % aligned:
        raise InputError(
            f"kv_lora_rank {config.kv_lora}, expected a multiple of {aligned} for a cache of {path.cache_type}; choose "
            "another with --cache"
        )


def cache_rows(config: ModelConfig, layout: CacheLayout) -> tuple[int, ...]:
    """Elements of each row that one token adds in one layer; a quantised row is padded to whole blocks by itself.

    A key per head is a row of a matrix, and as long as its whole units.
    """
    if layout is CacheLayout.LATENT:
        return (config.latent_dim,)
    if layout is CacheLayout.LATENT_V:
        return (config.latent_dim, config.kv_lora)
    return (whole_units(config.key_dim),) * config.n_head + (config.v_head,) * config.n_head


def cache_elements_per_token_layer(config: ModelConfig, layout: CacheLayout) -> int:
    """Values cached per token and layer: R + P, 2R + P, or H(N + P + V), with N + P in whole units of 32."""
    return sum(cache_rows(config, layout))


def cache_bytes_per_token(config: ModelConfig, layout: CacheLayout, cache_type: str = "f16") -> int:
    """Bytes cached per token over all layers (MTP layers excluded). InputError for an unknown ``cache_type``."""
    kind, rows = require_cache_type(cache_type), cache_rows(config, layout)
    row_bytes = _block_bytes if layout is CacheLayout.PER_HEAD else latent_row_bytes
    return config.n_layer * sum(row_bytes(row, kind) for row in rows)


def _block_bytes(width: int, kind: GGMLQuantizationType) -> int:
    """Bytes of a row of ``width`` numbers in whole blocks."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return -(-width // block) * block_bytes


def latent_row_bytes(width: int, kind: GGMLQuantizationType) -> int:
    """The same of a latent row; a quantised row's scales fill whole words (shaders/include/latent_row.glsl)."""
    exact = _block_bytes(width, kind)
    return exact if GGML_QUANT_SIZES[kind][0] == 1 else -(-exact // 4) * 4


def cache_bytes(config: ModelConfig, layout: CacheLayout, cache_type: str, n_ctx: int) -> int:
    """Bytes of a cache of ``n_ctx`` tokens."""
    return n_ctx * cache_bytes_per_token(config, layout, cache_type)


def max_context(config: ModelConfig, layout: CacheLayout, cache_type: str, n_bytes: int) -> int:
    """Tokens whose cache fits in ``n_bytes`` (what is left after the weights); 0 when nothing is left.

    Not capped at ``n_ctx_train``: whether the model is any use beyond it is another question than whether it fits.
    """
    return max(0, n_bytes) // cache_bytes_per_token(config, layout, cache_type)


def active_fraction(config: ModelConfig, tensor: str) -> Fraction:
    """Share of a tensor that one decoded token reads: the used experts' share of expert tensors, else all of it.

    The embedding counts as 0 (one row is read, by lookup) unless it is also the output matrix.
    """
    if tensor == "token_embd.weight":
        return Fraction(int(config.tied_output))
    if tensor.endswith("_exps.weight"):
        return Fraction(config.n_expert_used, config.n_expert)
    return Fraction(1)


def total_parameters(config: ModelConfig) -> int:
    """All weights, embedding and output included, MTP layers excluded."""
    return sum(prod(shape) for shape in expected_tensors(config).values())


def active_parameters(config: ModelConfig) -> int:
    """Weights that work on one token: the layers, of their experts only the used ones, and the output matrix."""
    tensors = expected_tensors(config).items()
    return int(sum(prod(shape) * active_fraction(config, name) for name, shape in tensors))


def tensor_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor stored as ``kind``; its rows (last axis) must be whole blocks."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise InputError(
            f"rows of {shape[-1]} cannot be stored as {kind.name}, expected a multiple of {block}; choose another type"
        )
    return prod(shape) // block * block_bytes


def weight_bytes(config: ModelConfig, types: Mapping[str, GGMLQuantizationType]) -> int:
    """Bytes of all weights when tensor ``name`` is stored as ``types[name]``."""
    return sum(tensor_bytes(shape, types[name]) for name, shape in expected_tensors(config).items())


def active_weight_bytes(config: ModelConfig, types: Mapping[str, GGMLQuantizationType]) -> int:
    """Weight bytes read per decoded token, counted as ``active_parameters`` counts."""
    tensors = expected_tensors(config).items()
    return int(sum(tensor_bytes(shape, types[name]) * active_fraction(config, name) for name, shape in tensors))
