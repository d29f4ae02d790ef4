"""`latentvk shaders bench --sweep`: choices judged and compared in turns; what is better is stored in the table."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Q
from imaginary import CAPABLE, INFO

from harness.cli import main
from harness.oracles.client import Job, Verdict
from harness.shader_variants import Shape, Variant, find_variants
from harness.timing.job import BenchJob, Timing
from harness.timing.sweep import entry_text, purpose_of, store, sweep
from harness.timing.table import print_sweep
from model.attention_shape import AttentionShape
from model.launches import planned_launches
from model.layout import PATHS
from model.mix import mix_types
from model.presets import get_preset
from vkbackend.dry import DryDevice
from vkbackend.errors import DeviceError, InputError
from vkbackend.tuning import Entry, Tuning, load_tuning

GLM = get_preset("glm-4.7-flash")
WIDE = replace(INFO, max_workgroup_count=(65535, 65535, 65535), subgroup_size=64)
EIGHT = Entry("matvec.comp", {"ROWS": 8})
SHAPE = Shape(n_ctx=256, chunk=8, every_type=False)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tuning table is written; the folder is not there yet."""
    monkeypatch.setenv("LATENTVK_TUNING", str(tmp_path / "user" / "tuning.json"))
    return tmp_path / "user" / "tuning.json"


def variant(name: str) -> Variant:
    (found,) = find_variants(GLM, "q4_k_m", WIDE, [name], everything=True, shape=SHAPE)
    return found


class Fake:
    """A runner of whose choices each takes the seconds that its constants say, by a rule; ``wrong`` ones fail."""

    def __init__(self, seconds: Callable[[dict[str, int], int], float], wrong: Sequence[dict[str, int]] = ()) -> None:
        self.seconds, self.wrong, self.runs = seconds, wrong, 0
        self.jobs: list[BenchJob] = []

    def judge(self, job: Job) -> Verdict:
        return Verdict(1, 0.0, ("a case: y is 0, expected 1",) if dict(job.spec) in self.wrong else ())

    def time(self, job: BenchJob) -> Timing:
        self.runs += 1
        self.jobs.append(job)
        drift = [1 + 0.5 * repeat for repeat in range(job.repeats)]  # of the machine; falls on all choices alike
        samples = tuple(tuple(d * self.seconds(dict(c.spec), self.runs) for d in drift) for c in job.choices)
        return Timing(samples, (1,) * len(samples), 1, 1.0, False, "wall clock of submissions")


def by_rows(best: int) -> Callable[[dict[str, int], int], float]:
    return lambda spec, run: 1.0 + abs(spec["ROWS"] - best)


