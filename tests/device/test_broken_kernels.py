"""`latentvk shaders check` on a device: kernels broken on purpose are found, by the element; a crash ends no report."""

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest

from harness import shaders_check
from harness.cli import main
from harness.oracles.case import Case, Draft, Expected
from harness.oracles.client import Job, OracleRunner, Verdict
from harness.oracles.run import run_case
from harness.oracles.worker import judge
from model import kernels
from vkbackend import shader
from vkbackend.device import Device


class _Here:
    """In place of the runner: the same judgement in this process, whose shaders' folder the test has changed."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.info = device.info

    def judge(self, job: Job) -> Verdict:
        return judge(self.device, job)

    def __enter__(self) -> "_Here":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The device is the session's."""


@pytest.fixture
def folder(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the shaders that may be broken; `shaders check` checks it."""
    if shutil.which("spirv-val") is None:
        pytest.skip("spirv-val is not installed (package spirv-tools)")
    shutil.copytree(shader.SHADER_ROOT, tmp_path / "shaders")
    monkeypatch.setattr(shader, "SHADER_ROOT", tmp_path / "shaders")
    monkeypatch.setattr(shader, "INCLUDE_ROOT", tmp_path / "shaders" / "include")
    monkeypatch.setattr(shaders_check, "_open_runner", lambda args: _Here(device))
    shader.forget_sources()
    yield tmp_path / "shaders"
    shader.forget_sources()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    shader.forget_sources()


# What is changed, in which file, and what must be said of it: the case and the first element.
BREAKS = {
    "a scale that is a little too large": (
        "include/format_q5_0.glsl",
        "r.da = packed_half(scale_base, g);",
        "r.da = 1.0001 * packed_half(scale_base, g);",
        "embed q5_0",
        "37 x ",
        "x[token 0, column 0] is ",
    ),
    "tokens that were not asked for": (
        "moe_sum.comp",
        "token >= n_tokens || i >= quads",
        "i >= quads",
        "moe_sum",
        "1 x 4 and a shared expert: ",
        "x[token 3, element 0] is ",
    ),
    "the end of a row": (
        "rms_norm.comp",
        "i < quads; i += gl_SubgroupSize)\n        y",
        "i <= quads; i += gl_SubgroupSize)\n        y",
        "rms_norm held=0",
        "1 of 1 tokens of 4: ",
        "y[token 0, element 4] is ",
    ),
    "what is behind a buffer's last element": (
        "fill_zero.comp",
        "if (at < count)",
        "if (at <= count)",
        "fill_zero each=16",
        "1 words: ",
        "target[word 8] is ",
    ),
    "the first of equals": (
        "argmax.comp",
        "value == best && which < id",
        "value == best && which > id",
        "argmax",
        "tie far apart: 1000 logits: ",
        "best[group ",
    ),
    "a logit that the bound equals": (
        "top_k_collect.comp",
        "!(value < bound)",
        "!(value <= bound)",
        "top_k_collect",
        "one: 1 of 1 logits in 128 groups, a list of 2048: ",
        "top[count] is 0, expected 1",
    ),
    "the chunk's last token": (
        "attention_combine.comp",
        "s < splits; s++) {\n            vec2 of",
        "s + 1u < splits; s++) {\n            vec2 of",
        "attention_combine",
        "1 rows of 4 in 1 parts: ",
        "out[row 0, element 0] is 0, expected ",
    ),
    "the position after a token": (
        "prompt_softmax.comp",
        "max(n_past + token + 1u, tile_first)",
        "max(n_past + token + 2u, tile_first)",
        "prompt_softmax",
        "37 tokens after 0, positions 0 to 37, scores of 3: ",
        "scores[head 0, token 0, position ",
    ),
    "the sum of a block's second half": (
        "quantize_inputs.comp",
        "d * float(other)",
        "d * float(sum)",
        "quantize_inputs",
        "1 x 32, 1 of 1 tokens: ",
        "quantized[block 0, part 34] is -",
    ),
    "a tensor that is turned over": (
        "prompt_weights.comp",
        "source[at + column]",
        "source[at + 1u]",
        "prompt_weights",
        "2 heads, 64 x 28 turned from column ",
        "halves[head 0, latent 0, column ",
    ),
    "a negative number that no half is": (
        "prompt_weights.comp",
        "uvec2 size = magnitudes(pair);",
        "uvec2 size = uvec2(max(floatBitsToInt(pair), ivec2(0)));",
        "prompt_weights",
        "2 heads, 16 x 40 from column ",
        "too_large[flag 0] is 0, expected 1",
    ),
    "the halves of a word": (
        "cache_per_head.comp",
        "(pair & 0x0000FFFFu) | bits << 16",
        "bits << 16",
        "cache_per_head",
        "1 tokens after 3, values of ",
        "v_cache[head 0 + 0, element 0, position 2] is 0, expected ",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_kernel_is_found(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file, old, new, variant, case, element = BREAKS[name]
    edit(folder / file, old, new)
    assert main(["shaders", "check", variant]) == 1
    lines = capsys.readouterr().out.splitlines()
    (first,) = (line for line in lines if line.startswith("FAIL") and line.split(":")[0] == f"FAIL  {variant}")
    assert "compiled, valid, as declared" in first
    details = [line.strip() for line in lines[lines.index(first) + 1 :]]
    found = next(line for line in details if line.startswith(case))
    assert element in found


def test_a_wrong_product_is_found_in_every_form(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A minimum that the format has not: only its variants fail, each at a product's first row."""
    edit(folder / "include" / "format_q5_0.glsl", "r.mb = 0.0;", "r.mb = 0.001 * r.da;")
    assert main(["shaders", "check", "matvec_rows q5_0 rows=1", "matvec q5_0 rows=2", "matvec q5_1 rows=2"]) == 1
    out = capsys.readouterr().out
    assert "ok    matvec q5_1 rows=2: " in out
    assert out.count("FAIL") == 2 and out.count("y[token 0, matrix 0, row 0] is ") >= 2
    assert "\n2 of 3 variants fail, " in out


def test_a_slightly_wrong_score_is_found(folder: Path, device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    """Far within what halves cost the output: a split's largest score tells it."""
    if not set(kernels.ATTENTION_PACKED.needs) <= set(device.info.features):
        pytest.skip("the device has no packed arithmetic")
    edit(folder / "attention_packed.comp", "query_step[i] = scale * by.d", "query_step[i] = 1.0001 * scale * by.d")
    assert main(["shaders", "check", "attention_packed*cache_q8_0 latent=512"]) == 1
    out = capsys.readouterr().out
    assert "maximum and sum 0] is " in out and "out[token" not in out


@pytest.mark.parametrize("old", ["if (subgroupElect()) arrivals = 0u;", "before + 1u < of"])
def test_a_wrong_count_of_workgroups_is_found(folder: Path, capsys: pytest.CaptureFixture[str], old: str) -> None:
    """One that the next launch would go on from; one that has another workgroup, or two, choose."""
    edit(folder / "include" / "last_workgroup.glsl", old, old.replace("1u", "2u") if "1u" in old else "")
    assert main(["shaders", "check", "matvec* f32*routes"]) == 1
    out = capsys.readouterr().out
    assert out.count("FAIL") == 4 and out.count("compiled, valid, as declared") == 4
    assert "arrivals[element 0] is " in out and "all 4" not in out


def test_all_is_well_and_repeats(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shaders", "check", "silu_mul", "--seed", "5"]) == 0
    first = capsys.readouterr().out
    assert main(["shaders", "check", "silu_mul", "--seed", "5"]) == 0
    assert capsys.readouterr().out == first
    assert main(["shaders", "check", "silu_mul", "--seed", "6"]) == 0
    assert capsys.readouterr().out != first


def test_a_kernel_without_an_oracle(device: Device) -> None:
    with pytest.raises(ValueError) as caught:
        judge(device, Job(replace(kernels.MOE_SUM, file="other.comp"), {}, 0))
    assert str(caught.value) == "other.comp has no oracle; expected one in harness/oracles/__init__.py: add it"


def test_a_process_that_dies_fails_its_kernel_alone(device: Device) -> None:
    with OracleRunner(os.environ.get("LATENTVK_DEVICE"), validate=True) as runner:
        assert runner.info == device.info
        job = Job(kernels.MOE_SUM, {}, 0)
        assert runner.judge(job).failures == ()
        process = runner._child.process
        assert process is not None
        os.kill(process.pid, signal.SIGSEGV)
        dead = runner.judge(job)
        assert (dead.cases, len(dead.failures)) == (0, 1)
        assert dead.failures[0].startswith(f"the process that ran it ended with status {-signal.SIGSEGV}: ")
        assert runner.judge(job).failures == ()


def test_validation_without_its_layer(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """VK_LAYER_PATH takes the place of the folders where layers are installed."""
    monkeypatch.setenv("VK_LAYER_PATH", str(tmp_path))
    assert main(["shaders", "check", "moe_sum", "--validate"]) == 3
    assert capsys.readouterr().err == (
        "latentvk: error: VK_LAYER_KHRONOS_validation is not installed; expected it for validation: install the "
        "package vulkan-validationlayers\n"
    )


def norm_of(device: Device, expected: Expected) -> Case:
    """One token (1, 1, 1, 1) normed with weights of 2, and what is said of it."""
    draft = Draft(device.info, "ones")
    out = draft.canary(1, 4)
    buffers = {"x": draft.upload(np.ones(4, np.float32)), "weight": draft.upload(np.full(4, 2, np.float32))}
    buffers |= {"y": out, "params": draft.params(0, 1)}
    push = {"width": 4, "x_token": 4, "y_token": 4, "eps": 1.0}
    draft.launch(kernels.RMS_NORM, buffers, (1, 1, 1), spec={"HELD": 1}, push=push)
    return draft.case({out: expected})


def test_an_element_and_its_tolerance(device: Device) -> None:
    """2 / sqrt(1 + 1): the runner's own words, and shares of tolerances."""
    root = 2 / np.sqrt(2.0)
    outcome = run_case(device, norm_of(device, Expected(np.full((1, 4), root), tolerance=1e-6)))
    assert outcome.failure is None and outcome.share < 1
    wrong = np.array([[root, root, 1.5, 1.25]])
    outcome = run_case(device, norm_of(device, Expected(wrong, tolerance=0.01, axes=("token", "element"))))
    assert str(outcome.failure) == (
        f"ones: y[token 0, element 2] is {np.float32(root):.9g}, expected 1.5 within 0.01, and 1 more"
    )
    outcome = run_case(device, norm_of(device, Expected(np.full(2, root), tolerance=0.01)))
    assert str(outcome.failure) == (
        f"ones: y[word 2, past its end] is {np.float32(root):.9g}, expected -77.25 to the bit, and 1 more"
    )
    nothing = Expected(np.zeros((1, 4)), tolerance=np.inf)
    assert run_case(device, norm_of(device, nothing)).failure is None
