"""`latentvk shaders check` without a device: compiled, validated, compared with the declaration; the child process."""

import importlib
import json
import os
import pickle
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from imaginary import CAPABLE, INFO

from harness import shaders_check
from harness.cli import main
from harness.oracles import ORACLES
from harness.oracles.case import Draft, Expected, Target
from harness.oracles.client import Job, OracleRunner, Verdict
from harness.shader_declaration import differences
from harness.shader_variants import find_variants
from model import kernels
from model.presets import get_preset
from vkbackend import shader
from vkbackend.child import Child, ChildEndedError
from vkbackend.errors import DeviceError, DeviceLostError
from vkbackend.kernel import Kernel
from vkbackend.physical import list_devices
from vkbackend.reflection import reflect
from vkbackend.spirv_val import validate

GLM = get_preset("glm-4.7-flash")


@pytest.fixture(autouse=True)
def tools() -> None:
    for tool, package in (("glslangValidator", "glslang-tools"), ("spirv-val", "spirv-tools")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (package {package})")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shaders that may be broken, compiled into a cache of its own."""
    shutil.copytree(shader.SHADER_ROOT, tmp_path / "shaders")
    monkeypatch.setattr(shader, "SHADER_ROOT", tmp_path / "shaders")
    monkeypatch.setattr(shader, "INCLUDE_ROOT", tmp_path / "shaders" / "include")
    monkeypatch.setenv("LATENTVK_CACHE", str(tmp_path / "cache"))
    shader.forget_sources()
    return tmp_path / "shaders"


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(args: object) -> None:
        raise DeviceError("no Vulkan device here; expected one: install mesa-vulkan-drivers")

    monkeypatch.setattr(shaders_check, "_open_runner", refuse)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    shader.forget_sources()


def declared(kernel: Kernel) -> list[str]:
    """What is said of ``kernel`` against the module of its file."""
    return differences(kernel, reflect(shader.compile_shader(kernel.file, kernel.macros)))


@pytest.mark.parametrize(
    "kernel", [kernels.MOE_SUM, kernels.ROUTE, kernels.for_shard(kernels.LATENT_CACHE_V, ("first", "last"))]
)
def test_declarations_agree(kernel: Kernel) -> None:
    assert declared(kernel) == []


def test_every_difference_of_a_declaration_is_named() -> None:
    kernel = kernels.MOE_SUM
    assert declared(replace(kernel, bindings=kernel.bindings[:-1])) == [
        "the module has binding 4 of set 0 (Params), which is not declared"
    ]
    assert declared(replace(kernel, bindings=(*kernel.bindings, ("more", "r")))) == [
        "binding 5 (more) is declared and the module has none"
    ]
    assert declared(replace(kernel, bindings=(("routed", "rw"), *kernel.bindings[1:]))) == [
        "binding 0 (routed) is declared rw, the module's Routed is r"
    ]
    assert declared(replace(kernel, push=("used", "width", "has_shared"))) == [
        "push constants are declared used, width, has_shared and the module has width, used, has_shared"
    ]
    assert declared(replace(kernels.ROUTE, spec=("GROUP", "PER_LANE"))) == [
        "specialization constants are declared 1 GROUP, 2 PER_LANE and the module has 1 PER_LANE, 2 GROUP, "
        "3 GROUPS_PER_LANE"
    ]


def test_a_fixed_workgroup_and_a_capability_are_differences(folder: Path) -> None:
    edit(folder / "silu_mul.comp", "layout(local_size_x_id = 0) in;", "layout(local_size_x = 32, local_size_y = 2) in;")
    edit(folder / "moe_sum.comp", "void main() {", "void main() {\n    if (double(width) < 0.0lf) return;")
    assert declared(kernels.SILU_MUL) == [
        "the workgroup is (32, 2, 1) by the constants (None, None, None), expected specialization constant 0 by 1 by 1"
    ]
    assert declared(kernels.MOE_SUM) == [
        "the module needs capability 10, expected none beyond Shader, SampledBuffer, GroupNonUniform, "
        "GroupNonUniformVote, GroupNonUniformArithmetic, GroupNonUniformBallot, GroupNonUniformShuffle, "
        "GroupNonUniformQuad"
    ]


def test_an_invalid_module_is_found() -> None:
    module = shader.compile_shader("silu_mul.comp", {})
    assert validate(module) == ""
    words = np.frombuffer(module, "<u4").copy()
    words[3] = 1  # the bound of all ids
    assert "bound" in validate(words.tobytes()).lower()


def test_without_spirv_val(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "spirv-val" else which(name))
    assert main(["shaders", "check", "moe_sum"]) == 3
    assert capsys.readouterr().err == (
        "latentvk: error: spirv-val is not on the PATH; expected it: install the package spirv-tools\n"
    )


def test_without_a_device_all_but_the_oracles_runs(
    folder: Path, no_device: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shaders", "check", "moe_sum", "matvec q8_0 rows=2"]) == 3
    captured = capsys.readouterr()
    assert captured.out == (
        "ok    matvec q8_0 rows=2: compiled, valid, as declared, oracle not run\n"
        "ok    moe_sum: compiled, valid, as declared, oracle not run\n"
        "all 2 variants are ok, 0 cases run\n"
    )
    assert captured.err == (
        "latentvk: error: the oracles did not run: no Vulkan device here; expected one: install mesa-vulkan-drivers\n"
    )


def test_a_compile_error_is_shown_in_its_own_file(
    folder: Path, no_device: None, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "include" / "format_q8_0.glsl", "r.db = r.da;", "r.db = r.absent;")
    assert main(["shaders", "check", "embed q8_0", "embed q4_0"]) == 1
    out = capsys.readouterr().out
    assert out.startswith(
        "ok    embed q4_0: compiled, valid, as declared, oracle not run\n"
        "FAIL  embed q8_0: does not compile, oracle not run\n"
        "      include/format_q8_0.glsl:15: ERROR: 'absent' : no such field in structure 'r'\n"
        "          13 |         r.q[4u + i] = signed_fields(high[i], 0, 8);\n"
        "          14 |     }\n"
        "      >   15 |     r.db = r.absent; r.mb = 0.0;\n"
        "          16 |     return r;\n"
        "          17 | }\n"
    )
    assert out.endswith("\n1 of 2 variants fail, 0 cases run\n")


def test_a_warning_and_a_binding_less_fail(
    folder: Path, no_device: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(
        folder / "silu_mul.comp",
        "layout(local_size_x_id",
        "#extension GL_KHR_unheard_of : enable\nlayout(local_size_x_id",
    )
    edit(folder / "group_by_expert.comp", "layout(binding = 1) writeonly", "layout(binding = 5) writeonly")
    out = tmp_path / "check.json"
    assert main(["shaders", "check", "silu_mul", "group_by_expert", "--json", str(out)]) == 1
    text = capsys.readouterr().out
    assert "silu_mul.comp:6: WARNING: '#extension' : extension not supported: GL_KHR_unheard_of\n" in text
    assert "2 of 2 variants fail, 0 cases run\n" in text
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["group_by_expert"]["module"]["declared"] == [
        "binding 1 (counts) is declared and the module has none",
        "the module has binding 5 of set 0 (Counts), which is not declared",
    ]
    assert not rows["silu_mul"]["ok"] and rows["silu_mul"]["cases"] is None


@pytest.mark.parametrize("lanes", [8, 32, 64])
def test_every_variant_has_an_oracle_that_launches_it(lanes: int) -> None:
    """Laid out and not run, so that also devices that are not here are served."""
    info = replace(CAPABLE, max_workgroup_count=(65535, 65535, 65535), subgroup_size=lanes)
    variants = find_variants(GLM, "q4_k_m", info, everything=True)
    assert {v.launch.kernel.file for v in variants} == set(ORACLES)
    for variant in variants:
        kernel, spec = variant.launch.kernel, variant.launch.spec
        oracle = ORACLES[kernel.file](Target(kernel, spec, info), np.random.default_rng(lanes))
        cases = list(oracle) if kernel.file not in (*kernels.CHUNK_PRODUCTS, "matvec.comp") else [next(oracle)]
        assert all(any(x.kernel == kernel and x.spec == spec for x in case.launches) for case in cases), variant.name


def test_an_oracle_must_speak_of_every_buffer_that_is_written() -> None:
    draft = Draft(INFO, "nothing of y")
    x, y = draft.canary(1, 4), draft.canary(1, 4)
    buffers = {"x": x, "weight": draft.canary(4), "y": y, "params": draft.params(0, 1)}
    push = {"width": 4, "x_token": 4, "y_token": 4, "eps": 1e-5}
    draft.launch(kernels.RMS_NORM, buffers, (1, 1, 1), spec={"HELD": 1}, push=push)
    with pytest.raises(ValueError, match=r"nothing is expected of y, which rms_norm\.comp writes"):
        draft.case({x: Expected(np.zeros(4))})


def test_a_child_that_crashes_or_hangs_is_an_error_and_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(
        "import os, sys, time\n"
        "from vkbackend.child import answer, answers, requests\n"
        "pipe = answers()\n"
        "print('of no matter', flush=True)\n"
        "answer(pipe, 'ready')\n"
        "for request in requests():\n"
        "    if request == 'crash':\n"
        "        print('last words', file=sys.stderr, flush=True)\n"
        "        os.abort()\n"
        "    if request == 'hang':\n"
        "        time.sleep(60)\n"
        "    answer(pipe, request * 2)\n"
    )
    root = str(Path(importlib.import_module("vkbackend").__path__[0]).parent)
    child = Child("echo", os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"}, 20.0)
    try:
        assert child.start() == "ready"
        assert child.ask(21) == 42
        with pytest.raises(ChildEndedError) as caught:
            child.ask("crash")
        assert str(caught.value) == f"ended with status {-signal.SIGABRT}: last words"
        assert child.process is None and child.start() == "ready"
        child.timeout_s = 0.5
        with pytest.raises(ChildEndedError) as caught:
            child.ask("hang")
        assert str(caught.value) == "hung for 0.5 s: of no matter"
        child.timeout_s = 20.0
        child.start()
        ended = threading.Timer(0.3, child.kill)  # as who waits for no answer any more does
        ended.start()
        with pytest.raises(ChildEndedError) as caught:
            child.ask("hang")
        assert caught.value.how == f"ended with status {-signal.SIGKILL}"
        assert child.ask("a") == "aa"
        child.kill()
        child.process.wait()
        assert child.ask("b") == "bb"  # nothing was running: the next request finds another process
    finally:
        child.close()


class _Scripted:
    """In place of a child: starts and answers as told, and counts how often it was started and ended."""

    def __init__(self, starts: list[object], answers: list[object]) -> None:
        self.starts, self.answers = starts, answers
        self.process: object | None = None
        self.log: list[str] = []

    def start(self) -> object:
        self.log.append("start")
        return self._next(self.starts)

    def ask(self, request: object) -> object:
        return self._next(self.answers)

    def end(self) -> None:
        self.log.append("end")
        self.process = None

    def _next(self, script: list[object]) -> object:
        found = script.pop(0)
        if isinstance(found, ChildEndedError):
            self.process = None
            raise found
        self.process = self
        return found


def scripted(starts: list[object], answers: list[object]) -> tuple[OracleRunner, _Scripted]:
    runner, child = OracleRunner.__new__(OracleRunner), _Scripted(starts, answers)
    runner._child = child  # type: ignore[assignment]
    return runner, child


JOB = Job(kernels.MOE_SUM, {}, 0)


def test_oracles_that_do_not_start_again_fail_the_kernel_and_end_no_caller() -> None:
    broken = ChildEndedError("ended with status 1", "SyntaxError: invalid syntax")
    runner, child = scripted([broken, INFO], [Verdict(3, 0.1, ())])
    assert runner.judge(JOB).failures == (
        "the oracles in a new process: it ended with status 1: SyntaxError: invalid syntax; expected it to open the "
        "device: correct what it names",
    )
    assert runner.judge(JOB) == Verdict(3, 0.1, ())  # corrected
    assert child.log == ["start", "start"]


def test_a_lost_device_fails_its_kernel_alone() -> None:
    runner, child = scripted([INFO, INFO], [DeviceLostError("the device was lost"), Verdict(3, 0.1, ())])
    assert runner.judge(JOB).failures == ("the device was lost",)
    assert runner.judge(JOB) == Verdict(3, 0.1, ())
    assert child.log == ["start", "end", "start"]


def test_a_compile_error_crosses_a_pipe() -> None:
    complaint = shader.Diagnostic("ERROR", Path("a.comp"), 3, "'x' : undeclared")
    error = shader.ShaderError("a.comp", {"M": "1"}, (complaint,), "said")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is shader.ShaderError
    assert (str(again), again.diagnostics) == (str(error), (complaint,))


def test_a_device_that_cannot_be_opened_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VK_DRIVER_FILES", "/nowhere.json")
    monkeypatch.setenv("VK_ICD_FILENAMES", "/nowhere.json")
    with pytest.raises(DeviceError) as caught:
        OracleRunner()
    with pytest.raises(DeviceError) as directly:
        list_devices()
    assert str(caught.value) == str(directly.value)