def test_a_better_choice_is_stored_and_launched(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = Fake(by_rows(8))
    found = sweep(runner, variant("matvec q4_k rows=2"), {"ROWS": [2, 4, 8]}, GLM, WIDE, seed=0, repeats=4)
    assert [entry_text(entry) for entry in found.entries] == ["matvec rows=2", "matvec rows=4", "matvec rows=8"]
    assert [c.grid[0] for c in runner.jobs[0].choices] == [1024, 512, 256]  # 2048 rows
    assert [dict(c.spec)["ROWS"] for c in runner.jobs[1].choices] == [2, 8]  # once more, the best by itself
    assert found.better == EIGHT and found.ratio(2).value == pytest.approx(1 / 7) and found.ratio(2).distinct
    assert store(found, WIDE) == path
    assert load_tuning(WIDE).find("linear q4_k token") == EIGHT
    entry = json.loads(path.read_text())["devices"][0]["entries"]["linear q4_k token"]
    assert (entry["instead_of"], entry["ratio"]) == ("matvec rows=2", pytest.approx(1 / 7))
    print_sweep(found)
    assert capsys.readouterr().out == (
        "\nmatvec q4_k rows=2, in turns:\n"
        "  matvec rows=2    12.2 s     29%  the present choice\n"
        "  matvec rows=4    8.75 s     29%  0.714 (0.714 to 0.714) of it\n"
        "* matvec rows=8    1.75 s     29%  0.143 (0.143 to 0.143) of it\n"
        "matvec rows=8 once more: 0.143 (0.143 to 0.143); it is better\n"
    )
    types = mix_types(replace(GLM, n_layer=2, n_nextn=0), "q4_k_m")
    config = replace(GLM, n_layer=2, n_nextn=0)
    made = planned_launches(config, types, PATHS["mla"], WIDE, n_ctx=256, tuning=load_tuning(WIDE))
    rows = {launch.label: launch.spec for launch in made["decode"] if launch.kernel.file == "matvec.comp"}
    assert rows["blk.0.ffn_down"] == {"ROWS": 8}
    assert rows["blk.0.ffn_gate + ffn_up"] == {"ROWS": 1}  # another purpose: gated
    assert rows["blk.1.ffn_down_exps + ffn_down_shexp"] == rows["output"] == {"ROWS": 2}  # others: chosen experts, Q6_K
    # The stored choice is the present one of the next sweep.
    again = sweep(Fake(by_rows(8)), variant("matvec q4_k rows=2"), {"ROWS": [2, 8]}, GLM, WIDE, seed=0, repeats=4)
    assert entry_text(again.entries[0]) == "matvec rows=8" and again.best == 0 and again.better is None


def test_what_chance_chose_is_not_better(capsys: pytest.CaptureFixture[str]) -> None:
    """Best among many in the first run, no faster in the second."""
    runner = Fake(lambda spec, run: 0.9 if spec["ROWS"] == 8 and run == 1 else 1.0)
    found = sweep(runner, variant("matvec q4_k rows=2"), {"ROWS": [4, 8]}, GLM, WIDE, seed=0, repeats=4)
    assert found.best == 2 and found.again is not None and found.better is None
    print_sweep(found)
    assert capsys.readouterr().out.endswith(
        "matvec rows=8 once more: ~1.00 (1.00 to 1.00); it is not told from the present choice that time; more "
        "--repeats may tell\n"
    )


def test_both_forms_of_a_token_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The present choice stands beside a sweep of the other form: what both read are the same buffers."""
    monkeypatch.setenv("LATENTVK_TUNING", "off")
    runner = Fake(lambda spec, run: 2.0 if spec["ROWS"] == 8 else 1.0)
    narrow = replace(WIDE, subgroup_size=8)
    (found,) = find_variants(GLM, "q4_k_m", narrow, ["matvec q4_k interleaved rows=2"], everything=True, shape=SHAPE)
    result = sweep(runner, found, {"ROWS": [4]}, GLM, narrow, seed=0, repeats=3)
    assert [entry_text(e) for e in result.entries] == ["matvec_rows rows=8", "matvec rows=4"]
    assert set(runner.jobs[0].bindings) == {"weights", "x", "y"}
    assert result.better == Entry("matvec.comp", {"ROWS": 4})


def test_other_kernels_of_a_product_are_tried_by_name() -> None:
    """Each with its usual constants, alone or beside values of the variant's own."""
    runner, at = Fake(lambda spec, run: 1.0), variant("matvec q6_k rows=2")
    for values, expected in (({}, []), ({"ROWS": [4]}, ["matvec rows=4"])):
        found = sweep(runner, at, values, GLM, WIDE, seed=0, repeats=2, others=["matvec_rows"])
        assert [entry_text(e) for e in found.entries] == ["matvec rows=2", *expected, "matvec_rows rows=8"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("matvec q4_k rows=2", "expected matvec, matvec_rows; choose among these"),
        ("attention_latent latent=512 *", "expected attention_latent; choose among these"),
    ],
)
def test_a_kernel_that_makes_other_products_is_refused(name: str, expected: str) -> None:
    at = find_variants(GLM, "q4_k_m", WIDE, [name], everything=True, shape=SHAPE)[0]
    with pytest.raises(InputError) as caught:
        sweep(Fake(by_rows(1)), at, {}, GLM, WIDE, seed=0, repeats=2, others=["embed"])
    assert str(caught.value) == f"--sweep KERNEL=embed: embed does not do what {at.name} does, {expected}"


