"""The tuning table: read where a device opens, chosen by; what cannot be used is told and passed over."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Q
from imaginary import CAPABLE, INFO

from harness.timing.sweep import require_table
from model.attention_shape import AttentionShape, purpose, unfit
from model.presets import get_preset
from model.tiling import Tiling
from vkbackend.dry import DryDevice
from vkbackend.errors import InputError
from vkbackend.tuning import Entry, Tuning, load_tuning, tuning_file

GLM = get_preset("glm-4.7-flash")
WIDE = replace(INFO, max_workgroup_count=(65535, 65535, 65535), subgroup_size=64)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the table is looked for; the folder is not there yet."""
    monkeypatch.setenv("LATENTVK_TUNING", str(tmp_path / "user" / "tuning.json"))
    return tmp_path / "user" / "tuning.json"


def write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def table(entries: object, **changed: object) -> dict[str, object]:
    device = {"device": WIDE.name, "driver": f"{WIDE.driver} {WIDE.driver_version}", "entries": entries}
    return {"schema": "latentvk.tuning", "schema_version": 2, "devices": [device], **changed}


PASSED = "; passed over: sweep again with --store, or set LATENTVK_TUNING=off"
UNFIT = [
    ({"kernel": "matvec.comp", "constants": {"ROWS": 0}}, "has 0 rows by 1 tokens a lane, expected 1 to 64 results"),
    (
        {"kernel": "matvec.comp", "constants": {"ROWS": 999}},
        "has 999 rows by 1 tokens a lane, expected 1 to 64 results",
    ),
    ({"kernel": "matvec.comp", "constants": {"COLS": 4}}, "has the constants COLS, expected ROWS"),
    ({"kernel": "matvec_rows.comp", "constants": {}}, "has the constants none, expected ROWS"),
    (
        {"kernel": "matmul.comp", "constants": {"ROWS": 1, "TOKENS": 4}},
        "has the kernel matmul.comp, expected matvec.comp or matvec_rows.comp",
    ),
    (
        {"kernel": "matmul_halves.comp", "constants": {"ROWS": 64, "TOKENS": 32}},
        "has the kernel matmul_halves.comp, expected matvec.comp or matvec_rows.comp",
    ),
    ({"kernel": "matvec.comp"}, 'is {"kernel": "matvec.comp"}, expected a kernel and its constants'),
    (
        {"kernel": "matvec.comp", "constants": {"ROWS": -1}},
        'is {"kernel": "matvec.comp", "constants": {"ROWS": -1}}, expected a kernel and its constants',
    ),
    ({"constants": 7, "kernel": 1}, 'is {"constants": 7, "kernel": 1}, expected a kernel and its constants'),
    ("ROWS=4", 'is "ROWS=4", expected a kernel and its constants'),
    (None, "is null, expected a kernel and its constants"),
]


