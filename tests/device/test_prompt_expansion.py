"""A long chunk over keys and values expanded from latent rows: its kernels in both devices' forms, whole prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import hold
from numpy.typing import NDArray
from small_models import CONFIGS, SmallModel
from test_prompt_attention import in_small_tiles, of_37

from harness import synth
from harness.oracles.case import Target
from harness.oracles.prompt_expansion import expand_case, weights_case
from harness.synth import write_synthetic
from model import cache, engine, kernels, prompt_expansion
from model.config import ModelConfig
from model.engine import Model, Session
from model.gguf_file import GGUFFile
from model.layout import Path as CachePath
from model.layout import get_path, pairs_a_word
from model.prompt_expansion import ExpandedRow
from model.reference import Reference, forward
from model.reference.attention import LayerCache, Weight, attend, queries
from model.reference.ops import Floats, Ints, linear, rms_norm, rope
from model.rope import magnitude
from vkbackend.device import Device

# Arrays in a GPU's registers with its constants, and in a CPU's memory: both forms run on any device.
FORMS = {"cpu": ({"ARRAYS_IN_MEMORY": "1"}, 16), "gpu": ({}, 8)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loads", ["eights", "fours", "texels"])
@pytest.mark.parametrize(("latent", "shared", "parts"), [(512, 64, (24, 32)), (32, 12, (2, 2)), (40, 8, (9, 7))])
def test_rows(device: Device, form: str, loads: str, latent: int, shared: int, parts: tuple[int, int]) -> None:
    """Latents that fill no load of a subgroup, and blocks of columns of which all, some and none are copied."""
    macros, rows = FORMS[form]
    kernel = kernels.PROMPT_EXPAND.variant(**macros)
    kernel = kernel.variant(FOURS="1") if loads == "fours" else kernel
    kernel = kernels.with_texels(kernel, "weights") if loads == "texels" else kernel
    target = Target(kernel, {"ROWS": rows}, device.info)
    rng = np.random.default_rng(latent + shared)
    for count, copied, large in ((1, True, None), (21, True, -66000.0), (33, False, 65000.0)):
        shape = {"latent": latent, "shared": shared, "count": count}
        hold(device, expand_case(target, rng, **shape, parts=parts, copied=copied, large=large))


@pytest.mark.parametrize("turned", [False, True])
def test_weights(device: Device, turned: bool) -> None:
    rng = np.random.default_rng(3)
    for heads, latent, columns, first in ((20, 64, 24, 0), (3, 32, 28, 40), (1, 8, 2, 8)):
        case = {"heads": heads, "latent": latent, "columns": columns, "first": first}
        for large in (None, 65504.0, -65600.0):
            hold(device, weights_case(device.info, rng, **case, turned=turned, large=large))


def halves(numbers: Floats) -> NDArray[np.float64]:
    return numbers.astype(np.float16).astype(np.float64)


def expanding_attention(
    x: Floats,
    positions: Ints,
    frequencies: NDArray[np.float64],
    weight: Weight,
    config: ModelConfig,
    cached: LayerCache,
    path: str,
) -> Floats:
    """As the reference's, but rows, the weights that expand them, keys and values are halves."""
    c = config
    q = queries(x, weight, c)
    q[..., c.qk_nope :] = rope(q[..., c.qk_nope :], positions, frequencies, magnitude(c))
    kv_a = linear(x, weight("attn_kv_a_mqa"))
    latent = rms_norm(kv_a[:, : c.kv_lora], weight("attn_kv_a_norm"), c.rms_eps)
    shared = rope(kv_a[:, c.kv_lora :], positions, frequencies, magnitude(c))
    rows = halves(cached.rows.append(np.concatenate([latent, shared], axis=1)))
    copied = halves(cached.values.append(latent)) if path == "latent_v" else rows[:, : c.kv_lora]
    own = halves(rows[:, : c.kv_lora] @ halves(weight("attn_k_b")))  # [H, n, N]
    every = np.broadcast_to(rows[:, c.kv_lora :], (c.n_head, len(rows), c.qk_rope))
    values = halves(copied @ halves(weight("attn_v_b")).transpose(0, 2, 1))
    out = attend(q.transpose(1, 0, 2), np.concatenate([own, every], axis=2), values, c.attn_scale)
    return linear(out.transpose(1, 0, 2).reshape(len(x), -1), weight("attn_output"))


def rounded(
    small: SmallModel, tokens: Sequence[int], path: CachePath, monkeypatch: pytest.MonkeyPatch
) -> tuple[NDArray[np.float64], float]:
    """Float64 logits of ``tokens`` with everything rounded that the device rounds, and the most that this does."""
    reference = Reference.from_gguf(small.gguf, np.float64)
    exact = reference.logits(tokens, path.layout.value)
    with monkeypatch.context() as patched:
        patched.setattr(forward, "latent_attention", expanding_attention)
        kind = np.float16 if path.cache_type == "f16" else path.kind
        found = reference.logits(tokens, path.layout.value, cache_type=kind)
    return found, float(np.abs(found - exact).max())


