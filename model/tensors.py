"""The tensors of a ``deepseek2`` GGUF: which a config calls for, in what shape, and which types and variants can run.

Names and shapes are llama.cpp's (src/models/deepseek2.cpp); shapes here are NumPy order, outermost first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gguf import GGMLQuantizationType as Q

from model.metadata import RECONVERT
from vkbackend.errors import InputError, shown

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.gguf_file import GGUFFile

# The types that have a shader (shaders/include/format_*.glsl).
SUPPORTED_TYPES = (
    *(Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K),
    *(Q.IQ4_NL, Q.IQ4_XS, Q.MXFP4, Q.NVFP4, Q.IQ1_S, Q.IQ1_M, Q.IQ2_XXS, Q.IQ2_XS, Q.IQ2_S, Q.IQ3_XXS, Q.IQ3_S),
    *(Q.TQ1_0, Q.TQ2_0),
)


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the forward pass reads, in llama.cpp's file order, with its shape. MTP layers excluded."""
    c = config
    tensors: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (c.n_vocab, c.n_embd),
        "output_norm.weight": (c.n_embd,),
    }
    if not c.tied_output:
        tensors["output.weight"] = (c.n_vocab, c.n_embd)
    for layer in range(c.n_layer):
        block = _attention_tensors(c) | (_moe_tensors(c) if c.is_moe(layer) else _dense_tensors(c))
        tensors |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return tensors


def file_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a whole file: those that are read, and the MTP layers' (copies of the vocabulary excepted)."""
    c, tensors = config, expected_tensors(config)
    for layer in range(c.n_layer, c.n_layer + c.n_nextn):
        block = _attention_tensors(c) | (_moe_tensors(c) if c.n_expert else _dense_tensors(c))
        block["nextn.eh_proj.weight"] = (c.n_embd, 2 * c.n_embd)
        block |= {f"nextn.{name}.weight": (c.n_embd,) for name in ("enorm", "hnorm", "shared_head_norm")}
        tensors |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return tensors


def _attention_tensors(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {"attn_norm.weight": (c.n_embd,)}
    if c.q_lora:
        tensors |= {
            "attn_q_a.weight": (c.q_lora, c.n_embd),
            "attn_q_a_norm.weight": (c.q_lora,),
            "attn_q_b.weight": (c.n_head * c.key_dim, c.q_lora),
        }
    else:
        tensors["attn_q.weight"] = (c.n_head * c.key_dim, c.n_embd)
    tensors |= {"attn_kv_a_mqa.weight": (c.latent_dim, c.n_embd), "attn_kv_a_norm.weight": (c.kv_lora,)}
    if c.split_kv_b:
        tensors |= {
            "attn_k_b.weight": (c.n_head, c.kv_lora, c.qk_nope),
            "attn_v_b.weight": (c.n_head, c.v_head, c.kv_lora),
        }
    else:
        tensors["attn_kv_b.weight"] = (c.n_head * (c.qk_nope + c.v_head), c.kv_lora)
    return tensors | {"attn_output.weight": (c.n_embd, c.n_head * c.v_head), "ffn_norm.weight": (c.n_embd,)}


def _dense_tensors(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    return _gated("ffn_{}.weight", (), c.n_embd, c.n_ff)


def _moe_tensors(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {"ffn_gate_inp.weight": (c.n_expert, c.n_embd)}
    if c.expert_bias:
        tensors["exp_probs_b.bias"] = (c.n_expert,)
    experts = _gated("ffn_{}_exps.weight", (c.n_expert,), c.n_embd, c.n_ff_exp)
    if c.fused_gate_up:
        del experts["ffn_gate_exps.weight"], experts["ffn_up_exps.weight"]
        experts = {"ffn_gate_up_exps.weight": (c.n_expert, 2 * c.n_ff_exp, c.n_embd), **experts}
    tensors |= experts
    if c.n_expert_shared:
        tensors |= _gated("ffn_{}_shexp.weight", (), c.n_embd, c.n_ff_exp * c.n_expert_shared)
    return tensors


def _gated(pattern: str, lead: tuple[int, ...], n_embd: int, width: int) -> dict[str, tuple[int, ...]]:
    up, down = (*lead, width, n_embd), (*lead, n_embd, width)
    return {pattern.format("gate"): up, pattern.format("up"): up, pattern.format("down"): down}


def check_tensors(config: ModelConfig, gguf: GGUFFile) -> None:
    """Raise InputError unless the file holds every expected tensor in its shape, and none whose effect is unknown."""
    expected = expected_tensors(config)
    for name, shape in expected.items():
        if name not in gguf.tensors:
            raise InputError(f"{gguf.path}: tensor {name} is missing, expected shape {list(shape)}; {RECONVERT}")
        found = gguf.tensors[name].shape
        if found != shape and found != _flat_heads(name, shape):
            raise InputError(
                f"{gguf.path}: tensor {name} has shape {list(found)}, expected {list(shape)} (NumPy order) from the "
                f"file's keys; {RECONVERT}"
            )
    for name in gguf.tensors:
        if name not in expected and not _is_redundant(config, name):
            raise InputError(
                f"{gguf.path}: tensor {shown(name)} has no part in the model as latentvk computes it, expected only "
                f"the {len(expected)} tensors of the architecture; use a file without it, or the result would be wrong"
            )


def _flat_heads(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of k_b and v_b where a converter left the heads in the rows, as ik_llama.cpp does: the same bytes."""
    return (shape[0] * shape[1], shape[2]) if name.endswith(("attn_k_b.weight", "attn_v_b.weight")) else shape


def _is_redundant(config: ModelConfig, name: str) -> bool:
    """MTP layers are not run; a joint attn_kv_b beside the split pair holds the same numbers twice."""
    match = re.match(r"blk\.(\d{1,6})\.(.*)", name)
    if match is None:
        return False
    return int(match[1]) >= config.n_layer or match[2] == "attn_kv_b.weight"


# Read as vectors of four f32.
_ALIGNED = ("n_embd", "q_lora", "kv_lora", "qk_nope", "v_head", "key_dim", "latent_dim", "n_ff", "n_ff_exp")


def require_supported(config: ModelConfig, gguf: GGUFFile | None = None) -> None:
    """Raise InputError for a model that parses but that the forward pass cannot run yet.

    With ``gguf`` also for a tensor whose type has no shader. Meant to pass before anything is allocated.
    """
    source = gguf.path if gguf is not None else config.name
    for field in _ALIGNED:
        if getattr(config, field) % 4:
            raise InputError(
                f"{source}: {field} is {getattr(config, field)}, expected a multiple of 4; "
                "use a model of other dimensions"
            )
    if gguf is None:
        return
    for name in expected_tensors(config):
        kind = gguf.tensors[name].type
        if kind not in SUPPORTED_TYPES:
            raise InputError(
                f"{source}: tensor {name} has type {kind.name}, which has no shader, expected one of "
                f"{', '.join(t.name for t in SUPPORTED_TYPES)}; requantise the model, for example to Q4_K_M with "
                "llama-quantize"
            )
