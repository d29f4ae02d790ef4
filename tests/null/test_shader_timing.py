"""What `latentvk shaders bench` counts and hands to kernels, by arithmetic and on devices that run nothing."""

from dataclasses import replace
from functools import cache
from itertools import chain

import numpy as np
import pytest
from imaginary import CAPABLE

from harness.cli import main
from harness.oracles.case import HostDevice
from harness.roofline import Peaks
from harness.shader_variants import Shape, Variant, choose, find_variants
from harness.stats import spread
from harness.timing.inputs import Inputs
from harness.timing.job import BenchJob, Timing
from harness.timing.result import Result
from harness.timing.table import figures, percent, shape_text
from harness.timing.work import TIMED, Amount, amount, routing
from model.presets import get_preset
from vkbackend.dry import DryDevice
from vkbackend.physical import DeviceInfo

GLM = get_preset("glm-4.7-flash")
CONTEXT, CHUNK = 1000, 24
LONG = 512  # tokens of a chunk that expands its rows
SHAPE = Shape(n_ctx=CONTEXT + CHUNK, chunk=CHUNK)


def info_of(lanes: int) -> DeviceInfo:
    return replace(CAPABLE, max_workgroup_count=(65535, 65535, 65535), subgroup_size=lanes)


@cache
def variants(most_bytes: int | None) -> dict[str, Variant]:
    shape = replace(SHAPE, most_bytes=most_bytes)
    return {v.name: v for v in find_variants(GLM, "q4_k_m", info_of(64), everything=True, shape=shape)}


def variant(name: str, most_bytes: int | None = None) -> Variant:
    (found,) = choose(variants(most_bytes), [name])
    return variants(most_bytes)[found]


def amount_of(name: str) -> Amount:
    return amount(BenchJob.of(variant(name), GLM))


def test_a_products_bytes_and_operations() -> None:
    """GLM's dense feed-forward: 10240 rows of 2048 weights at 4.5 bits, or as many of 10240 that are added to x."""
    found = amount_of("matvec q4_k rows=2")
    weights = 10240 * 2048
    assert (found.unit, found.units, found.flops) == ("weight", weights, 2 * weights)
    assert found.read == weights * 144 / 256 + 4 * 10240
    assert found.written == 2 * 4 * 2048
    both = amount_of("matvec q4_k gated normed rows=1")
    assert (both.units, both.read) == (2 * weights, 2 * weights * 144 / 256 + 4 * 2048)
    assert both.written == 4 * 10240
    chunk = amount_of("matmul q4_k rows=2 tokens=8")
    assert (chunk.unit, chunk.units, chunk.flops) == ("weight and token", CHUNK * weights, 2 * CHUNK * weights)
    assert chunk.read == weights * 144 / 256 + 4 * CHUNK * 2048
    assert chunk.written == 4 * CHUNK * 10240


def test_a_tokens_experts_are_four_of_all() -> None:
    found = amount_of("matvec q4_k chosen rows=2")
    weights = 4 * 1536 * 2048
    assert (found.units, found.read) == (weights, weights * 144 / 256 + 4 * 2048)  # gate or up: one input for all
    assert found.written == 4 * 4 * 1536
    summed, weights = amount_of("matvec q6_k chosen summed rows=2"), 5 * 1536 * 2048  # with the shared expert
    assert (summed.units, summed.read) == (weights, weights * 210 / 256 + 4 * 5 * 1536)
    assert summed.written == 2 * 4 * 2048


