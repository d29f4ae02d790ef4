"""A long chunk's attention in tiles: its kernels in both devices' forms, whole prompts against one token at a time."""

import numpy as np
import pytest
from helpers import hold
from small_models import SmallModel

from harness.oracles.prompt_attention import scores_case, values_case
from model import cache, engine, forward, kernels, prompt_attention
from model.engine import Session
from model.layout import get_path, pairs_a_word
from vkbackend.device import Device

# Arrays in a GPU's registers with its constants, and in a CPU's memory: both forms run on any device.
SCORES = {"cpu": ({"ARRAYS_IN_MEMORY": "1"}, (4, 16)), "gpu": ({}, (2, 16))}
VALUES = {"cpu": ({"ARRAYS_IN_MEMORY": "1"}, 16), "gpu": ({}, 8)}


@pytest.mark.parametrize("form", SCORES)
@pytest.mark.parametrize("width", [576, 256, 44])  # GLM's and DeepSeek's latent rows, GLM's keys, no whole eights
@pytest.mark.parametrize(("n_past", "tokens", "tile"), [(0, 19, (0, 19)), (61, 5, (0, 64)), (61, 5, (64, 2))])
def test_scores(device: Device, form: str, width: int, n_past: int, tokens: int, tile: tuple[int, int]) -> None:
    macros, (positions, each) = SCORES[form]
    rng, spec = np.random.default_rng(width + n_past), {"POSITIONS": positions, "TOKENS": each}
    kernel = kernels.PROMPT_SCORES.variant(**macros)
    for shared in (True, False):
        case = {"width": width, "n_past": n_past, "tokens": tokens, "tile": tile, "shared": shared}
        hold(device, scores_case(device.info, rng, kernel, spec, **case))


@pytest.mark.parametrize("form", VALUES)
@pytest.mark.parametrize("columns", [512, 128, 20])
@pytest.mark.parametrize("loads", ["eights", "fours", "texels"])
@pytest.mark.parametrize("edges", [(0, 70), (0, 33, 70), (0, 64, 66, 69, 70)])
def test_values(device: Device, form: str, columns: int, loads: str, edges: tuple[int, ...]) -> None:
    """Tiles of which the last tokens alone see anything."""
    macros, tokens = VALUES[form]
    kernel = kernels.PROMPT_VALUES.variant(**macros)
    kernel = kernel.variant(FOURS="1") if loads == "fours" else kernel
    kernel = kernels.with_texels(kernel, "values") if loads == "texels" else kernel
    rng = np.random.default_rng(columns + len(edges))
    for shared in (True, False):
        case = {"columns": columns, "n_past": 61, "tokens": 9, "edges": edges, "shared": shared}
        hold(device, values_case(device.info, rng, kernel, {"TOKENS": tokens}, **case))


def in_small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least tile that the device's subgroups allow, and every chunk in tiles."""
    monkeypatch.setattr(prompt_attention, "_MOST_POSITIONS", 1)
    monkeypatch.setattr(prompt_attention, "TILED_FROM", 1)
    monkeypatch.setattr(forward, "TILED_FROM", 1)


@pytest.mark.parametrize("cache_type", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("path", ["mla", "mla-v"])
@pytest.mark.parametrize("shards", [False, True])
def test_a_prompt_in_tiles_is_the_prompt_token_by_token(
    small: SmallModel, monkeypatch: pytest.MonkeyPatch, path: str, cache_type: str, shards: bool
) -> None:
    """The logits of all 29 tokens after 70 others, in chunks of 13 over tiles of which the last are not full."""
    of_type = get_path(path, cache_type)
    if small.config.kv_lora % (2 * pairs_a_word(of_type.kind)):
        pytest.skip(f"there is no {cache_type} cache at a width of {small.config.kv_lora}")
    before = [token % small.config.n_vocab for token in small.draws(1, 70)[0]]
    opened = small.session(path, 1, cache_type)
    opened.prompt(before, "none")
    expected = opened.prompt(small.prompt, "all")
    in_small_tiles(monkeypatch)
    if shards:
        monkeypatch.setattr(cache, "latent_ranges", of_37)
        monkeypatch.setattr(engine, "latent_ranges", of_37)
    session = Session(small.model, of_type, 128, chunk=13)
    assert list(session._forward._tiled) == ["tiled"]
    assert len(session._cache.layers[0].latent) == (4 if shards else 1)
    session.prompt(before, "none")
    found = session.prompt(small.prompt, "all")
    session.rewind(70)
    again = session.prompt(small.prompt, "all")
    session.close()
    assert expected is not None and found is not None and again is not None
    np.testing.assert_array_equal(again, found)
    # Sums in other orders put a few cached numbers on the neighbouring step: less than rounding all of them does.
    _, effect = small.exact(of_type)
    assert np.abs(found - expected).max() <= effect / 2


def of_37(config: object, path: object, n_ctx: int, limit: int) -> list[tuple[int, int]]:
    """Shards of 37 positions."""
    return [(first, min(first + 37, n_ctx)) for first in range(0, n_ctx, 37)]


def test_a_tile_is_replayed_for_what_is_filled(embedded: SmallModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer's tile runs once for as many positions as it has that are filled, whatever the context holds."""
    in_small_tiles(monkeypatch)
    session = Session(embedded.model, get_path("mla"), 4096, chunk=20)
    whole = 4 * session.model.device.subgroup_size
    session.prompt([3] * 20, "none")
    _, tiled = session._forward._tiled["tiled"]
    runs: list[int] = []
    for tile in tiled._tiles:
        monkeypatch.setattr(tile, "run", lambda items, depth: runs.append(int(depth)))
    for end, count in ((20, 20), (45, 5), (64, 20)):
        runs.clear()
        session.n_past = end - count
        session.prompt([3] * count, "none")
        assert sum(runs) == end * embedded.config.n_layer
        assert len(runs) == -(-end // whole) * embedded.config.n_layer
    session.close()