def test_a_wrong_choice_is_refused_and_a_wrong_present_one_ends_it() -> None:
    at = variant("matvec q4_k rows=2")
    runner = Fake(by_rows(8), wrong=[{"ROWS": 8}])
    found = sweep(runner, at, {"ROWS": [4, 8]}, GLM, WIDE, seed=0, repeats=4)
    assert found.refused == {"matvec rows=8": "a case: y is 0, expected 1"}
    assert [entry_text(entry) for entry in found.entries] == ["matvec rows=2", "matvec rows=4"]
    with pytest.raises(DeviceError) as caught:
        sweep(Fake(by_rows(8), wrong=[{"ROWS": 2}]), at, {"ROWS": [8]}, GLM, WIDE, seed=0, repeats=4)
    assert str(caught.value) == "the present choice, matvec rows=2, is wrong: a case: y is 0, expected 1"


ATTENTION = "attention_latent latent=512 rope=64 heads=5 tile=64 splits=64 latent_pairs=4 rope_pairs=1"


def test_attention_is_cut_as_stored(path: Path) -> None:
    runner = Fake(lambda spec, run: 1.0 / spec["HEADS"] / spec["SPLITS"])
    values = {"HEADS": [2, 10], "SPLITS": [64, 128]}
    found = sweep(runner, variant(ATTENTION), values, GLM, WIDE, seed=0, repeats=4)
    assert len(found.entries) == 5 and found.purpose == "attention 512+64 x 20 f16 token"
    # Sums of several splits go to a larger buffer than the output.
    assert runner.jobs[0].nbytes["out"] >= 4 * 20 * 128 * 512
    store(found, WIDE)
    device = DryDevice(WIDE, load_tuning(WIDE))
    token, chunk = (AttentionShape.choose(device, GLM, Q.F16, tokens) for tokens in (1, 2))
    assert (token.heads, token.tile, token.splits) == (10, 64, 128)
    assert (chunk.heads, chunk.tile, chunk.splits) == (5, 64, 1)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "rms_norm last_token held=8",
            {"ROWS": [1]},
            "rms_norm last_token held=8 has no constants to choose, expected a variant of matvec, matvec_rows, matmul, "
            "matmul_dot, matmul_halves, matmul_cooperative, attention_latent, attention_packed; name one",
        ),
        (
            "matvec q4_k rows=2",
            {"TILE": [1]},
            "--sweep TILE: matvec q4_k rows=2 has no such constant to choose, expected one of ROWS; sweep one of them",
        ),
        (
            "matvec_rows q4_k rows=8",
            {"ROWS": [0]},
            "--sweep: matvec_rows q4_k rows=8 has 0 rows by 1 tokens a lane, expected 1 to 64 results; choose other "
            "values",
        ),
        (ATTENTION, {"HEADS": [3]}, f"--sweep: {ATTENTION} has HEADS 3, expected a divisor of 20; choose other values"),
    ],
)
def test_what_cannot_be_swept(name: str, values: dict[str, list[int]], message: str) -> None:
    with pytest.raises(InputError) as caught:
        sweep(Fake(by_rows(1)), variant(name), values, GLM, WIDE, seed=0, repeats=2)
    assert str(caught.value) == message


