"""`latentvk shaders stats`: what follows from counts for a unit of work, baselines judged, modules of anyone's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from imaginary import INFO

from harness.chips import get_chip
from harness.cli import main
from harness.shader_baseline import judge, load, regressions, save
from harness.shader_row import Row
from harness.shader_tables import print_stats
from harness.shader_variants import find_variants
from harness.shader_work import UnitCost, unit_cost
from model import kernels
from model.presets import get_preset
from model.tensors import SUPPORTED_TYPES
from vkbackend.errors import DeviceError, InputError
from vkbackend.offline import radv_icd
from vkbackend.program import Launch

CHIP = get_chip("phoenix")
WIDE = replace(INFO, max_workgroup_count=(65535, 65535, 65535), subgroup_size=64, subgroup_sizes=(64, 64))
GLM = get_preset("glm-4.7-flash")
STATISTICS = {"vgprs": 64, "sgprs": 128, "spilled_vgprs": 0, "spilled_sgprs": 0, "scratch_bytes": 0, "lds_bytes": 0}
ROW = Row("matvec q4_k rows=2", 64, STATISTICS, 8, UnitCost("weight", 5.0, 1.625, 0.5625, 2.4e-12, 7e-12))


@pytest.fixture
def radv() -> None:
    try:
        radv_icd()
    except DeviceError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(
    ("chip", "registers", "subgroup", "shared", "waves"),
    [
        ("phoenix", 64, 64, 0, 8),
        ("phoenix", 48, 64, 0, 10),
        ("phoenix", 49, 64, 0, 9),  # 56 are handed out
        ("phoenix", 128, 32, 0, 8),
        ("phoenix", 16, 64, 0, 16),
        ("phoenix", 0, 64, 0, 16),
        ("phoenix", 16, 64, 16384, 2),
        ("gfx1151", 128, 64, 0, 5),  # 132 of 768
    ],
)
def test_waves_of_a_simd(chip: str, registers: int, subgroup: int, shared: int, waves: int) -> None:
    assert get_chip(chip).waves_per_simd(registers, subgroup, shared) == waves


def test_a_matrix_vector_products_unit_is_a_weight() -> None:
    """32 x ROWS weights a lane and pass; Q4_K is 144 bytes for 256."""
    kernel = kernels.for_format(kernels.MATVEC, next(k for k in SUPPORTED_TYPES if k.name == "Q4_K"))
    launch = Launch(kernel, {}, {"ROWS": 4}, {}, (1, 1, 1), "w", False)
    body = "\tv_add_f32 v0, v0, v0 ; 0\n" * 256 + "\tbuffer_load_b64 v[0:1], v9, s[4:7], 0 ; 0\n" * 16
    assembly = f"BB0:\n\tv_mov_b32 v0, 0 ; 0\nBB1:\n{body}\ts_cbranch_scc1 BB1 ; 0\nBB2:\n\ts_endpgm ; 0\n"
    cost = unit_cost(launch, assembly, 64, CHIP)
    assert cost is not None
    assert (cost.unit, cost.valu, cost.loaded_bytes, cost.bytes_read) == ("weight", 2.0, 1.0, 0.5625)
    assert cost.compute_seconds == pytest.approx(2 / (12 * 64 * 2.7e9))
    assert cost.memory_seconds == pytest.approx(0.5625 / 80e9)
    assert (cost.governs, cost.share) == ("memory", 1.0)
    slow = unit_cost(launch, assembly, 64, replace(CHIP, units=1))
    assert slow is not None
    assert slow.governs == "compute"
    assert slow.share == pytest.approx((0.5625 / 80e9) / (2 / (64 * 2.7e9)))
    none = unit_cost(launch, assembly, 64, None)
    assert none is not None
    assert (none.governs, none.share) == (None, None)


@pytest.mark.parametrize(
    ("macros", "scoring", "taking"),
    [
        ({}, 9, 2),  # 288 pairs by 32; rows by 4
        ({"CACHE_F32": "1"}, 18, 2),
        ({"CACHE_Q8_0": "1"}, 18, 2),
        ({"ARRAYS_IN_MEMORY": "1"}, 8, 8),  # both row by row
    ],
)
def test_attentions_unit_is_a_row_for_one_head(macros: dict[str, str], scoring: int, taking: int) -> None:
    """The whole subgroup works on TILE rows and HEADS heads in a pass of the outer loop."""
    spec = {"LATENT": 512, "ROPE": 64, "HEADS": 5, "TILE": 8, "SPLITS": 1, "LATENT_PAIRS": 4, "ROPE_PAIRS": 1}
    kernel = kernels.ATTENTION_LATENT.variant(**macros)
    launch = Launch(kernel, {}, spec, {"heads": 20, "scale": 1.0}, (4, 1, 1), "a", True)
    row = "\tv_add_f32 v0, v0, v0 ; 0\n"
    first = f"BB1:\n{row * 3}\ts_cbranch_scc1 BB1 ; 0\n"
    second = f"BB2:\n{row * 5}\ts_cbranch_scc1 BB2 ; 0\n"
    assembly = f"BB0:\n{row * 16}{first}{second}BB3:\n{row}\ts_branch BB0 ; 0\n"
    cost = unit_cost(launch, assembly, 64, None)
    assert cost is not None
    assert cost.valu == pytest.approx((16 + 1 + 3 * scoring + 5 * taking) * 64 / (8 * 5))
    unrolled = f"BB0:\n{row * 16}{first}BB3:\n{row}\ts_branch BB0 ; 0\n"
    assert unit_cost(launch, unrolled, 64, None) is None


def test_a_row_is_read_once_for_all_heads() -> None:
    spec = {"LATENT": 512, "ROPE": 64, "HEADS": 5, "TILE": 8, "SPLITS": 1, "LATENT_PAIRS": 4, "ROPE_PAIRS": 1}
    launch = Launch(kernels.ATTENTION_LATENT, {}, spec, {"heads": 20, "scale": 1.0}, (4, 1, 1), "a", True)
    loop = "BB{0}:\n\ts_cbranch_scc1 BB{0} ; 0\n"
    assembly = "BB0:\n" + loop.format(1) + loop.format(2) + "BB3:\n\ts_branch BB0 ; 0\n"
    for kernel, numbers in ((kernels.ATTENTION_LATENT, 576), (kernels.ATTENTION_LATENT_V, 576 + 512)):
        cost = unit_cost(replace(launch, kernel=kernel), assembly, 64, None)
        assert cost is not None
        assert cost.bytes_read == 2 * numbers / 20


@pytest.mark.parametrize(
    ("variant", "waves", "most_compute"),
    [
        ("matvec q4_k rows=2", 10, 0.7),
        ("matvec q6_k rows=2", 10, 0.7),
        ("matvec q8_0 rows=2", 10, 0.7),
        ("attention_latent latent=512 rope=64 heads=5 tile=64 splits=64 latent_pairs=4 rope_pairs=1", 5, 1 / 0.7),
    ],
)
def test_the_committed_kernels_leave_room_for_memory_on_phoenix(variant: str, waves: int, most_compute: float) -> None:
    """Waves of a SIMD to hide loads by, and arithmetic's time over memory's at the chip's peaks."""
    row = load(Path(__file__).parents[2] / "results" / "shaders" / "phoenix.json")["variants"][variant]
    assert (row["spilled_vgprs"], row["spilled_sgprs"], row["scratch_bytes"]) == (0, 0, 0)
    assert row["waves_per_simd"] >= waves
    assert row["unit"]["compute_seconds"] <= most_compute * row["unit"]["memory_seconds"]


