"""Which type each tensor of a model gets in a named mix, as llama-quantize chooses them (src/llama-quant.cpp).

Norms, the router and its bias stay F32 in every mix. ``q4_k_m`` is Q4_K, and ``q5_k_m`` Q5_K, with Q6_K for the output
matrix and, in the layers that get "more bits", for ``ffn_down*`` (and a joint ``attn_kv_b``). Rows that are no multiple
of a K-quant's 256 fall back to a type with blocks of 32, and rows that are no multiple of 32 to F16.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as Q

from model.config import ModelConfig
from model.tensors import file_tensors
from vkbackend.errors import InputError

MIXES: Mapping[str, tuple[Q, LlamaFileType]] = {
    "q4_k_m": (Q.Q4_K, LlamaFileType.MOSTLY_Q4_K_M),
    "q5_k_m": (Q.Q5_K, LlamaFileType.MOSTLY_Q5_K_M),
    "q6_k": (Q.Q6_K, LlamaFileType.MOSTLY_Q6_K),
    "q8_0": (Q.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "bf16": (Q.BF16, LlamaFileType.MOSTLY_BF16),
    "f16": (Q.F16, LlamaFileType.MOSTLY_F16),
    "f32": (Q.F32, LlamaFileType.ALL_F32),
}
_FALLBACK = {Q.Q4_K: Q.Q5_0, Q.Q5_K: Q.Q5_1, Q.Q6_K: Q.Q8_0}
_KEPT_F32 = re.compile(r"norm\.weight$|ffn_gate_inp\.weight$|\.bias$")


def get_mix(name: str) -> Q:
    """The base type of a mix. InputError listing the names when it is unknown."""
    if name not in MIXES:
        raise InputError(f"mix {name!r} is unknown, expected one of {', '.join(MIXES)}; choose one with --mix")
    return MIXES[name][0]


def mix_types(config: ModelConfig, mix: str, overrides: Iterable[tuple[str, Q]] = ()) -> dict[str, Q]:
    """Tensor name -> type for every tensor of a file of ``config``.

    ``overrides`` are (regular expression, type), searched in the names of the tensors that a mix may quantise, first
    match wins; a row that the wished type cannot hold is an InputError, and so is an expression that matches nothing.
    """
    base = get_mix(mix)
    overrides = list(overrides)
    types: dict[str, Q] = {}
    shapes = file_tensors(config)
    free = [name for name in shapes if not _KEPT_F32.search(name)]
    for pattern, _ in overrides:
        if not any(re.search(pattern, name) for name in free):
            raise InputError(
                f"type pattern {pattern!r} matches no tensor whose type can be chosen, expected part of a name such as "
                "attn_v_b; correct it"
            )
    for name, shape in shapes.items():
        if _KEPT_F32.search(name):
            types[name] = Q.F32
            continue
        wish = next((kind for pattern, kind in overrides if re.search(pattern, name)), None)
        if wish is not None:
            block = GGML_QUANT_SIZES[wish][0]
            if shape[-1] % block:
                raise InputError(
                    f"tensor {name} has rows of {shape[-1]}, expected a multiple of {block} for {wish.name}; "
                    "choose another type for it"
                )
            types[name] = wish
        else:
            types[name] = _fit(_choose(config, name, shape, base, mix), shape[-1])
    return types


def _choose(config: ModelConfig, name: str, shape: tuple[int, ...], base: Q, mix: str) -> Q:
    if mix not in ("q4_k_m", "q5_k_m"):
        return base
    if name == "output.weight" or (config.tied_output and name == "token_embd.weight"):
        return Q.Q6_K if shape[-1] % GGML_QUANT_SIZES[base][0] == 0 else Q.Q8_0
    layer = re.match(r"blk\.(\d+)\.(ffn_down|attn_kv_b)", name)
    if layer is not None and _more_bits(int(layer[1]), config.n_layer):
        return Q.Q6_K
    return base


def _more_bits(layer: int, n_layer: int) -> bool:
    """llama-quantize's ``use_more_bits``: the first and last eighth of the layers, and every third between."""
    eighth = n_layer // 8
    return layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2


def _fit(kind: Q, row: int) -> Q:
    for candidate in (kind, _FALLBACK.get(kind, kind)):
        if row % GGML_QUANT_SIZES[candidate][0] == 0:
            return candidate
    return Q.F16
