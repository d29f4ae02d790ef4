"""What a model would launch, planned for devices that do not exist."""

from dataclasses import replace

import pytest
from imaginary import INFO

from model.launches import planned_launches
from model.layout import PATHS
from model.mix import mix_types
from model.presets import get_preset
from vkbackend.buffer import Buffer
from vkbackend.dry import DryDevice

GLM = replace(get_preset("glm-4.7-flash"), n_layer=2, n_nextn=0)
WIDE = replace(INFO, max_workgroup_count=(65535, 65535, 65535), subgroup_size=64, subgroup_sizes=(64, 64))


@pytest.mark.parametrize("path", PATHS)
def test_the_true_shapes_of_a_large_model(path: str) -> None:
    """Every weight of both layers is launched by its own name and type, for a token and for a chunk."""
    types = mix_types(GLM, "q4_k_m")
    launches = planned_launches(GLM, types, PATHS[path], WIDE, n_ctx=4096, chunk=128)
    for name in ("decode", "chunk"):
        labels = {launch.label: launch for launch in launches[name]}
        for tensor, kind in types.items():
            if tensor.startswith("blk.") and "norm" not in tensor and "bias" not in tensor:
                if path == "mha" and "attn_k_b" in tensor:
                    continue  # its transposed copy is
                assert f"FORMAT_{kind.name}" in labels[tensor.removesuffix(".weight")].kernel.macros
        rows = labels["blk.0.ffn_gate"].push["rows"]
        assert rows == GLM.n_ff
    assert launches["head_all"][-1].label == "output"


def test_tensors_larger_than_a_binding_are_split_in_the_plan() -> None:
    small = replace(WIDE, max_storage_buffer_range=2**27)
    types = mix_types(GLM, "q4_k_m")
    counts = [
        sum(launch.label == "blk.1.ffn_down_exps" for launch in launches["decode"])
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
