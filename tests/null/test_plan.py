"""What a file's tensors become on the device: joint and fused ones apart, k_b turned over, each byte in its place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize

from harness.synth import write_synthetic
from model.config import ModelConfig
from model.device_weights import fallback_bytes, predicted_bytes
from model.gguf_file import GGUFFile
from model.plan import Planned, planned, planned_fallback
from model.reference.forward import Reference
from model.weights import device_bytes
from tests.null.random_model import BASE

CONFIG = replace(BASE, n_embd=64, kv_lora=32, qk_nope=32, v_head=20, n_ff_exp=32)
KINDS = (Q.F32, Q.F16, Q.BF16, Q.Q8_0)


def opened(folder: Path, config: ModelConfig, kind: Q) -> GGUFFile:
    """A file of ``config`` whose kv_b and expert tensors are of ``kind``."""
    path = folder / "m.gguf"
    write_synthetic(config, path, "f32", 5, [("attn_(k|v|kv)_b|exps", kind)] if kind is not Q.F32 else [])
    return GGUFFile.open(path)


def values(part: Planned) -> np.ndarray:
    """What a kernel reads from the part's bytes."""
    data = part.data()
    stacks = [data] if isinstance(data, np.ndarray) else data
    rows = np.concatenate([stack.reshape(-1) for stack in stacks]).reshape(int(np.prod(part.shape[:-1])), -1)
    return np.asarray(dequantize(rows, part.kind)).reshape(part.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_every_form_is_the_one_that_the_oracle_reads(tmp_path: Path, kind: Q, split: bool, fused: bool) -> None:
    config = replace(CONFIG, split_kv_b=split, fused_gate_up=fused, expert_bias=False)
    gguf = opened(tmp_path, config, kind)
    oracle = Reference.from_gguf(gguf)
    parts = {part.name: part for part in planned(config, gguf)}
    turned = {part.name: part for part in planned_fallback(config, gguf)}
    apart = replace(config, split_kv_b=True, fused_gate_up=False)
    (tmp_path / "apart").mkdir()
    assert set(parts) == {part.name for part in planned(apart, opened(tmp_path / "apart", apart, kind))}
    for layer in range(config.n_layer):
        for name in ("attn_k_b", "attn_v_b"):
            np.testing.assert_array_equal(values(parts[f"blk.{layer}.{name}"]), oracle._layer(layer, name))
        np.testing.assert_array_equal(
            values(turned[f"blk.{layer}.attn_k_b_transposed"]), oracle._layer(layer, "attn_k_b").transpose(0, 2, 1)
        )
        # Numbers are turned over as they are, blocks as f32; what is only split keeps its type.
        kept = kind if kind is not Q.Q8_0 else Q.F32
        assert parts[f"blk.{layer}.attn_k_b"].kind == (kind if split else kept)
        assert turned[f"blk.{layer}.attn_k_b_transposed"].kind == (kept if split else kind)
        assert parts[f"blk.{layer}.attn_v_b"].kind == kind
        if config.is_moe(layer):
            assert not values(parts[f"blk.{layer}.exp_probs_b"]).any()
            for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
                experts = [oracle._expert(layer, name, e) for e in range(config.n_expert)]
                joined = f"blk.{layer}.{name} + {name.replace('exps', 'shexp')}"
                assert (joined in parts) == (kind is Q.F32)  # as the shared experts are
                found = values(parts[joined if joined in parts else f"blk.{layer}.{name}"])
                np.testing.assert_array_equal(found[: config.n_expert], np.stack(experts))


def test_what_is_joined(tmp_path: Path) -> None:
    """q_a's rows and then kv_a's; routed experts and then the shared ones, each as large as a routed one: gate and up
    cut by rows, down by columns, as the sum over a shared expert's columns is a sum over both halves'."""
    config = replace(CONFIG, n_expert_shared=2)
    gguf = opened(tmp_path, config, Q.F32)
    oracle, parts = Reference.from_gguf(gguf), {part.name: part for part in planned(config, gguf)}
    layer = config.n_dense
    products = [oracle._layer(layer, name) for name in ("attn_q_a", "attn_kv_a_mqa")]
    found = values(parts[f"blk.{layer}.attn_q_a + attn_kv_a_mqa"])
    np.testing.assert_array_equal(found, np.concatenate(products))
    for name, axis in (("gate", 0), ("up", 0), ("down", 1)):
        experts = [oracle._expert(layer, f"ffn_{name}_exps", e) for e in range(config.n_expert)]
        experts += np.split(oracle._layer(layer, f"ffn_{name}_shexp"), 2, axis=axis)
        found = values(parts[f"blk.{layer}.ffn_{name}_exps + ffn_{name}_shexp"])
        np.testing.assert_array_equal(found, np.stack(experts))
    names = {
        "attn_q_a",
        "attn_kv_a_mqa",
        *(f"ffn_{name}_{of}" for name in ("gate", "up", "down") for of in ("exps", "shexp")),
    }
    assert not names & {part.split(".", 2)[-1] for part in parts}


def test_bytes_are_those_of_the_forms_on_the_device(tmp_path: Path) -> None:
    """A joint Q8_0 tensor costs its k_b again as f32, and as it is for the fallback."""
    joint = opened(tmp_path, replace(CONFIG, split_kv_b=False), Q.Q8_0)
    config = ModelConfig.from_gguf(joint)
    stored = sum(i.nbytes for i in joint.tensors.values() if i.shape[-1] % 32 == 0 and "kv_b" not in i.name)
    odd = [i for i in joint.tensors.values() if i.shape[-1] % 32 and len(i.shape) > 1]
    padded = sum(device_bytes(i.type, i.shape) for i in odd)
    vectors = sum(4 * i.shape[0] for i in joint.tensors.values() if i.shape[-1] % 32 and len(i.shape) == 1)
    heads, keys, values = config.n_head, config.qk_nope * config.kv_lora, config.v_head * config.kv_lora
    kv_b = config.n_layer * heads * (4 * keys + values * 34 // 32)
    assert predicted_bytes(config, joint) == stored + padded + vectors + kv_b
    assert fallback_bytes(config, joint) == config.n_layer * heads * keys * 34 // 32


def test_data_is_a_view_of_the_file(tmp_path: Path) -> None:
    """Halves of a fused tensor are not copied before they are uploaded."""
    config = replace(CONFIG, split_kv_b=False, fused_gate_up=True)
    gguf = opened(tmp_path, config, Q.F16)
    for part in planned(config, gguf):
        if part.name.endswith(("attn_v_b", "gate_exps", "up_exps")):
            data = part.data()
            assert isinstance(data, np.ndarray) and not data.flags.owndata and data.base is not None
        if "gate_exps + " in part.name or "up_exps + " in part.name:
            routed, _ = part.data()
            assert not routed.flags.owndata and routed.base is not None
