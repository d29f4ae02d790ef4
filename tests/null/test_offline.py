"""RADV's compiler without an AMD GPU: real statistics, its errors by full text, and a crash that ends no caller."""

import os
import signal
from collections.abc import Iterator

import pytest

from model import kernels
from model.tensors import SUPPORTED_TYPES
from vkbackend.errors import DeviceError, InputError
from vkbackend.isa import find_loops
from vkbackend.offline import OfflineCompiler, radv_icd

Q4_K = next(kind for kind in SUPPORTED_TYPES if kind.name == "Q4_K")
MATVEC = kernels.for_format(kernels.MATVEC, Q4_K)


@pytest.fixture(scope="module")
def phoenix() -> Iterator[OfflineCompiler]:
    try:
        radv_icd()
    except DeviceError as reason:
        pytest.skip(str(reason))
    with OfflineCompiler("phoenix") as compiler:
        yield compiler


@pytest.mark.parametrize("subgroup", [32, 64])
def test_statistics_of_a_kernel(phoenix: OfflineCompiler, subgroup: int) -> None:
    found = phoenix.compile_kernel(MATVEC, {"ROWS": 4}, subgroup=subgroup, disassemble=True)
    assert found.subgroup == subgroup
    assert found.statistics["Spilled VGPRs"] == 0
    assert 16 <= found.statistics["VGPRs"] <= 256
    (loop,) = find_loops(found.assembly)
    assert 0 < loop.own.valu < found.statistics["VALU"]
    assert loop.own.vmem_loads > 0


def test_specialization_changes_the_code(phoenix: OfflineCompiler) -> None:
    """More rows are more instructions; without disassembly there is none, and the counts are the same."""
    one, four = (phoenix.compile_kernel(MATVEC, {"ROWS": rows}, subgroup=64) for rows in (1, 4))
    assert one.assembly == ""
    assert four.statistics["VALU"] > 2 * one.statistics["VALU"]
    again = phoenix.compile_kernel(MATVEC, {"ROWS": 4}, subgroup=64, disassemble=True)
    assert again.statistics["VALU"] == four.statistics["VALU"]


def test_a_chip_that_radv_does_not_know(phoenix: OfflineCompiler) -> None:
    with pytest.raises(InputError) as caught:
        OfflineCompiler("radeon9")
    assert str(caught.value) == (
        "chip 'radeon9': RADV opens no null device for it (its start: RADV's compiler for radeon9 ended with "
        "status -6: radv: Unknown family: radeon9); expected a name that RADV knows, such as phoenix, rembrandt, "
        "gfx1151 or navi31; choose one"
    )


def test_a_crash_is_an_error_and_the_next_module_compiles(phoenix: OfflineCompiler) -> None:
    assert phoenix._child.process is not None
    os.kill(phoenix._child.process.pid, signal.SIGSEGV)
    with pytest.raises(DeviceError) as caught:
        phoenix.compile_kernel(MATVEC, {"ROWS": 4}, subgroup=64)
    assert str(caught.value).startswith("matvec.comp: RADV's compiler for phoenix ended with status -11: ")
    assert phoenix.compile_kernel(MATVEC, {"ROWS": 4}, subgroup=64).statistics["VALU"] > 0


def test_without_radv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vkbackend.offline._FOLDERS", ("/nowhere",))
    monkeypatch.delenv("XDG_DATA_DIRS", raising=False)
    with pytest.raises(DeviceError) as caught:
        OfflineCompiler("phoenix")
    assert str(caught.value) == (
        "no RADV driver manifest (radeon_icd*.json) on this machine; expected Mesa's AMD driver, which needs no AMD "
        "GPU to compile: install mesa-vulkan-drivers"
    )
