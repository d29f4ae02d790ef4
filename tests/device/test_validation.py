"""Validation sees what it is there for: a barrier less, a feature less and an access out of bounds are each noticed."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from child import in_child

from vkbackend.buffer import Buffer
from vkbackend.companion import messages
from vkbackend.companion.testing import leave_out
from vkbackend.device import Device, open_device
from vkbackend.kernel import Kernel
from vkbackend.program import Program

HEAD = """#version 450
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
layout(local_size_x_id = 0) in;
layout(binding = 0) readonly buffer Source { TYPE source[]; };
layout(binding = 1) writeonly buffer Target { TYPE target[]; };
layout(push_constant) uniform Push { uint offset; };
"""
ADD_ONE = "void main() { target[gl_GlobalInvocationID.x] = source[gl_GlobalInvocationID.x + offset] + TYPE(1); }\n"
GPU_SETTINGS = str(Path(__file__).parents[2] / "tools/gpu_validation.txt")


def add_one(folder: str, kind: str) -> Kernel:
    """target = source + 1, in GLSL's type ``kind``."""
    file = Path(folder) / "add_one.comp"
    file.write_text(HEAD + ADD_ONE)
    return Kernel(str(file), (("source", "r"), ("target", "w")), push=("offset",), macros={"TYPE": kind})


def chain(device: Device, kernel: Kernel, length: int, offset: int = 0) -> Program:
    """A program whose every launch reads what the one before wrote."""
    program = Program(device, "chain")
    buffers = [Buffer(device, 256, f"link {i}", initial=np.zeros(64, np.uint32)) for i in range(length + 1)]
    for source, target in pairwise(buffers):
        program.launch(kernel, {"source": source, "target": target}, (1, 1, 1), push={"offset": offset})
    return program


def without_a_barrier(folder: str) -> None:
    """The child's body: complete, nothing is reported; without the third launch's barrier, that launch is."""
    device = open_device()
    kernel = add_one(folder, "float")
    chain(device, kernel, 4).run()
    assert messages() == []
    program = chain(device, kernel, 4)
    derived = program.barriers()
    assert derived == [False, True, True, True]
    derived[2] = False
    program.barriers = lambda: derived  # type: ignore[method-assign]
    program.run()
    found = messages()
    assert len(found) == 1, found
    assert "SYNC-HAZARD-READ-AFTER-WRITE" in found[0], found[0]
    device.close()


def without_a_feature(folder: str) -> None:
    """The child's body: with all features nothing is reported, with 16-bit floats left out each use of them is."""
    kernel = add_one(folder, "float16_t")
    device = open_device()
    chain(device, kernel, 1).run()
    assert messages() == []
    device.close()
    with leave_out("shaderFloat16"):
        device = open_device()
    chain(device, kernel, 1).run()
    found = messages()
    assert found, "nothing was reported"
    assert all("VUID-VkShaderModuleCreateInfo-pCode-01091" in m and "(Float16)" in m for m in found), found
    device.close()


def out_of_bounds(folder: str) -> None:
    """The child's body: the last element that is there may be read, the next one not."""
    device = open_device()
    kernel, lanes = add_one(folder, "float"), device.subgroup_size
    chain(device, kernel, 1, offset=64 - lanes).run()
    assert messages() == []
    chain(device, kernel, 1, offset=65 - lanes).run()
    found = messages()
    assert len(found) == 1, found
    assert "access out of bounds. Descriptor size is 256 and highest byte accessed was 259" in found[0], found[0]
    device.close()


def needs(device: Device, *features: str) -> None:
    missing = sorted(set(features) - device.companion.features)
    if missing:
        pytest.skip(f"{device.info.name} lacks {', '.join(missing)}")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Where a test's shader lies."""
    return str(tmp_path)


def test_a_removed_barrier_is_noticed(device: Device, folder: str) -> None:
    in_child(without_a_barrier, folder, LATENTVK_VALIDATE="core,sync,queue-sync")


def test_a_removed_feature_is_noticed(device: Device, folder: str) -> None:
    needs(device, "shaderFloat16", "storageBuffer16BitAccess")
    in_child(without_a_feature, folder, LATENTVK_VALIDATE="core")


def test_an_access_out_of_bounds_is_noticed(device: Device, folder: str) -> None:
    in_child(out_of_bounds, folder, LATENTVK_VALIDATE="core,gpu", VK_LAYER_SETTINGS_PATH=GPU_SETTINGS)