def test_every_format_has_its_variants() -> None:
    names = [variant.name for variant in find_variants(GLM, "q4_k_m", WIDE)]
    assert len(names) == len(set(names))
    for kind in SUPPORTED_TYPES:
        for kernel in ("matvec", "matmul", "embed"):
            assert any(name.startswith(f"{kernel} {kind.name.lower()}") for name in names), (kernel, kind)
    assert {"attention_latent", "softmax_causal", "route", "moe_sum"} <= {name.split()[0] for name in names}


def test_variants_by_pattern() -> None:
    found = find_variants(GLM, "q4_k_m", WIDE, ["matvec q4_k", "rope_query"])
    assert {v.name.split()[0] for v in found} == {"matvec", "rope_query"}
    assert all("q4_k" in v.name or v.name == "rope_query" for v in found)
    assert len(find_variants(GLM, "q4_k_m", WIDE, ["mat*q6_k*"])) >= 4
    # Whole words begin a name: q4_0 is no q4, and a constant is a word without its value.
    assert [v.name for v in find_variants(GLM, "q4_k_m", WIDE, ["matvec q4_k rows"])] == ["matvec q4_k rows=2"]
    with pytest.raises(InputError):
        find_variants(GLM, "q4_k_m", WIDE, ["matvec q4"])
    with pytest.raises(InputError) as caught:
        find_variants(GLM, "q4_k_m", WIDE, ["matvek"])
    assert str(caught.value).startswith("no kernel variant matches 'matvek', expected one of argmax, ")
    assert str(caught.value).endswith(
        "top_k_bound, top_k_collect, or whole words that begin a variant's name; `latentvk shaders stats` lists them"
    )


def changed(**values: Any) -> Row:
    cost = {k: values.pop(k) for k in ("valu", "loaded_bytes") if k in values}
    assert ROW.cost is not None
    return replace(ROW, statistics=STATISTICS | values, cost=replace(ROW.cost, **cost))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (ROW, []),
        (changed(vgprs=68), []),
        (changed(vgprs=72), [("VGPRs", 64, 72)]),
        (changed(vgprs=24), []),
        (changed(spilled_vgprs=1), [("spilled VGPRs", 0, 1)]),
        (changed(scratch_bytes=64, spilled_sgprs=2), [("spilled SGPRs", 0, 2), ("scratch bytes", 0, 64)]),
        (changed(valu=5.1), []),
        (changed(valu=5.2), [("VALU for each weight", 5.0, 5.2)]),
        (changed(loaded_bytes=2.0), [("bytes loaded for each weight", 1.625, 2.0)]),
    ],
)
def test_what_counts_as_worse(tmp_path: Path, row: Row, found: list[Any]) -> None:
    save(tmp_path / "b.json", "phoenix", "Mesa 25", [ROW])
    base = json.loads((tmp_path / "b.json").read_text())["variants"][ROW.name]
    assert regressions(base, row) == found
    assert judge(tmp_path / "b.json", "phoenix", "Mesa 25", [row]) == bool(found)


