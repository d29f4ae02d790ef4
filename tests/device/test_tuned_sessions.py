"""A stored choice on the device: sessions launch it, and what they compute stays what the reference says."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from small_models import SmallModel

from harness.cli import main
from model import attention_shape, kernels
from model.block_formats import SMALL_INTEGERS
from model.engine import Model
from model.engine import Session as Opened
from model.layout import CACHE_TYPES, PATHS, get_path
from model.tiling import Tiling, purpose
from model.weights import interleaves
from vkbackend.device import Device, open_device
from vkbackend.physical import DeviceInfo
from vkbackend.tuning import SCHEMA, VERSION, load_tuning

Entries = dict[str, tuple[str, dict[str, int]]]
Session = Callable[..., AbstractContextManager[Opened]]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the table is."""
    monkeypatch.setenv("LATENTVK_TUNING", str(tmp_path / "tuning.json"))
    return tmp_path / "tuning.json"


def write(path: Path, info: DeviceInfo, entries: Entries) -> None:
    said = {name: {"kernel": kernel, "constants": constants} for name, (kernel, constants) in entries.items()}
    device = {"device": info.name, "driver": f"{info.driver} {info.driver_version}", "entries": said}
    path.write_text(json.dumps({"schema": SCHEMA, "schema_version": VERSION, "devices": [device]}))


@pytest.fixture
def session(embedded: SmallModel, path: Path) -> Session:
    """A session of the embedded model on a path, on the device opened anew under a table of these entries."""

    @contextmanager
    def opened(entries: Entries, of: str = "mla", cache: str = "f16") -> Iterator[Opened]:
        write(path, embedded.device.info, entries)
        device = open_device(embedded.device.info.name)
        try:
            model = Model.load(embedded.gguf, device)
            made = Opened(model, get_path(of, cache), 64, chunk=7)
            yield made
            made.close()
            model.close()
        finally:
            device.close()

    return opened


def usual_tilings(embedded: SmallModel) -> dict[Q, Tiling]:
    """For one token, of every type that the model's matrices have."""
    kinds = {tensor.type for tensor in embedded.gguf.tensors.values() if len(tensor.shape) > 1}
    return {kind: Tiling.choose(embedded.device, kind, 1) for kind in kinds}


def test_sessions_launch_what_is_stored_and_compute_the_same(embedded: SmallModel, session: Session) -> None:
    """Every product of one token in the form that the device would not take, chunks in other tiles, attention cut
    otherwise: within the tolerance of any path."""
    config = embedded.config
    entries: Entries = {}
    for kind, usual in usual_tilings(embedded).items():
        (other,) = {"matvec.comp", "matvec_rows.comp"} - {usual.kernel}
        for role in ("", "chosen"):
            entries[purpose(kind, 1, role)] = other, {"ROWS": 3}
        for role in ("", "routed"):
            entries[purpose(kind, 2, role)] = "matmul.comp", {"ROWS": 1, "TOKENS": 3}
    heads = f"attention {config.kv_lora}+{config.qk_rope} x {config.n_head} f16"
    entries[f"{heads} token"] = "attention_latent.comp", {"HEADS": 1, "TILE": 3, "SPLITS": 5}
    entries[f"{heads} chunk"] = "attention_latent.comp", {"HEADS": 2, "TILE": 4, "SPLITS": 1}
    with session(entries) as tuned:
        launches = [launch for program in tuned.launches().values() for launch in program]
        files = set()
        for launch in launches:
            names = next((set(c) for kernel, c in entries.values() if kernel == launch.kernel.file), None)
            if names is not None:
                files.add(launch.kernel.file)
                assert (launch.kernel.file, {n: launch.spec[n] for n in names}) in entries.values()
        assert files == {kernel for kernel, _ in entries.values()}
        hold(tuned, embedded)


def test_a_cache_taken_as_a_matrix_is_read_as_stored(embedded: SmallModel, session: Session) -> None:
    """Keys and values of heads, of one token and of a chunk; the products with weights stay the usual ones."""
    (other,) = {"matvec.comp", "matvec_rows.comp"} - {Tiling.choose(embedded.device, Q.F16, 1, "cache").kernel}
    entries: Entries = {
        purpose(Q.F16, 1, "cache"): (other, {"ROWS": 3}),
        purpose(Q.F16, 2, "cache"): ("matmul.comp", {"ROWS": 1, "TOKENS": 3}),
    }
    with session(entries, "mha") as tuned:
        launched = tuned.launches()
        for program, (kernel, constants) in zip(("decode", "chunk"), entries.values(), strict=True):
            for macro in ("ROWS_FROM_CACHE", "UNITS_FROM_CACHE"):
                found = [launch for launch in launched[program] if macro in launch.kernel.macros]
                assert len(found) == embedded.config.n_layer
                for launch in found:
                    assert (launch.kernel.file, {n: launch.spec[n] for n in constants}) == (kernel, constants)
        weights = [launch.kernel.file for launch in launched["decode"] if launch.label.endswith("attn_output")]
        assert weights and other not in weights
        hold(tuned, embedded)


