"""What a model would launch, planned for devices that do not exist."""

from dataclasses import replace

import pytest
from gguf import GGMLQuantizationType
from imaginary import INFO

from model.launches import planned_launches
from model.layout import PATHS
from model.mix import mix_types
from model.presets import get_preset
from vkbackend.buffer import Buffer
from vkbackend.dry import DryDevice
from vkbackend.program import Launch

GLM = replace(get_preset("glm-4.7-flash"), n_layer=2, n_nextn=0)
WIDE = replace(INFO, max_workgroup_count=(65535, 65535, 65535), subgroup_size=64, subgroup_sizes=(64, 64))


def tensors_of(launch: Launch) -> list[str]:
    """'blk.0.ffn_gate + ffn_up' is a launch over two tensors of a layer."""
    first, *others = launch.label.split(" + ")
    return [first, *(f"{first.rsplit('.', 1)[0]}.{name}" for name in others)]


@pytest.mark.parametrize("path", PATHS)
def test_the_true_shapes_of_a_large_model(path: str) -> None:
    """Every weight of both layers is launched by its own name and type, for a token and for a chunk."""
    types = mix_types(GLM, "q4_k_m")
    launches = planned_launches(GLM, types, PATHS[path], WIDE, n_ctx=4096, chunk=128)
    for name in ("decode", "chunk"):
        labels = {tensor: launch for launch in launches[name] for tensor in tensors_of(launch)}
        for tensor, kind in types.items():
            if tensor.startswith("blk.") and "norm" not in tensor and "bias" not in tensor:
                if path == "mha" and "attn_k_b" in tensor:
                    continue  # its transposed copy is
                assert f"FORMAT_{kind.name}" in labels[tensor.removesuffix(".weight")].kernel.macros
        rows = labels["blk.0.ffn_up"].push["rows"]
        assert rows == GLM.n_ff
    assert launches["head_all"][-1].label == "output"


# One token's launches in a dense layer and in a mixture one, by kernel and weights.
DENSE = [
    "matvec attn_q_a + attn_kv_a_mqa",  # of the norm of x
    "matvec attn_q_b",  # of the norm of the compressed query
    "matvec attn_k_b",  # with the latent row and the rotated queries
    "attention_latent",
    "attention_combine",
    "matvec attn_v_b",
    "matvec attn_output",  # added to x
    "matvec ffn_gate + ffn_up",  # of the norm of x
    "matvec ffn_down",  # added to x
]
MIXTURE = [
    *DENSE[:7],
    "matvec ffn_gate_inp",  # of the norm of x, and the choice of experts
    "matvec ffn_gate_exps + ffn_gate_shexp + ffn_up_exps + ffn_up_shexp",
    "matvec ffn_down_exps + ffn_down_shexp",  # summed over the slots, added to x
]


def said(launch: Launch) -> str:
    kernel = launch.kernel.file.removesuffix(".comp")
    return f"matvec {launch.label.split('.', 2)[2]}" if launch.label.startswith("blk.") else kernel


@pytest.mark.parametrize("lanes", [8, 64])
def test_one_tokens_launches(lanes: int) -> None:
    info = replace(WIDE, subgroup_size=lanes, subgroup_sizes=(lanes, lanes))
    launches = planned_launches(GLM, mix_types(GLM, "q4_k_m"), PATHS["mla"], info, n_ctx=4096, chunk=128)
    names = [said(launch) for launch in launches["decode"]]
    assert names == ["embed", *DENSE, *MIXTURE, "rms_norm", "matvec_rows" if lanes == 8 else "matvec", *["argmax"] * 2]


def test_one_tokens_launches_of_tensors_in_other_types() -> None:
    """What no launch can take together is launched by itself, and a norm before it."""
    types = mix_types(GLM, "q4_k_m", [("ffn_up|ffn_down_shexp|attn_kv_a", GGMLQuantizationType.Q8_0)])
    launches = planned_launches(GLM, types, PATHS["mla"], WIDE, n_ctx=4096, chunk=128)
    names = [said(launch) for launch in launches["decode"]]
    joined = {name for name in names if " + " in name}
    assert joined == set() and names.count("rms_norm") == 3 and names.count("silu_mul") == 3
    assert len(names) == 1 + (len(DENSE) + 4) + (len(MIXTURE) + 8) + 4


def test_tensors_larger_than_a_binding_are_split_in_the_plan() -> None:
    small = replace(WIDE, max_storage_buffer_range=2**27)
    types = mix_types(GLM, "q4_k_m")
    counts = [
        sum(launch.label.startswith("blk.1.ffn_down_exps") for launch in launches["decode"])
        for launches in (planned_launches(GLM, types, PATHS["mla"], info, n_ctx=64) for info in (WIDE, small))
    ]
    assert counts == [1, 2]


def test_a_dry_device_has_sizes_and_no_memory() -> None:
    device = DryDevice(INFO)
    buffer = Buffer(device, 2**28, "large")
    buffer.upload(buffer.download("u1", 100))
    assert buffer.nbytes == 2**28
    assert not buffer.download("f4", 7).any()
    buffer.free()
    device.close()
