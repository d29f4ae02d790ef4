"""What a compiled module says of itself, against what every kernel declares and against made-up modules."""

import struct
import subprocess
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from model import kernels
from vkbackend.errors import InputError
from vkbackend.kernel import Kernel
from vkbackend.reflection import Binding, reflect

EVERY = {name: kernel for name, kernel in vars(kernels).items() if isinstance(kernel, Kernel)}
FORMATTED = (*kernels.TOKEN_PRODUCTS, *kernels.CHUNK_PRODUCTS, kernels.EMBED.file)


@pytest.mark.parametrize("name", EVERY)
def test_modules_agree_with_their_declarations(name: str) -> None:
    kernel = EVERY[name]
    if kernel.file in FORMATTED:
        kernel = kernels.for_format(kernel, GGMLQuantizationType.Q4_K)
    if kernel.file == kernels.ATTENTION_PACKED.file:
        kernel = kernels.for_cache(kernel, "q8_0")
    if name in ("MATVEC_CACHE", "MATVEC_ROWS_CACHE"):
        kernel = kernel.variant(ROWS_FROM_CACHE="1")
    found = reflect(kernel.spirv())
    assert [binding.number for binding in found.bindings] == list(range(len(kernel.bindings)))
    assert [binding.access for binding in found.bindings] == [access for _, access in kernel.bindings]
    assert {binding.descriptor for binding in found.bindings} == {"storage buffer"}
    assert found.push == kernel.push
    assert found.push_bytes == 4 * len(kernel.push)
    assert [found.spec[i] for i in sorted(found.spec) if i > 0] == list(kernel.spec)
    assert found.local_size_ids == (0, None, None)


def compiled(tmp_path: Path, source: str) -> bytes:
    """SPIR-V of a shader's text."""
    file, out = tmp_path / "a.comp", tmp_path / "a.spv"
    file.write_text(source)
    subprocess.run(
        ["glslangValidator", "-V", "--target-env", "vulkan1.1", "--quiet", "-o", str(out), str(file)], check=True
    )
    return out.read_bytes()


def test_anyones_module(tmp_path: Path) -> None:
    found = reflect(
        compiled(
            tmp_path,
            """#version 450
            layout(local_size_x = 16, local_size_y_id = 5, local_size_z = 2) in;
            layout(local_size_y = 4) in;
            layout(constant_id = 9) const float GAIN = 1.0;
            layout(set = 0, binding = 3) uniform Block { mat4 m; vec3 v; } block;
            layout(set = 1, binding = 0) readonly buffer In { float data[]; } source[2];
            layout(set = 0, binding = 7) coherent buffer Out { writeonly float a; readonly float b[]; } result;
            struct Pair { vec2 p; uint n[3]; };
            layout(push_constant) uniform Push { layout(offset = 16) Pair pair; layout(offset = 4) uint first; };
            void main() { result.a = GAIN * source[0].data[first] * block.m[1][2] * block.v.z + pair.p.x; }
            """,
        )
    )
    assert found.entry == "main"
    assert found.bindings == (
        Binding(0, 3, "Block", "uniform buffer", "rw"),
        Binding(0, 7, "Out", "storage buffer", "rw"),
        Binding(1, 0, "In", "storage buffer", "r"),
    )
    assert (found.push, found.push_bytes) == (("first", "pair"), 16 + 8 + 12)
    assert found.spec[9] == "GAIN"
    assert found.local_size == (16, 4, 2)
    assert found.local_size_ids == (None, 5, None)
    assert 1 in found.capabilities  # Shader


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (b"GGUF" + bytes(16), "m: starts with b'GGUF', expected SPIR-V in little-endian words; compile it again"),
        (b"", "m: starts with b'', expected SPIR-V in little-endian words; compile it again"),
        (
            struct.pack("<6I", 0x07230203, 0x10000, 0, 1, 0, 4 << 16 | 15),
            "m: cut off in the instruction at word 5, expected 4 words; copy it again",
        ),
        (
            struct.pack("<6I", 0x07230203, 0x10000, 0, 1, 0, 0),
            "m: cut off in the instruction at word 5, expected 0 words; copy it again",
        ),
        (
            struct.pack("<7I", 0x07230203, 0x10000, 0, 1, 0, 2 << 16 | 17, 1),
            "m: no compute entry point, expected one; compile a .comp file",
        ),
    ],
)
def test_what_is_no_module(module: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        reflect(module, "m")
    assert str(caught.value) == message