class Device(Fake):
    """In place of the process on a device that `shaders bench` starts."""

    info = WIDE

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_sweep_goes_on_where_a_variant_cannot_take_the_values(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a chunk, whose cache is never split, and of a kernel with nothing to choose; what was timed is shown."""
    monkeypatch.setattr("harness.oracles.client.OracleRunner", lambda device: Device(lambda spec, run: spec["SPLITS"]))
    chunk = variant("attention_latent latent=512 rope=64 heads=5 tile=64 splits=1 *").name
    refusal = f"--sweep: {chunk} has SPLITS 64, expected 1 to 1; choose other values"
    shape = ["--context", "248", "--chunk", "8", "--repeats", "3"]
    bench = ["shaders", "bench", "silu_mul", "attention_latent latent=512", *shape, "--sweep", "SPLITS=64,128"]
    assert main(bench) == 1
    out = capsys.readouterr().out
    assert "attention_latent heads=5 tile=64 splits=128" in out
    assert out.endswith(
        f"FAIL  {chunk}: not timed: {refusal}\n"
        "FAIL  silu_mul: not timed: silu_mul has no constants to choose, expected a variant of matvec, matvec_rows, "
        "matmul, matmul_dot, matmul_halves, matmul_cooperative, attention_latent, attention_packed; name one\n"
    )
    assert main([*bench, "--json", "-"]) == 1
    token, *others = json.loads(capsys.readouterr().out)["rows"]
    assert [choice["constants"]["SPLITS"] for choice in token["choices"]] == [64, 128]
    assert [row["name"] for row in others] == [chunk, "silu_mul"] and others[0]["refused"] == refusal
    assert main(["shaders", "bench", "silu_mul", chunk, *shape, "--sweep", "SPLITS=64,128"]) == 2
    assert capsys.readouterr().err == f"latentvk: error: {refusal}\n"


def test_what_is_stored_is_of_one_device_and_its_driver(path: Path) -> None:
    at = variant("matvec q4_k rows=2")
    for best, info in ((8, WIDE), (4, replace(WIDE, name="other"))):
        store(sweep(Fake(by_rows(best)), at, {"ROWS": [best]}, GLM, info, seed=0, repeats=4), info)
        assert load_tuning(info).find("linear q4_k token") == Entry("matvec.comp", {"ROWS": best})
    assert load_tuning(WIDE).find("linear q4_k token") == EIGHT
    assert load_tuning(replace(WIDE, driver_version="1")) == load_tuning(replace(WIDE, name="third")) == Tuning()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store"], "--store is given without --sweep, expected constants to try; add --sweep NAME=1,2,4"),
        (
            ["--sweep", "ROWS"],
            "argument --sweep: found 'ROWS', expected a constant and its values such as ROWS=1,2,4; see "
            "`latentvk shaders bench --help`",
        ),
        (
            ["--sweep", "ROWS=0"],
            "argument --sweep: found '0', expected a whole number of at least 1; see `latentvk shaders bench --help`",
        ),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shaders", "bench", *arguments]) == 2
    assert capsys.readouterr().err == f"latentvk: error: {message}\n"


def test_every_products_purpose_is_the_one_that_chose_it() -> None:
    """What a sweep of a variant would store is what the same launch is planned by."""
    for one in find_variants(GLM, "q4_k_m", WIDE, shape=SHAPE):
        if one.launch.kernel.file not in ("matvec.comp", "matvec_rows.comp", "matmul.comp", "attention_latent.comp"):
            continue
        asked: list[str] = []

        class Listening(Tuning):
            def find(self, purpose: str, asked: list[str] = asked) -> Entry | None:
                asked.append(purpose)
                return None

        assert one.plan is not None
        list(one.plan(Listening()))
        assert purpose_of(one) in asked, one.name


def test_attention_over_a_quantised_cache_is_swept_by_kernel(path: Path) -> None:
    info = replace(WIDE, features=CAPABLE.features, packed_dot_products=True)
    name = "attention_packed cache_q8_0 latent=512*splits=64"
    (at,) = find_variants(GLM, "q4_k_m", info, [name], everything=True, shape=SHAPE)
    found = sweep(Fake(lambda spec, run: 1.0), at, {}, GLM, info, seed=0, repeats=2, others=["attention_latent"])
    assert [entry_text(e) for e in found.entries] == [
        "attention_packed heads=10 tile=64 splits=64",
        "attention_latent heads=10 tile=64 splits=64",
    ]
