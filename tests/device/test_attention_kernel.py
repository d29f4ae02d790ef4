"""Fused attention over the latent cache, in all its cuts, against NumPy in float64."""

from itertools import pairwise

import numpy as np
import pytest
from helpers import CANARY, U, canary, fetch, launch, params, upload

from model import kernels
from model.attention import AttentionShape
from model.presets import PRESETS
from model.reference.ops import softmax
from vkbackend.device import Device

# Latent and rope widths: whole words a lane on subgroups of 8; neither a whole number on any subgroup.
WIDTHS = {"64 + 8": (64, 8), "44 + 12": (44, 12)}
# Arrays in a GPU's registers, and in a CPU's memory: both forms run on any device.
FORMS: tuple[dict[str, str], ...] = ({}, {"ARRAYS_IN_MEMORY": "1"})
HEADS, SCALE = 6, float(np.float32(0.1443))


def exact(q: np.ndarray, rows: np.ndarray, values: np.ndarray, n_past: int) -> tuple[np.ndarray, np.ndarray]:
    """Causal attention in float64, and what f32 may differ by. q [T, H, R + P], rows [n, R + P], values [n, R]."""
    q64, rows64, values64 = q.astype(np.float64), rows.astype(np.float64), values.astype(np.float64)
    out, error = np.empty((*q.shape[:2], values.shape[1])), np.empty((*q.shape[:2], values.shape[1]))
    for t in range(q.shape[0]):
        n = n_past + t + 1
        scores = SCALE * q64[t] @ rows64[:n].T  # [H, n]
        weights = softmax(scores)
        out[t] = weights @ values64[:n]
        # A score sums R + P products, by pairs in the lanes; a weight is exp of it (3 + 2 |x| places), rescaled at each
        # tile and divided by a sum that is off by as much again; the output sums n weighted values.
        sums = SCALE * np.abs(q64[t]) @ np.abs(rows64[:n]).T
        score_error = U * (q.shape[-1] + 3) * sums.max(axis=1, keepdims=True)
        spread = np.ptp(scores, axis=1, keepdims=True)
        relative = 2 * (score_error + 2 * U * (3 + 2 * spread) + U * n)
        error[t] = (relative + U * n) * (weights @ np.abs(values64[:n]))
    return out, error


