"""A whole small model in which every tensor type that has a shader occurs: each path against the reference."""

from dataclasses import replace

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from small_models import SmallModel

from harness.synth import write_synthetic
from model.gguf_file import GGUFFile
from model.layout import PATHS
from model.presets import PRESETS
from model.tensors import SUPPORTED_TYPES
from vkbackend.device import Device

# Rows of 256 wherever the architecture allows it, so that any type fits; k_b has rows of 32.
MIXED = replace(
    PRESETS["glm-4.7-flash"],
    name="mixed",
    n_layer=4,
    n_nextn=0,
    n_embd=256,
    n_vocab=300,
    n_head=4,
    q_lora=256,
    kv_lora=256,
    qk_nope=32,
    qk_rope=16,
    v_head=64,
    n_ff=512,
    n_expert=6,
    n_expert_used=3,
    n_ff_exp=256,
    n_ctx_train=4096,
)
LOW_BITS = (Q.IQ1_S, Q.IQ1_M, Q.IQ2_XXS, Q.IQ2_XS, Q.IQ2_S, Q.IQ3_XXS, Q.IQ3_S, Q.Q2_K, Q.TQ1_0)


def types_of_tensors() -> list[tuple[str, Q]]:
    """(name, type): the low-bit types for experts, as in the files that mix most; all of them in turn for the rest."""
    experts = [f"blk.{layer}.ffn_{part}_exps" for layer in (1, 2, 3) for part in ("gate", "up", "down")]
    chosen = list(zip(experts, LOW_BITS, strict=True))
    short = [kind for kind in SUPPORTED_TYPES if 1 < GGML_QUANT_SIZES[kind][0] <= 32]
    chosen += [(f"blk.{layer}.attn_k_b", short[2 * layer]) for layer in range(4)]
    rest = ["token_embd", "output.weight"]
    for layer in range(4):
        parts = ["attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_v_b", "attn_output"]
        parts += [f"ffn_{part}{'' if layer == 0 else '_shexp'}" for part in ("gate", "up", "down")]
        rest += [f"blk.{layer}.{part}" for part in parts]
    chosen += [(name, SUPPORTED_TYPES[i % len(SUPPORTED_TYPES)]) for i, name in enumerate(rest)]
    return [(f"^{name.replace('.', '[.]')}([.]|$)", kind) for name, kind in chosen]


@pytest.fixture(scope="module")
def mixed(device: Device, tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    path = tmp_path_factory.mktemp("mixed") / "mixed.gguf"
    write_synthetic(MIXED, path, "q8_0", 1, types_of_tensors())
    return SmallModel("mixed", GGUFFile.open(path), device)


def test_every_type_with_a_shader_occurs(mixed: SmallModel) -> None:
    """And experts, k_b and v_b, which other kernels read, have types of their own."""
    types = {name: info.type for name, info in mixed.gguf.tensors.items()}
    assert set(types.values()) == set(SUPPORTED_TYPES)
    assert {kind for name, kind in types.items() if "_exps" in name} == set(LOW_BITS)
    assert len({kind for name, kind in types.items() if "attn_k_b" in name}) == 4
    assert mixed.reference.routing_margins(mixed.prompt).min() > 2e-4  # as tests/device/test_paths.py asks


@pytest.mark.parametrize(("path", "chunk"), [("mla", 7), ("mha", 1)])
def test_logits_equal_the_references(mixed: SmallModel, path: str, chunk: int) -> None:
    """The kernels of a chunk and of one token; k_b as stored and turned over."""
    found = mixed.logits(path, chunk)
    expected, tolerance = mixed.exact(PATHS[path])
    assert tolerance < 0.01 * np.abs(expected).max()
    assert np.abs(found - expected).max() <= tolerance
