"""A stored choice on the device: sessions launch it, and what they compute stays what the reference says."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_models import SmallModel

from model.engine import Model, Session
from model.layout import PATHS
from model.linear import Tiling, purpose
from vkbackend.device import open_device
from vkbackend.tuning import SCHEMA, VERSION


def write(path: Path, device: dict[str, str], entries: dict[str, tuple[str, dict[str, int]]]) -> None:
    said = {name: {"kernel": kernel, "constants": constants} for name, (kernel, constants) in entries.items()}
    table = {"schema": SCHEMA, "schema_version": VERSION, "devices": [{**device, "entries": said}]}
    path.write_text(json.dumps(table))


def test_sessions_launch_what_is_stored_and_compute_the_same(
    embedded: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every product of one token in the form that the device would not take, chunks in other tiles, attention cut
    otherwise: within the tolerance of any path."""
    config, info = embedded.config, embedded.device.info
    kinds = {tensor.type for tensor in embedded.gguf.tensors.values() if len(tensor.shape) > 1}
    usual = {kind: Tiling.choose(embedded.device, kind, 1) for kind in kinds}
    entries: dict[str, tuple[str, dict[str, int]]] = {}
    for kind in kinds:
        forms = {"matvec.comp": {"ROWS": 3}, "matvec_rows.comp": {"ROWS": 3}}
        (other,) = forms.keys() - {usual[kind].kernel}
        for role in ("", "chosen"):
            entries[purpose(kind, 1, role)] = other, forms[other]
        for role in ("", "routed"):
            entries[purpose(kind, 2, role)] = "matmul.comp", {"ROWS": 1, "TOKENS": 3}
    heads = f"attention {config.kv_lora}+{config.qk_rope} x {config.n_head} f16"
    entries[f"{heads} token"] = "attention_latent.comp", {"HEADS": 1, "TILE": 3, "SPLITS": 5}
    entries[f"{heads} chunk"] = "attention_latent.comp", {"HEADS": 2, "TILE": 4, "SPLITS": 1}
    path = tmp_path / "tuning.json"
    write(path, {"device": info.name, "driver": f"{info.driver} {info.driver_version}"}, entries)
    monkeypatch.setenv("LATENTVK_TUNING", str(path))
    device = open_device(info.name)
    try:
        model = Model.load(embedded.gguf, device)
        session = Session(model, PATHS["mla"], 64, chunk=7)
        launched = {
            (launch.kernel.file, *sorted(launch.spec.items()))
            for launches in session.launches().values()
            for launch in launches
        }
        files = {file for file, *_ in launched}
        assert {"matmul.comp", "attention_latent.comp"} <= files and {
            tiling.kernel for tiling in usual.values()
        } - files
        for file, *spec in launched:
            constants = dict(spec)
            if file in ("matvec.comp", "matvec_rows.comp", "matmul.comp"):
                tiles = {k: v for k, v in constants.items() if k in ("ROWS", "TOKENS")}
                assert (file, tiles) in entries.values()
            if file == "attention_latent.comp":
                assert (constants["HEADS"], constants["TILE"], constants["SPLITS"]) in ((1, 3, 5), (2, 4, 1))
        expected, tolerance = embedded.exact(PATHS["mla"])
        found = session.prompt(embedded.prompt, "all")
        assert found is not None and np.abs(found - expected).max() <= tolerance
        session.rewind(5)
        for position, token in enumerate(embedded.prompt[5:15], start=5):
            session.decode(token)
            assert np.abs(session.last_logits() - expected[position]).max() <= tolerance
        session.close()
        model.close()
    finally:
        device.close()


def test_rows_of_a_tile_change_no_bit(embedded: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's sum is made in the same order whatever rows stand beside it."""
    info = embedded.device.info
    kinds = {tensor.type for tensor in embedded.gguf.tensors.values() if len(tensor.shape) > 1}
    usual = {kind: Tiling.choose(embedded.device, kind, 1) for kind in kinds}
    entries = {}
    for kind, tiling in usual.items():
        constants = {**tiling.spec, "ROWS": tiling.spec["ROWS"] + 1}
        entries |= {purpose(kind, 1, role): (tiling.kernel, constants) for role in ("", "chosen")}
    path = tmp_path / "tuning.json"
    write(path, {"device": info.name, "driver": f"{info.driver} {info.driver_version}"}, entries)
    monkeypatch.setenv("LATENTVK_TUNING", str(path))
    device = open_device(info.name)
    try:
        model = Model.load(embedded.gguf, device)
        session = Session(model, PATHS["mla"], 64, chunk=7)
        plain = Session(embedded.model, PATHS["mla"], 64, chunk=7)
        assert session.launches()["decode"][2].spec != plain.launches()["decode"][2].spec
        for token in embedded.prompt[:6]:
            assert session.decode(token) == plain.decode(token)
            np.testing.assert_array_equal(session.last_logits(), plain.last_logits())
        plain.close()
        session.close()
        model.close()
    finally:
        device.close()