def test_another_compiler_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "b.json"
    save(path, "phoenix", "Mesa 25", [ROW])
    assert judge(path, "phoenix", "Mesa 26", [changed(spilled_vgprs=9)]) == 0
    assert capsys.readouterr().out == f"not judged: {path} was made by Mesa 25, this is Mesa 26; renew it with --save\n"


def test_a_variant_that_the_baseline_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "b.json"
    save(path, "phoenix", "Mesa 25", [ROW])
    assert judge(path, "phoenix", "Mesa 25", [ROW, replace(ROW, name="matvec q9")]) == 0
    assert capsys.readouterr().out == (
        "not in the baseline: 1 variants, the first: matvec q9; renew it with --save\n"
        f"no variant is worse than {path} (1 compared)\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read (No such file or directory), expected a baseline; write one with --save"),
        (
            "{",
            "is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)), expected a "
            "baseline; write one with --save",
        ),
        ("[]", "schema None version None, expected 'latentvk.shader-stats' version 1; write it again with --save"),
        (
            '{"schema": "latentvk.shader-stats", "schema_version": 1, "chip": "navi31"}',
            "a baseline of navi31, expected one of phoenix; choose it with --chip",
        ),
    ],
)
def test_what_is_no_baseline(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "b.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as caught:
        judge(path, "phoenix", "Mesa 25", [ROW])
    assert str(caught.value) == f"{path}: {message}"


def test_the_command(radv: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Saved, judged against itself, and against one in which a shader was better."""
    path = tmp_path / "phoenix.json"
    assert main(["shaders", "stats", "rms_norm", "--save", str(path)]) == 0
    assert main(["shaders", "stats", "rms_norm", "--against", str(path)]) == 0
    assert f"no variant is worse than {path} (3 compared)" in capsys.readouterr().out
    record = json.loads(path.read_text())
    record["variants"]["rms_norm held=3"]["vgprs"] = 1
    path.write_text(json.dumps(record))
    assert main(["shaders", "stats", "rms_norm", "--against", str(path)]) == 1
    assert "worse than" in capsys.readouterr().out


def test_tables_are_whole_where_lines_are_narrow(capsys: pytest.CaptureFixture[str]) -> None:
    print_stats("null", "Mesa 25", CHIP, [replace(ROW, name="matmul q4_k routed rows=2 tokens=8 capacity=128")])
    out = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in out
    assert out.count("matmul q4_k routed rows=2 tokens=8 capacity=128 ") == 2


def test_modules_side_by_side(radv: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "peer.spv"
    file.write_bytes(kernels.RMS_NORM.spirv())
    arguments = ["--spirv", str(file), "--spec", "64", "--spirv", str(file), "--spec", "0=32", "--subgroup", "32"]
    assert main(["shaders", "stats", *arguments, "--json", "-"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in entry["rows"]] == ["peer.spv 64", "peer.spv 0=32"]
    assert all(row["subgroup"] == 32 and row["valu"] > 0 for row in entry["rows"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--spec", "64"], "--spec '64' follows no --spirv without one; give it after its module"),
        (
            ["--spirv", "a", "--spec", "1", "--spec", "2"],
            "--spec '2' follows no --spirv without one; give it after its module",
        ),
        (["matvec", "--spirv", "a"], "both KERNEL and --spirv were given, expected one kind; leave one out"),
        (["--chip", "a,b", "--save", "f"], "a baseline is of one chip, --chip names 2; name one"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["shaders", "stats", *arguments]) == 2
    assert capsys.readouterr().err == f"latentvk: error: {message}\n"


def test_modules_that_cannot_be_read(radv: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.spv"
    assert main(["shaders", "stats", "--spirv", str(missing)]) == 2
    assert capsys.readouterr().err == (
        f"latentvk: error: {missing}: cannot be read (No such file or directory), expected a SPIR-V file; check the "
        "path\n"
    )
    missing.write_bytes(kernels.RMS_NORM.spirv())
    assert main(["shaders", "stats", "--spirv", str(missing), "--spec", "x"]) == 2
    assert capsys.readouterr().err == (
        "latentvk: error: --spec 'x': expected whole numbers such as 64,2,1 or 0=64,3=128; correct it\n"
    )


def test_the_group_says_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shaders", "--help"]) == 0
    assert "stats" in capsys.readouterr().out
    assert main(["shaders"]) == 2
    capsys.readouterr()
    assert main(["shaders", "stat"]) == 2
    assert capsys.readouterr().err == (
        "latentvk: error: unknown command 'shaders stat', expected one of check, stats, bench, watch; see "
        "`latentvk shaders --help`\n"
    )
