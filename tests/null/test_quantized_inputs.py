"""Inputs in 8 bits: quantised once for all products that read them, again once they changed, only where asked for."""

from dataclasses import replace

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from hypothesis import given
from hypothesis import strategies as st
from imaginary import CAPABLE, INFO

from harness.oracles.inputs import QUANT_ERROR, EightBits
from model import kernels
from model.block_formats import SMALL_INTEGERS
from model.launches import planned_launches
from model.layout import PATHS, UNIT
from model.linear import View
from model.mix import mix_types
from model.presets import get_preset
from model.quantized_inputs import quantized, quantized_words
from model.tensors import SUPPORTED_TYPES
from model.tiling import candidates, purpose, unfit, usual
from vkbackend.buffer import Buffer
from vkbackend.dry import DryDevice
from vkbackend.program import Launch, Program
from vkbackend.tuning import Tuning

GLM = get_preset("glm-4.7-flash")
DEVICE = DryDevice(replace(CAPABLE, max_workgroup_count=(65535, 65535, 65535)))
TOKENS, COLUMNS = 6, 64
EXPERTS = ["ffn_gate_exps + ffn_gate_shexp", "ffn_down_exps + ffn_down_shexp"]


def buffer(name: str, nbytes: int = 4 * TOKENS * COLUMNS) -> Buffer:
    return Buffer(DEVICE, nbytes, name)


@pytest.fixture
def program() -> Program:
    return Program(DEVICE, "chunk", buffer("workspace", 4 * quantized_words(TOKENS * COLUMNS)))


def read(program: Program, x: View, columns: int = COLUMNS) -> View:
    return quantized(program, x, columns, 1, TOKENS, buffer("params"), "blk.0.ffn_up inputs")


def write(program: Program, to: Buffer) -> None:
    push = {"columns": 0, "vectors": 0, "x_offset": 0, "x_batch": 0, "x_token": 0}
    other = replace(kernels.QUANTIZE_INPUTS, file="another.comp")
    program.launch(other, {"x": buffer("y"), "quantized": to, "params": buffer("params")}, (1, 1, 1), push=push)


def test_products_of_one_input_share_what_is_quantised(program: Program) -> None:
    x = View(buffer("x"), token=COLUMNS)
    assert read(program, x) == read(program, x) == View(program.workspace, token=COLUMNS)
    write(program, buffer("z"))
    read(program, x)
    assert [launch.kernel.file for launch in program.launches] == ["quantize_inputs.comp", "another.comp"]


def test_what_changed_is_quantised_again(program: Program) -> None:
    """The input written, other parts of it, or another input in between: each is a launch."""
    x = View(buffer("x"), token=COLUMNS)
    read(program, x)
    write(program, x.buffer)
    read(program, x)
    read(program, replace(x, offset=COLUMNS))
    read(program, View(buffer("other"), token=COLUMNS))
    read(program, x)
    made = [launch.kernel is kernels.QUANTIZE_INPUTS for launch in program.launches]
    assert made == [True, False, True, True, True, True]
    assert program.barriers() == [False, True, True, True, True, True]  # one workspace for all of them


@pytest.mark.parametrize("has", [True, False])
def test_a_workspace_that_is_too_small_is_refused(has: bool) -> None:
    small = Program(DEVICE, "chunk", buffer("workspace", 96) if has else None)
    with pytest.raises(ValueError) as caught:
        read(small, View(buffer("x"), token=COLUMNS))
    assert str(caught.value) == (
        f"program chunk has a workspace of {96 if has else 0} bytes; expected 576 for blk.0.ffn_up inputs"
    )


def test_only_devices_and_types_that_can_are_offered_it() -> None:
    for kind in SUPPORTED_TYPES:
        found = candidates(kind, 2, CAPABLE)
        assert ("matmul_dot.comp" in found) == (kind in SMALL_INTEGERS)
        assert "matmul_dot.comp" not in candidates(kind, 2, INFO) + candidates(kind, 1, CAPABLE)
    entry = usual(Q.Q4_K, 2, 64, kernel="matmul_dot.comp")
    assert unfit(entry, Q.Q4_K, 2, CAPABLE) == ""
    assert unfit(entry, Q.Q4_K, 2, INFO) == (
        "has the kernel matmul_dot.comp, which needs shaderIntegerDotProduct, expected matmul.comp"
    )
    assert unfit(entry, Q.Q4_K, 2, CAPABLE, "routed") == ""


def launches(tuning: Tuning | None) -> list[Launch]:
    two = replace(GLM, n_layer=2, n_dense=1, n_nextn=0)
    types = mix_types(two, "q4_k_m")
    return planned_launches(two, types, PATHS["mla"], DEVICE.info, n_ctx=512, chunk=32, tuning=tuning)["chunk"]


def test_a_forward_pass_quantises_what_its_products_share_once() -> None:
    """Gate and up take one and the same, of routed experts and of shared ones; heads of keys are of Q5_0."""
    kinds, roles = (Q.Q4_K, Q.Q6_K), ("", "routed")
    tuning = Tuning({purpose(k, 2, role): usual(k, 2, 64, role, "matmul_dot.comp") for k in kinds for role in roles})
    found, plain = launches(tuning), launches(None)
    made = [launch.label for launch in found if launch.kernel is kernels.QUANTIZE_INPUTS]
    attention = ["attn_q_a + attn_kv_a_mqa", "attn_q_b", "attn_v_b", "attn_output"]
    assert made == [
        f"blk.{layer}.{name} inputs"
        for layer, after in enumerate((["ffn_gate", "ffn_down"], EXPERTS))
        for name in [*attention, *after]
    ]
    assert len(found) == len(plain) + len(made)
    assert not any(launch.kernel is kernels.QUANTIZE_INPUTS for launch in plain)
    products = [launch for launch in found if launch.kernel.file == "matmul_dot.comp"]
    assert {launch.buffers["x"].name for launch in products} == {"scratch.workspace"}
    assert {launch.label for launch in products} > {"blk.0.ffn_up"}


def test_a_session_has_a_workspace_only_where_its_products_take_one() -> None:
    assert "scratch.workspace" not in {b.name for launch in launches(None) for b in launch.buffers.values()}


@given(st.integers(0, 2**32), st.sampled_from([-QUANT_ERROR, 0.0, QUANT_ERROR]))
def test_drawn_inputs_leave_a_device_no_choice_of_a_step(seed: int, off: float) -> None:
    """However it rounds 127 / magnitude and the product with it, all that the oracle allows included."""
    inputs = EightBits()
    x = inputs.drawn(np.random.default_rng(seed), np.zeros((3, 50 * UNIT), np.float32)).astype(np.float64)
    blocks, seen = x.reshape(-1, UNIT), inputs.seen(x).reshape(-1, UNIT)
    live = np.abs(blocks).max(axis=1) > 0
    assert not seen[~live].any()
    d = np.abs(blocks[live]).max(axis=1, keepdims=True) / 127
    np.testing.assert_allclose(seen[live], d * np.rint(blocks[live] / d + off), rtol=1e-15)