@pytest.mark.parametrize("cache_type", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("path", ["mla", "mla-v"])
@pytest.mark.parametrize("shards", [False, True])
def test_a_prompt_is_the_reference_that_rounds_so(
    small: SmallModel, monkeypatch: pytest.MonkeyPatch, path: str, cache_type: str, shards: bool
) -> None:
    of_type = get_path(path, cache_type)
    if small.config.kv_lora % (2 * pairs_a_word(of_type.kind)):
        pytest.skip(f"there is no {cache_type} cache at a width of {small.config.kv_lora}")
    in_small_tiles(monkeypatch)
    monkeypatch.setattr(prompt_expansion, "_EXPANDING", 0)
    if shards:
        monkeypatch.setattr(cache, "latent_ranges", of_37)
        monkeypatch.setattr(engine, "latent_ranges", of_37)
    hold_prompt(small, of_type, 4 if shards else 1, monkeypatch)


def test_yarn_without_compressed_queries(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape of DeepSeek-V2-Lite with attn_kv_b in one tensor, in whole eights."""
    config = replace(CONFIGS["lite"], kv_lora=40, qk_nope=16, n_expert=12)
    write_synthetic(config, tmp_path / "lite.gguf", "f16", 1)
    in_small_tiles(monkeypatch)
    monkeypatch.setattr(prompt_expansion, "_EXPANDING", 0)
    small = SmallModel("lite", GGUFFile.open(tmp_path / "lite.gguf"), device)
    for cache_type in ("f16", "q8_0"):
        hold_prompt(small, get_path("mla", cache_type), 1, monkeypatch)
    small.model.close()


def test_more_rows_than_a_grid_is_long(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSeek-V3's heads and latent: attn_k_b has one row more than many devices' grids have workgroups."""
    config = replace(CONFIGS["dense"], n_head=128, kv_lora=512, split_kv_b=True)
    assert config.n_head * config.kv_lora > 65535
    write_synthetic(config, tmp_path / "heads.gguf", "q8_0", 1)
    in_small_tiles(monkeypatch)
    monkeypatch.setattr(prompt_expansion, "_EXPANDING", 0)
    small = SmallModel("heads", GGUFFile.open(tmp_path / "heads.gguf"), device)
    hold_prompt(small, get_path("mla"), 1, monkeypatch)
    small.model.close()


@pytest.mark.parametrize("factor", [2.0**16, 2.0**40], ids=["products", "weights"])
@pytest.mark.parametrize("part", ["keys", "values"])
def test_beyond_the_largest_half_it_is_absorbed(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, factor: float
) -> None:
    """What makes keys, or values, times a power of two, what meets them divided by it: to f32 nothing changes."""
    config = CONFIGS["grouped"]
    larger, smaller = ("attn_k_b", "attn_q_b") if part == "keys" else ("attn_v_b", "attn_output")
    original, most = synth.tensor_pieces, []

    def scaled(name: str, shape: tuple[int, ...], *arguments: Any) -> Iterator[np.ndarray]:
        (piece,) = original(name, shape, *arguments)
        numbers = piece.view("<f4").reshape(shape).copy()
        if smaller in name:
            heads = config.n_head if part == "keys" else 1
            meeting = numbers.reshape(heads, -1, shape[-1])
            meeting[:, : config.qk_nope if part == "keys" else None] /= factor  # not the query's rotated part
        elif larger in name:
            numbers *= factor
            most.append(np.abs(numbers).max())
        yield numbers.reshape(-1).view(np.uint8)

    write_synthetic(config, tmp_path / "plain.gguf", "f32", 1)
    monkeypatch.setattr(synth, "tensor_pieces", scaled)
    write_synthetic(config, tmp_path / "large.gguf", "f32", 1)
    assert (max(most) > 65504) == (factor > 2**16)
    in_small_tiles(monkeypatch)
    plain, large = (Model.load(GGUFFile.open(tmp_path / f"{name}.gguf"), device) for name in ("plain", "large"))
    tokens = [int(n) for n in np.random.default_rng(1).integers(0, config.n_vocab, 29)]
    absorbed = Session(plain, get_path("mla"), 128, chunk=13)
    assert "expanded" not in absorbed.launch_counts()
    expected = absorbed.prompt(tokens, "all")
    monkeypatch.setattr(prompt_expansion, "_EXPANDING", 0)
    session = Session(large, get_path("mla"), 128, chunk=13)
    assert "expanded" in session.launch_counts()
    for _ in range(2):
        session.rewind(0)
        found = session.prompt(tokens, "all")
        assert expected is not None and found is not None
        np.testing.assert_array_equal(found, expected)
        assert "expanded" not in session.launch_counts()
    for opened in (absorbed, session):
        opened.close()
    for model in (plain, large):
        model.close()


def hold_prompt(small: SmallModel, path: CachePath, shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 29 logits, twice, in chunks of 13 over tiles of which the last are not full."""
    session = Session(small.model, path, 128, chunk=13)
    expands = ExpandedRow.of(small.config) is not None
    assert ("expanded" in session.launch_counts()) == expands
    assert len(session._cache.layers[0].latent) == shards
    found = session.prompt(small.prompt, "all")
    session.rewind(0)
    again = session.prompt(small.prompt, "all")
    session.close()
    assert found is not None and again is not None
    np.testing.assert_array_equal(again, found)
    if not expands:
        return
    expected, effect = rounded(small, small.prompt, path, monkeypatch)
    # A device computes in f32, so that a few numbers fall on the other neighbouring half: less than rounding all of
    # them does.
    assert np.abs(found - expected).max() <= effect / 2