def test_routed_experts_work_on_pairs_and_not_on_their_grids_room() -> None:
    job = BenchJob.of(variant("matmul q4_k routed rows=2 tokens=8 *x_divisor=4"), GLM)
    assert job.choices[0].grid[1:] == (-(-CHUNK // 8), 64)  # room for the whole chunk in each expert
    found, chosen = amount(job), routing(job)
    assert chosen.shape == (CHUNK, 4) and all(len(set(row)) == 4 for row in chosen.tolist())
    assert found.units == CHUNK * 4 * 1536 * 2048
    reached = len(set(chosen.reshape(-1).tolist()))
    assert found.read == reached * 1536 * 2048 * 144 / 256 + 4 * CHUNK * 2048
    half = replace(job, choices=(replace(job.choices[0], push=job.push | {"matrix_first": 0, "matrix_end": 32}),))
    assert amount(half).units == int((chosen < 32).sum()) * 1536 * 2048


def test_attention_sees_what_is_before_a_token_and_itself() -> None:
    found = amount_of("attention_latent latent=512 rope=64 heads=5 tile=64 splits=1 *")
    pairs = sum(CONTEXT + token + 1 for token in range(CHUNK))
    assert (found.unit, found.units) == ("cache row and head", pairs * 20)
    assert found.flops == 2 * pairs * 20 * (576 + 512)
    assert found.read == (CONTEXT + CHUNK) * 576 * 2 + 4 * CHUNK * 20 * 576
    assert found.written == 4 * CHUNK * 20 * 512
    keys = amount_of("matmul f16 rows_from_cache rows=2 tokens=8")
    assert keys.units == CHUNK * 20 * (CONTEXT + CHUNK) * 256
    assert amount_of("softmax_causal").units == pairs * 20


def test_an_expansions_bytes_and_operations() -> None:
    """Of 1,000 rows GLM's keys of 192 and values of 256 of 20 heads; the 64 numbers that heads share are copied."""
    shape = Shape(n_ctx=CONTEXT + LONG, chunk=LONG, every_type=False)
    made = find_variants(GLM, "q4_k_m", info_of(64), ["prompt_expand", "prompt_weights"], shape=shape)
    whole, keys, values = 192 + 64 + 256, 192 + 64, 256
    amounts = {int(v.launch.push["column_end"] - v.launch.push["column_first"]): v for v in made if "rows" in v.name}
    found = {columns: amount(BenchJob.of(v, GLM)) for columns, v in amounts.items()}
    assert set(found) == {whole // 8, keys // 4, values // 4} or set(found) == {whole // 8, keys // 4}
    of_all = found[whole // 8]
    assert of_all.flops == 2 * 1000 * 20 * 512 * (192 + 256)
    assert of_all.read == 2 * (1000 * 576 + 20 * 512 * 448)
    assert (of_all.units, of_all.written) == (1000 * 20 * whole, 2 * 1000 * 20 * whole)
    (weights,) = (amount(BenchJob.of(v, GLM)) for v in made if v.name == "prompt_weights")
    assert weights.read == 2 * weights.written and weights.read in (4 * 20 * 512 * 192, 4 * 20 * 512 * 256)


def test_a_shard_of_a_cache_holds_a_part_of_the_positions() -> None:
    name = "attention_latent shard latent=512 rope=64 heads=5 tile=64 splits=1 *"
    found = variant(name)
    push = found.launch.push
    job = BenchJob.of(found, GLM)
    seen = [min(job.n_past + token + 1, push["last"]) - push["first"] for token in range(job.tokens)]
    assert amount(job).units == 20 * sum(max(0, n) for n in seen) > 0


@pytest.mark.parametrize("lanes", [8, 64])
def test_every_variant_of_a_forward_pass_has_inputs_as_the_plan_lays_them_out(lanes: int) -> None:
    """Weights of other sizes, or scales elsewhere, than the planned launch's are refused with ValueError."""
    info = info_of(lanes)
    found = find_variants(GLM, "q4_k_m", info, everything=True, shape=replace(SHAPE, most_bytes=2**24))
    long = replace(SHAPE, n_ctx=CONTEXT + LONG, chunk=LONG, every_type=False)
    found += [v for v in find_variants(GLM, "q4_k_m", info, shape=long) if v.launch.kernel.file.startswith("prompt_")]
    timed = [v for v in found if v.launch.kernel.file in TIMED]
    assert {v.launch.kernel.file for v in timed} == TIMED
    for one in timed:
        job = BenchJob.of(one, GLM)
        inputs = Inputs(DryDevice(info), job)
        buffers = inputs.copy()
        assert {name: b.nbytes for name, b in buffers.items()} == job.nbytes, one.name
        work = amount(job)
        assert 0 < work.nbytes <= 2 * sum(job.nbytes.values()), one.name
        assert work.units > 0 or "SHARD" in job.kernel.macros, one.name  # whose positions may all be behind the last
        inputs.free()


def test_copies_differ_in_what_is_read_and_share_what_is_written() -> None:
    inputs = Inputs(HostDevice(info_of(64)), BenchJob.of(variant("matvec q4_k rows=2", most_bytes=2**20), GLM))
    first, second = inputs.copy(), inputs.copy()
    assert first["weights"] is not second["weights"] and first["x"] is not second["x"]
    assert first["y"] is second["y"] is inputs.written["y"]
    assert not np.array_equal(first["x"].words(), second["x"].words())
    for buffer in (first["x"], second["x"]):
        assert np.isfinite(buffer.words().view(np.float32)).all()


def test_a_tokens_experts_are_others_in_every_copy_until_all_had_their_turn() -> None:
    job = BenchJob.of(variant("matvec iq1_s chosen rows=2"), GLM)
    inputs = Inputs(HostDevice(info_of(64)), job)
    copies = [inputs.copy() for _ in range(17)]
    taken = [copy["experts"].words()[:4].tolist() for copy in copies]
    assert sorted(chain(*taken[:16])) == list(range(64)) and taken[16] == taken[0]
    assert len({id(copy["weights"]) for copy in copies[:16]}) == 1
    assert copies[16]["weights"] is not copies[0]["weights"]


def test_routed_lists_say_what_grouping_would() -> None:
    job = BenchJob.of(variant("matmul iq1_s routed rows=2 tokens=8 *x_divisor=4"), GLM)
    inputs = Inputs(HostDevice(info_of(64)), job)
    made = inputs.copy()
    counts = made["counts"].words()[:64]
    pairs = made["pairs"].words()[: 64 * CHUNK].reshape(64, CHUNK)
    chosen = routing(job)
    for expert in range(64):
        listed = pairs[expert, : counts[expert]].tolist()
        assert listed == [t * 4 + s for t in range(CHUNK) for s in range(4) if chosen[t, s] == expert]
    assert made["params"].words()[:2].tolist() == [CONTEXT, CHUNK]


def result(amount: Amount, *seconds: float) -> Result:
    timing = Timing((seconds,), (10,), 3, 2.0**28, False, "wall clock of submissions")
    return Result(variant("matvec q4_k rows=2"), amount, timing, Peaks(100e9, 1000e9, "known"))


def test_shares_of_known_peaks() -> None:
    """2 GB and 4 GFLOP in 40 ms, where memory needs 20 ms of them and arithmetic 4."""
    found = result(Amount("weight", 8e9, 1.5e9, 0.5e9, 4e9), 0.039, 0.04, 0.08)
    assert (found.seconds, found.bandwidth, found.unit_rate) == (0.04, 50e9, 2e11)
    assert found.flops == pytest.approx(100e9)
    assert (found.memory_share, found.arithmetic_share) == pytest.approx((0.5, 0.1))
    assert (found.bound.governs, found.share) == ("memory", pytest.approx(0.5))
    assert figures(found) == ("40.0 ms", "2.5%", "50.0", "50%", "100", "10%", "200", "memory", "50%")
    hard = result(Amount("weight", 8e9, 1e8, 0, 3e10), 0.06)
    assert (hard.bound.governs, hard.share) == ("compute", pytest.approx(0.5))
    values = found.as_dict()
    assert values["samples_seconds"] == [0.039, 0.04, 0.08] and values["roofline_share"] == pytest.approx(0.5)
    assert shape_text(found) == "2048 x 10240"


def test_spread_and_percent() -> None:
    assert spread([1.0, 2.0, 3.0, 100.0]) == 1.0
    assert [percent(x) for x in (0.574, 0.0042, 1.31)] == ["57%", "0.42%", "131%"]


def test_without_a_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VK_DRIVER_FILES", "/nowhere.json")
    monkeypatch.setenv("VK_ICD_FILENAMES", "/nowhere.json")
    assert main(["shaders", "bench", "rms_norm"]) == 3
    assert capsys.readouterr().out == ""