@pytest.mark.parametrize("of", ["mla", "mha"])
def test_products_by_integer_dot_products_stay_near_the_reference(
    embedded: SmallModel, session: Session, of: str
) -> None:
    """A chunk's, of every type that has them. Eight bits of normal inputs cost a product 2.9e-5 of its outputs'
    squares; those of all products of a pass together cost the logits at most the sum of that."""
    if not set(kernels.MATMUL_DOT.needs) <= set(embedded.device.info.features):
        pytest.skip("the device has no integer dot products")
    entries: Entries = {
        purpose(kind, 2, role): (kernels.MATMUL_DOT.file, {"ROWS": 2, "TOKENS": 3})
        for kind in SMALL_INTEGERS
        for role in ("", "routed")
    }
    with session(entries, of) as tuned:
        launched = tuned.launches()
        files = [launch.kernel.file for launch in launched["chunk"]]
        products = files.count(kernels.MATMUL_DOT.file)
        assert products > files.count(kernels.QUANTIZE_INPUTS.file) > 0
        assert kernels.MATMUL_DOT.file not in [launch.kernel.file for launch in launched["decode"]]
        expected, tolerance = embedded.exact(tuned.path)
        found = tuned.prompt(embedded.prompt, "all")
        assert found is not None
        assert np.abs(found - expected).max() > tolerance
        assert np.square(found - expected).sum() <= products * 2.9e-5 * np.square(expected).sum()


@pytest.mark.parametrize("of", ["mla", "mla-v"])
@pytest.mark.parametrize("cache", ["q8_0", "q4_0"])
def test_packed_attention_costs_less_than_its_caches_own_rounding(
    embedded: SmallModel, session: Session, cache: str, of: str
) -> None:
    """Queries in 8 bits and values in halves, of chunks and of single tokens: squares of what they change in the logits
    against those of what the cache does in place of f16."""
    if not set(kernels.ATTENTION_PACKED.needs) <= set(embedded.device.info.features):
        pytest.skip("the device has no packed arithmetic")
    c, packed, lanes = embedded.config, kernels.ATTENTION_PACKED.file, embedded.device.subgroup_size
    entries: Entries = {
        attention_shape.purpose(c.kv_lora, c.qk_rope, c.n_head, CACHE_TYPES[cache], tokens): (
            packed,
            {"HEADS": c.n_head // 2, "TILE": lanes, "SPLITS": splits},
        )
        for tokens, splits in ((1, 3), (2, 1))
    }
    rounded, plain = (embedded.logits(of, 7, kind).astype(np.float64) for kind in (cache, "f16"))
    with session(entries, of, cache) as tuned:
        for launches in (tuned.launches()[name] for name in ("decode", "chunk")):
            assert [launch.kernel.file for launch in launches].count(packed) == c.n_layer
        found = tuned.prompt(embedded.prompt, "all")
        assert found is not None
        tuned.rewind(5)
        for position, token in enumerate(embedded.prompt[5:40], start=5):
            tuned.decode(token)
            found[position] = tuned.last_logits()
    cost, of_cache = np.square(found - rounded).sum(), np.square(rounded - plain).sum()
    assert 0 < cost < of_cache


def hold(tuned: Opened, embedded: SmallModel) -> None:
    """Prompted and decoded, its logits are the reference's within the tolerance of its path."""
    expected, tolerance = embedded.exact(tuned.path)
    found = tuned.prompt(embedded.prompt, "all")
    assert found is not None and np.abs(found - expected).max() <= tolerance
    tuned.rewind(5)
    for position, token in enumerate(embedded.prompt[5:15], start=5):
        tuned.decode(token)
        assert np.abs(tuned.last_logits() - expected[position]).max() <= tolerance


def test_rows_of_a_tile_change_no_bit(embedded: SmallModel, session: Session) -> None:
    """A row's sum is made in the same order whatever rows stand beside it."""
    entries: Entries = {}
    for kind, usual in usual_tilings(embedded).items():
        constants = {"ROWS": usual.spec["ROWS"] + 1}
        entries |= {purpose(kind, 1, role): (usual.kernel, constants) for role in ("", "chosen")}
    plain = Opened(embedded.model, PATHS["mla"], 64, chunk=7)
    with session(entries) as tuned:
        assert tuned.launches()["decode"][2].spec != plain.launches()["decode"][2].spec
        for token in embedded.prompt[:6]:
            assert tuned.decode(token) == plain.decode(token)
            np.testing.assert_array_equal(tuned.last_logits(), plain.last_logits())
    plain.close()


@pytest.mark.alone
def test_a_sweep_stores_what_is_better_than_a_bad_choice(
    device: Device, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chunk's weights decoded anew for every token, against tiles of eight tokens."""
    write(path, device.info, {"linear q8_0 chunk": ("matmul.comp", {"ROWS": 1, "TOKENS": 1})})
    arguments = ["--preset", "deepseek-v2-lite", "--mix", "q8_0", "--context", "32", "--chunk", "8", "--repeats", "5"]
    layout = "interleaved texels " if interleaves(device.info, Q.Q8_0, 8) else ""
    sweep = [f"matmul q8_0 {layout}rows=2 tokens=8", "--sweep", "ROWS=2", "--store", *arguments]
    assert main(["shaders", "bench", *sweep]) == 0
    out = capsys.readouterr().out
    assert "matmul rows=1 tokens=1" in out and "once more: 0." in out
    assert out.endswith(f"it is better\nstored as 'linear q8_0 chunk' in {path}\n")
    entry = load_tuning(device.info).find("linear q8_0 chunk")
    assert entry is not None and dict(entry.constants) == {"ROWS": 2, "TOKENS": 8}
    assert main(["devices"]) == 0
    assert "tuning" in capsys.readouterr().out