@pytest.mark.parametrize(("entry", "reason"), UNFIT, ids=range(len(UNFIT)))
def test_an_entry_that_cannot_be_used_is_told_once(
    path: Path, entry: object, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, table({"linear q4_k token": entry, "of another program": {"kernel": "x", "constants": {}}}))
    device = DryDevice(WIDE, load_tuning(WIDE))
    for _ in range(3):
        assert Tiling.choose(device, Q.Q4_K, 1).spec == {"ROWS": 2}
    assert [r.getMessage() for r in caplog.records] == [
        f"latentvk: {path}: the entry 'linear q4_k token' {reason}{PASSED}"
    ]
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (Entry("matvec.comp", {}), "has the kernel matvec.comp, expected attention_latent.comp"),
        (Entry("attention_latent.comp", {"HEADS": 4}), "has the constants HEADS, expected HEADS, TILE, SPLITS"),
        (Entry("attention_latent.comp", {"HEADS": 0, "TILE": 8, "SPLITS": 1}), "has HEADS 0, expected a divisor of 20"),
        (
            Entry("attention_latent.comp", {"HEADS": 4, "TILE": 65, "SPLITS": 1}),
            "has TILE 65, expected 1 to 64, a subgroup's lanes",
        ),
        (Entry("attention_latent.comp", {"HEADS": 4, "TILE": 8, "SPLITS": 2}), "has SPLITS 2, expected 1 to 1"),
    ],
)
def test_an_attention_that_cannot_be_cut_so_is_told(
    path: Path, entry: Entry, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    purpose = "attention 512+64 x 20 f16 chunk"
    device = DryDevice(WIDE, Tuning({purpose: entry}))
    assert AttentionShape.choose(device, GLM, Q.F16, 2) == AttentionShape.choose(DryDevice(WIDE), GLM, Q.F16, 2)
    assert [r.getMessage() for r in caplog.records] == [f"latentvk: {path}: the entry '{purpose}' {reason}{PASSED}"]


PACKED_DOTS = replace(WIDE, features=CAPABLE.features, matrix_shapes=CAPABLE.matrix_shapes, packed_dot_products=True)


def test_a_quantised_caches_attention_is_packed_where_a_gpu_has_the_instructions(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Elsewhere a tuning may choose it, where the features are there; never for halves."""
    latent, packed = "attention_latent.comp", "attention_packed.comp"
    for info, kind, expected, able in (
        (PACKED_DOTS, Q.Q8_0, packed, True),
        (PACKED_DOTS, Q.Q4_0, packed, True),
        (PACKED_DOTS, Q.F16, latent, False),
        (replace(PACKED_DOTS, packed_dot_products=False), Q.Q8_0, latent, True),
        (replace(PACKED_DOTS, kind="cpu"), Q.Q8_0, latent, True),
        (replace(PACKED_DOTS, features=("shaderFloat16",)), Q.Q8_0, latent, False),
    ):
        shape = AttentionShape.choose(DryDevice(info), GLM, kind, 1)
        assert shape.kernel == expected
        told = {purpose(512, 64, 20, kind, 1): replace(shape, kernel=packed, heads=4).entry}
        assert AttentionShape.choose(DryDevice(info, Tuning(told)), GLM, kind, 1).kernel == (
            packed if able else expected
        )
        told = {purpose(512, 64, 20, kind, 1): replace(shape, kernel=latent, heads=4).entry}
        assert AttentionShape.choose(DryDevice(info, Tuning(told)), GLM, kind, 1).kernel == latent
    said = [record.getMessage() for record in caplog.records]
    names = [purpose(512, 64, 20, kind, 1) for kind in (Q.F16, Q.Q8_0)]
    reasons = [
        "has the kernel attention_packed.comp, expected attention_latent.comp",
        "has the kernel attention_packed.comp, which needs shaderIntegerDotProduct, expected attention_latent.comp",
    ]
    assert said == [
        f"latentvk: {path}: the entry '{name}' {reason}{PASSED}" for name, reason in zip(names, reasons, strict=True)
    ]


def test_packed_attentions_queries_must_fit_shared_memory() -> None:
    """20 heads of 576 numbers: 9 pairs of blocks of 40 bytes each."""
    entry = Entry("attention_packed.comp", {"HEADS": 20, "TILE": 64, "SPLITS": 1})
    assert unfit(entry, 20, 576, Q.Q8_0, 1, replace(PACKED_DOTS, shared_memory=14400)) == ""
    assert unfit(entry, 20, 576, Q.Q8_0, 1, replace(PACKED_DOTS, shared_memory=14396)) == (
        "has HEADS 20, whose queries take 14400 bytes, expected at most 14396 of shared memory"
    )


REMEDY = "remove it, or name another with LATENTVK_TUNING"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            "{",
            "is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)), expected a "
            "tuning table",
        ),
        ("[]", "schema None version None, expected 'latentvk.tuning' version 2 with devices"),
        (
            table({}, schema_version=1),
            "schema 'latentvk.tuning' version 1, expected 'latentvk.tuning' version 2 with devices",
        ),
        (table({}, devices=3), "schema 'latentvk.tuning' version 2, expected 'latentvk.tuning' version 2 with devices"),
    ],
)
def test_a_file_that_is_no_table_is_neither_read_nor_replaced(
    path: Path, content: object, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, content)
    before = path.read_bytes()
    assert load_tuning(WIDE) == Tuning()
    assert [r.getMessage() for r in caplog.records] == [f"latentvk: {path}: {reason}; {REMEDY}; built-in choices serve"]
    with pytest.raises(InputError) as caught:
        require_table()
    assert str(caught.value) == f"{path}: {reason}; {REMEDY}"
    assert path.read_bytes() == before


def test_it_can_be_switched_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, table({"linear q4_k token": {"kernel": "matvec.comp", "constants": {"ROWS": 8}}}))
    monkeypatch.setenv("LATENTVK_TUNING", "off")
    assert tuning_file() is None and load_tuning(WIDE) == Tuning()
    with pytest.raises(InputError) as caught:
        require_table()
    assert str(caught.value) == (
        "--store: LATENTVK_TUNING is off, expected a table to write to; unset it, or name a file there"
    )
    monkeypatch.delenv("LATENTVK_TUNING")
    monkeypatch.setenv("XDG_DATA_HOME", str(path.parent))
    assert tuning_file() == path.parent / "latentvk" / "tuning.json"