def attend(
    device: Device,
    widths: tuple[int, int],
    heads_per_group: int,
    splits: int,
    n_past: int,
    tokens: int,
    redundant: bool = False,
    shards: tuple[tuple[int, int], ...] = (),
    cache_type: str = "f16",
) -> None:
    """Run the kernel (and the one that joins splits) and hold every output against ``exact``."""
    (latent, rope), rng = widths, np.random.default_rng(n_past + tokens)
    capacity, n_ctx = (1, n_past + 9) if tokens == 1 else (tokens + 2, n_past + tokens + 9)
    q = (2 * rng.standard_normal((capacity, HEADS, latent + rope))).astype(np.float32)
    number = np.float32 if cache_type == "f32" else np.float16
    rows = rng.standard_normal((n_ctx, latent + rope)).astype(number)
    values = rng.standard_normal((n_ctx, latent)).astype(number) if redundant else rows[:, :latent]
    for form in FORMS:
        slots = splits * max(1, len(shards))
        out, parts = canary(device, capacity, HEADS, latent), canary(device, capacity * slots, HEADS, latent)
        stats = canary(device, capacity * slots, HEADS, 2)
        buffers = {
            "q": upload(device, q),
            "cache": upload(device, rows),
            "out": parts if slots > 1 else out,
            "stats": stats,
            "params": params(device, n_past, tokens),
        }
        if redundant:
            buffers["values"] = upload(device, values)
        spec = {
            "LATENT": latent,
            "ROPE": rope,
            "HEADS": heads_per_group,
            "TILE": 8,
            "SPLITS": splits,
            "LATENT_WORDS": -(-latent // 2 // device.subgroup_size),
            "ROPE_WORDS": -(-rope // 2 // device.subgroup_size),
        }
        kernel = kernels.for_cache(kernels.ATTENTION_LATENT_V if redundant else kernels.ATTENTION_LATENT, cache_type)
        grid = (HEADS // heads_per_group, splits, capacity)
        push: dict[str, int | float] = {"heads": HEADS, "scale": SCALE}
        for index, (first, end) in enumerate(shards):
            sharded = kernels.for_shard(kernel.variant(**form), kernels.SHARD_SLOTS_PUSH)
            own = {"cache": upload(device, rows[first:end])}
            own |= {"values": upload(device, values[first:end])} if redundant else {}
            of = {"first": first, "last": end, "slot_first": index * splits, "slots": slots}
            launch(device, sharded, buffers | own, grid, spec=spec, push=push | of)
        if not shards:
            launch(device, kernel.variant(**form), buffers, grid, spec=spec, push=push)
        if slots > 1:
            joined = {"parts": parts, "stats": stats, "out": out}
            push = {"latent": latent, "splits": slots}
            launch(device, kernels.ATTENTION_COMBINE, joined, (tokens * HEADS, 1, 1), push=push)
        found = fetch(out, capacity, HEADS, latent)
        expected, error = exact(q[:tokens], rows, values, n_past)
        assert (np.abs(found[:tokens] - expected) <= error).all()
        assert (found[tokens:] == CANARY).all()


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("n_past", [0, 1, 6, 7, 8, 39, 200])
def test_one_token_split_over_the_cache(device: Device, widths: str, n_past: int) -> None:
    """More splits than tiles leaves some with nothing; a cache of one row leaves all but one so."""
    attend(device, WIDTHS[widths], heads_per_group=2, splits=5, n_past=n_past, tokens=1)


@pytest.mark.parametrize("heads_per_group", [1, 3, 6])
@pytest.mark.parametrize(("n_past", "tokens"), [(0, 1), (0, 9), (7, 3), (33, 8)])
def test_chunk_is_causal(device: Device, heads_per_group: int, n_past: int, tokens: int) -> None:
    attend(device, WIDTHS["44 + 12"], heads_per_group, splits=1, n_past=n_past, tokens=tokens)


@pytest.mark.parametrize(("splits", "n_past", "tokens"), [(5, 0, 1), (5, 50, 1), (1, 0, 5), (1, 21, 5)])
def test_values_from_their_own_copy(device: Device, splits: int, n_past: int, tokens: int) -> None:
    """The copy holds other numbers here, to see that it is the one that is read."""
    attend(device, WIDTHS["44 + 12"], 2, splits, n_past, tokens, redundant=True)


@pytest.mark.parametrize("redundant", [False, True])
@pytest.mark.parametrize(("splits", "n_past", "tokens"), [(1, 0, 1), (5, 50, 1), (1, 3, 9), (1, 0, 5), (1, 21, 5)])
def test_cache_in_shards(device: Device, splits: int, n_past: int, tokens: int, redundant: bool) -> None:
    """Also shards that end within a chunk, and those that a token does not see yet."""
    end = n_past + tokens + 9
    edges = (0, 7, 8, 20, end) if end > 20 else (0, 1, 4, end)
    shards = tuple(pairwise(edges))
    attend(device, WIDTHS["44 + 12"], 2, splits, n_past, tokens, redundant, shards)


@pytest.mark.parametrize("redundant", [False, True])
@pytest.mark.parametrize(("splits", "tokens", "shards"), [(1, 5, ()), (5, 1, ()), (2, 1, ((0, 7), (7, 20), (20, 40)))])
def test_cache_of_f32(
    device: Device, splits: int, tokens: int, shards: tuple[tuple[int, int], ...], redundant: bool
) -> None:
    attend(device, WIDTHS["44 + 12"], 2, splits, 24, tokens, redundant, shards, cache_type="f32")


def test_scores_far_apart_and_far_from_zero(device: Device) -> None:
    """Online softmax must not overflow where exp of a score would, nor lose a later, far greater one."""
    latent, rope = WIDTHS["64 + 8"]
    n = 40
    rows = np.zeros((n, latent + rope), np.float16)
    rows[:, 0] = np.linspace(-1000, 1000, n)
    rows[:, 1] = np.arange(n)
    q = np.zeros((1, HEADS, latent + rope), np.float32)
    q[..., 0] = 30
    stats, out = canary(device, HEADS, 2), canary(device, HEADS, latent)
    buffers = {"q": upload(device, q), "cache": upload(device, rows), "out": out, "stats": stats}
    words = [-(-w // 2 // device.subgroup_size) for w in (latent, rope)]
    spec = {"LATENT": latent, "ROPE": rope, "HEADS": 6, "TILE": 8, "SPLITS": 1}
    spec |= {"LATENT_WORDS": words[0], "ROPE_WORDS": words[1]}
    everything = buffers | {"params": params(device, n - 1, 1)}
    launch(device, kernels.ATTENTION_LATENT, everything, (1, 1, 1), spec=spec, push={"heads": HEADS, "scale": 1.0})
    found = fetch(out, HEADS, latent)
    np.testing.assert_array_equal(found[:, 0], 1000)  # all weight on the last row
    np.testing.assert_array_equal(found[:, 1], n - 1)


def test_cut_fits_the_device_and_divides_the_heads(device: Device) -> None:
    config = PRESETS["glm-4.7-flash"]
    shape = AttentionShape.choose(device, config)
    assert config.n_head % shape.heads == 0
    assert shape.latent_words * device.subgroup_size * 2 >= config.kv_lora
    assert shape.rope_words * device.subgroup_size * 2 >= config.qk_rope
    assert shape.splits >= 1
