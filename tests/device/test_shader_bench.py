"""`latentvk shaders bench` on a device: what is right is timed in a process of its own, what is wrong is refused."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli import main
from harness.oracles.client import OracleRunner
from harness.shader_variants import Shape, Variant, find_variants
from harness.timing import run as timing_run
from harness.timing.job import QUICK_BYTES, BenchJob, Choice
from harness.timing.run import time_job
from model.presets import get_preset
from vkbackend import shader
from vkbackend.device import Device
from vkbackend.errors import DeviceError
from vkbackend.pace import Pace

TINY = get_preset("deepseek-v2-lite")
SHAPE = Shape(n_ctx=256, chunk=8, most_bytes=QUICK_BYTES)


def variant(device: Device, name: str) -> Variant:
    """The first one that begins so."""
    return find_variants(TINY, "q4_k_m", device.info, [name], shape=SHAPE)[0]


def one_token(device: Device) -> Variant:
    """A matrix-vector product in the device's form."""
    found = find_variants(TINY, "q4_k_m", device.info, ["mat* q6_k"], shape=SHAPE)
    return next(v for v in found if v.tokens == 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shaders, which processes started from here use."""
    shutil.copytree(shader.SHADER_ROOT, tmp_path / "shaders")
    monkeypatch.setenv("LATENTVK_SHADERS", str(tmp_path / "shaders"))
    return tmp_path / "shaders"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.fixture
def runner(device: Device) -> Iterator[OracleRunner]:
    with OracleRunner(os.environ.get("LATENTVK_DEVICE"), validate=True) as opened:
        yield opened


def test_the_command(device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    arguments = ["--preset", "deepseek-v2-lite", "--context", "64", "--chunk", "8", "--repeats", "4"]
    assert main(["shaders", "bench", "silu_mul", "embed q5_0", *arguments, "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"measured on {device.info.name}" in text and "\nsilu_mul: 8 tokens\n" in text
    record = json.loads(out.read_text())
    assert record["device"]["name"] == device.info.name and record["settings"]["context"] == 64
    peak = record["peaks"]["bandwidth"]
    assert [row["name"] for row in record["rows"]] == ["embed q5_0", "silu_mul"]
    for row in record["rows"]:
        assert len(row["samples_seconds"]) == 4 and min(row["samples_seconds"]) > 0
        assert row["memory_share"] == pytest.approx(row["bytes"] / row["seconds"] / peak)
        assert row["roofline_share"] == pytest.approx(row["memory_share"]) and row["governs"] == "memory"
    embed = record["rows"][0]
    assert embed["bytes"] == 8 * 2048 * (22 / 32 + 4) and embed["copies"] > 1


def test_a_wrong_kernel_is_not_timed(device: Device, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder / "silu_mul.comp", "* up[at]", "* 2.0 * up[at]")
    assert main(["shaders", "bench", "silu_mul", "argmax final", "--repeats", "3", "--json", "-"]) == 1
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["silu_mul"].keys() == {"name", "refused"}
    assert rows["silu_mul"]["refused"].startswith("1 of 1 tokens of 4: gate[token 0, element 1] is ")
    assert rows["argmax final"]["seconds"] > 0
    assert main(["shaders", "bench", "silu_mul", "--repeats", "3"]) == 1
    assert capsys.readouterr().out.startswith("FAIL  silu_mul: not timed: 1 of 1 tokens of 4: gate[")


def test_what_is_no_number_is_an_error(device: Device, folder: Path) -> None:
    """Of a kernel that no oracle saw."""
    edit(folder / "rms_norm.comp", "float(width) + eps);", "float(width) + eps) * sqrt(-1.0 - squares);")
    with OracleRunner(os.environ.get("LATENTVK_DEVICE")) as runner, pytest.raises(DeviceError) as caught:
        runner.time(BenchJob.quick(variant(device, "rms_norm last_token"), TINY))
    assert str(caught.value) == (
        "rms_norm.comp at its true shape wrote into y what is no finite number; expected numbers: compare its grid and "
        "its loops' ends with the plan"
    )


def test_a_process_that_dies_is_an_error_and_the_next_job_is_timed(device: Device, runner: OracleRunner) -> None:
    job = BenchJob.quick(one_token(device), TINY)
    assert runner.time(job).seconds > 0
    process = runner._child.process
    assert process is not None
    os.kill(process.pid, signal.SIGSEGV)
    with pytest.raises(DeviceError) as caught:
        runner.time(job)
    assert str(caught.value).startswith(
        f"timing {job.kernel.file}: the process that ran it ended with status {-signal.SIGSEGV}: "
    )
    timing = runner.time(job)
    assert len(timing.samples[0]) == job.repeats and timing.copies > 1
    assert runner.peaks().bandwidth_bytes_per_s > 0


@pytest.mark.alone
def test_a_slow_devices_time_is_measured(device: Device) -> None:
    """So much a workgroup, in launches of which several make a sample; a choice of half the workgroups takes half."""
    found = variant(device, "rms_norm")
    whole = BenchJob.of(found, TINY, repeats=3, sample_s=0.1)
    (first,) = whole.choices
    job = replace(whole, choices=(first, Choice(first.kernel, first.spec, first.push, (first.grid[0] // 2, 1, 1))))
    before, device.pace = device.pace, Pace()
    device.companion.slow_down(0.002)
    try:
        timing = time_job(device, job)
    finally:
        device.companion.slow_down(0)
        device.pace = before
    if timing.clock == "device timestamps":
        pytest.skip("what slows the device down is no part of its own time")
    assert all(len(samples) == 3 for samples in timing.samples)
    for samples, groups in zip(timing.samples, (8, 4), strict=True):
        assert 0.002 * groups <= min(samples) < 0.002 * groups * 1.5
    assert timing.launches[0] > 1 and timing.launches[0] % timing.copies == 0


@pytest.mark.alone
def test_timestamps_and_wall_clock_agree(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of launches beside which neither a submission's own cost nor a timestamp's counts for much."""
    if not (device.info.timestamp_bits and device.info.timestamp_period_ns):
        pytest.skip(f"{device.info.name} has no timestamps")
    found = find_variants(TINY, "q4_k_m", device.info, ["matmul q6_k"], shape=SHAPE)
    job = BenchJob.of(next(v for v in found if v.tokens == 8), TINY, repeats=5, sample_s=0.02)
    seconds = {}
    for clock in ("device timestamps", "wall clock of submissions"):
        monkeypatch.setattr(timing_run, "_clock", lambda device, clock=clock: clock)
        timing = time_job(device, job)
        assert timing.clock == clock
        seconds[clock] = min(timing.samples[0])
    assert 1 / 3 < seconds["device timestamps"] / seconds["wall clock of submissions"] < 3
