"""Norm, rope, cache writes, softmax, gating and the greedy choice, each by itself against NumPy in float64.

Tolerances count roundings to f32 (U each) and take the precision of exp, 1 / sqrt and division from the Vulkan
specification, "Precision and Operation of SPIR-V Instructions": 3 + 2 |x|, 2 and 2.5 units in the last place.
"""

from dataclasses import replace

import numpy as np
import pytest
from helpers import CANARY, U, canary, fetch, launch, params, upload

from model import kernels
from model.config import ModelConfig
from model.presets import PRESETS
from model.reference import ops
from model.rope import plain_frequencies
from model.scratch import ARGMAX_GROUPS, rope_tables
from vkbackend.buffer import Buffer
from vkbackend.device import Device

GLM = PRESETS["glm-4.7-flash"]
F16_STEP = 2.0**-10  # one unit in the last place: GLSL leaves the rounding of packHalf2x16 to the device
UNTOUCHED = 0x7BADF00D  # a word of two finite halves


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def words(device: Device, count: int) -> Buffer:
    return upload(device, np.full(count, UNTOUCHED, np.uint32))


@pytest.mark.parametrize("width", [4, 44, 52, 256, 1028])
@pytest.mark.parametrize("last", [False, True])
def test_rms_norm(device: Device, width: int, last: bool) -> None:
    rng = np.random.default_rng(width)
    tokens, capacity, x_token, y_token = 3, 5, width + 8, width + 4
    x, weight = floats(rng, capacity, x_token) * 7, floats(rng, width)
    x[1] *= 1e-4  # eps dominates
    x[2, :width] = 0 if not last else x[2, :width]
    out = canary(device, capacity, y_token)
    kernel = kernels.RMS_NORM.variant(LAST_TOKEN="1") if last else kernels.RMS_NORM
    buffers = {"x": upload(device, x), "weight": upload(device, weight), "y": out, "params": params(device, 9, tokens)}
    push = {"width": width, "x_token": x_token, "y_token": y_token, "eps": 1e-5}
    launch(device, kernel, buffers, (1 if last else capacity, 1, 1), push=push)
    found = fetch(out, capacity, y_token)
    rows = x[tokens - 1 : tokens] if last else x[:tokens]
    expected = ops.rms_norm(rows[:, :width].astype(np.float64), weight.astype(np.float64), float(np.float32(1e-5)))
    # The mean of squares is off by at most width / 4 + 3 roundings, its root by half of that.
    tolerance = (width / 8 + 8) * U * np.abs(expected)
    assert (np.abs(found[: len(rows), :width] - expected) <= tolerance).all()
    assert (found[: len(rows), width:] == CANARY).all() and (found[len(rows) :] == CANARY).all()


def rope_error(pairs: np.ndarray) -> np.ndarray:
    """Cosine and sine come from two rounded factors each (4 roundings), two products and a sum. Bound per element."""
    size = np.abs(pairs[..., 0::2]) + np.abs(pairs[..., 1::2])
    error: np.ndarray = np.repeat(8 * U * size, 2, axis=-1).astype(np.float64)
    return error


@pytest.mark.parametrize("rope", [2, 12, 64])
@pytest.mark.parametrize("n_past", [0, 250, 202_747])
@pytest.mark.parametrize("in_place", [False, True])
def test_rope_query(device: Device, rope: int, n_past: int, in_place: bool) -> None:
    """The pair of tables gives the angle's own cosine at GLM-4.7-Flash's last positions as at the first."""
    rng = np.random.default_rng(rope)
    tokens, heads, nope = 5, 3, 20
    config = _with_rope(rope)
    table, n_high = rope_tables(config, config.n_ctx_train)
    q = floats(rng, tokens, heads, nope + rope)
    out_head, out_rope = (nope + rope, nope) if in_place else (rope + 44, 44)
    source = upload(device, q)
    out = source if in_place else canary(device, tokens, heads, out_head)
    buffers = {
        "q": source,
        "rope_tables": upload(device, table),
        "params": params(device, n_past, tokens - 1),
        "out": out,
    }
    push = {"heads": heads, "rope": rope, "q_head": nope + rope, "q_rope": nope}
    push |= {"out_head": out_head, "out_rope": out_rope, "n_high": n_high}
    launch(device, kernels.ROPE_QUERY, buffers, (tokens, 1, 1), push=push)
    found = fetch(out, tokens, heads, out_head)
    positions = np.arange(n_past, n_past + tokens - 1)
    frequencies = plain_frequencies(rope, config.rope_theta)
    expected = ops.rope(q[:-1, :, nope:].astype(np.float64), positions, frequencies)
    assert (np.abs(found[:-1, :, out_rope:] - expected) <= rope_error(q[:-1, :, nope:])).all()
    rest = q if in_place else np.full(found.shape, CANARY)
    np.testing.assert_array_equal(found[-1], rest[-1])
    np.testing.assert_array_equal(found[..., :out_rope], rest[..., :out_rope])


def _with_rope(rope: int) -> ModelConfig:
    return replace(GLM, qk_rope=rope)


@pytest.mark.parametrize("latent", [44, 64])
@pytest.mark.parametrize("cache_type", ["f16", "f32"])
@pytest.mark.parametrize("variant", ["latent", "redundant values", "per head"])
def test_latent_cache(device: Device, latent: int, variant: str, cache_type: str) -> None:
    rng = np.random.default_rng(latent)
    tokens, n_past, n_ctx, rope = 3, 7, 16, 12
    config = _with_rope(rope)
    table, n_high = rope_tables(config, 1024)
    kv, weight = floats(rng, tokens + 1, latent + rope), floats(rng, latent)
    number = np.float32 if cache_type == "f32" else np.float16
    each = np.dtype(number).itemsize
    n_words = n_ctx * (latent + rope) * each // 4
    cache = canary(device, tokens + 1, latent + rope) if variant == "per head" else words(device, n_words)
    kernel = {
        "latent": kernels.LATENT_CACHE,
        "redundant values": kernels.LATENT_CACHE_V,
        "per head": kernels.LATENT_EXPAND,
    }[variant]
    buffers = {
        "kv": upload(device, kv),
        "weight": upload(device, weight),
        "rope_tables": upload(device, table),
        "params": params(device, n_past, tokens),
        "cache": cache,
    }
    values = words(device, n_ctx * latent * each // 4)
    if variant == "redundant values":
        buffers["values"] = values
    push = {"latent": latent, "rope": rope, "n_high": n_high, "eps": float(GLM.rms_eps)}
    launch(device, kernels.for_cache(kernel, cache_type), buffers, (tokens + 1, 1, 1), push=push)

    exact = kv[:tokens].astype(np.float64)
    eps = float(np.float32(GLM.rms_eps))
    normed = ops.rms_norm(exact[:, :latent], weight.astype(np.float64), eps)
    positions = np.arange(n_past, n_past + tokens)
    rotated = ops.rope(exact[:, latent:], positions, plain_frequencies(rope, config.rope_theta))
    expected = np.concatenate([normed, rotated], axis=1)
    error = np.concatenate([(latent / 8 + 8) * U * np.abs(normed), rope_error(kv[:tokens, latent:])], axis=1)
    if variant == "per head":
        found = fetch(cache, tokens + 1, latent + rope)
        assert (np.abs(found[:tokens] - expected) <= error).all()
        assert (found[tokens] == CANARY).all()
        return
    if cache_type == "f16":
        error += F16_STEP * np.abs(expected) + 2.0**-24
    _check_rows(cache, number, n_ctx, n_past, expected, error)
    if variant == "redundant values":
        _check_rows(values, number, n_ctx, n_past, expected[:, :latent], error[:, :latent])


def _check_rows(
    buffer: Buffer, number: type[np.floating], n_ctx: int, n_past: int, expected: np.ndarray, error: np.ndarray
) -> None:
    """Rows from ``n_past`` of a cache of such numbers are ``expected`` within ``error``, all others untouched."""
    tokens, width = expected.shape
    rows = np.asarray(buffer.download(number, n_ctx * width)).reshape(n_ctx, width)
    assert (np.abs(rows[n_past : n_past + tokens] - expected) <= error).all()
    others = np.delete(rows, np.s_[n_past : n_past + tokens], axis=0)
    assert (np.ascontiguousarray(others).view(np.uint32) == UNTOUCHED).all()


@pytest.mark.parametrize("cache_type", ["f16", "f32"])
@pytest.mark.parametrize(("n_past", "tokens"), [(0, 1), (3, 1), (4, 1), (3, 4), (2, 5)])
def test_cache_per_head_keeps_its_neighbours(device: Device, n_past: int, tokens: int, cache_type: str) -> None:
    """Odd positions share a word of the transposed values with even ones; heads lie in two buffers."""
    rng = np.random.default_rng(n_past)
    heads, nope, rope, v_dim, latent, n_ctx = 5, 20, 12, 13, 44, 32

    def halves(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float16)

    # Inputs that f16 holds are stored without rounding, so results are compared bit for bit.
    k_nope, expanded, v_new = (
        halves(tokens, heads, nope),
        halves(tokens, latent + rope),
        halves(tokens, heads, v_dim),
    )
    number = np.float32 if cache_type == "f32" else np.float16
    keys = halves(heads, n_ctx, nope + rope + 4).astype(number)
    values = halves(heads, v_dim, n_ctx).astype(number)
    buffers = {
        "k_nope": upload(device, k_nope.astype(np.float32)),
        "latent_rope": upload(device, expanded.astype(np.float32)),
        "v_new": upload(device, v_new.astype(np.float32)),
        "params": params(device, n_past, tokens),
    }
    found_keys, found_values = [], []
    for first, end in ((0, 2), (2, heads)):
        k_cache, v_cache = upload(device, keys[first:end]), upload(device, values[first:end])
        push = {"head_first": first, "heads": heads, "nope": nope, "rope": rope}
        push |= {"v_dim": v_dim, "latent": latent, "n_ctx": n_ctx, "key_row": nope + rope + 4}
        here = buffers | {"k_cache": k_cache, "v_cache": v_cache}
        kernel = kernels.for_cache(kernels.CACHE_PER_HEAD, cache_type)
        launch(device, kernel, here, (end - first, 1, 1), push=push)
        found_keys.append(k_cache.download(number, keys[first:end].size))
        found_values.append(v_cache.download(number, values[first:end].size))
    for t in range(tokens):
        keys[:, n_past + t, :nope] = k_nope[t]
        keys[:, n_past + t, nope : nope + rope] = expanded[t, latent:]
        values[:, :, n_past + t] = v_new[t]
    np.testing.assert_array_equal(np.concatenate(found_keys), keys.reshape(-1))
    np.testing.assert_array_equal(np.concatenate(found_values), values.reshape(-1))


@pytest.mark.parametrize(("n_past", "tokens"), [(0, 1), (0, 5), (29, 1), (31, 1), (30, 5), (90, 6)])
def test_softmax_causal(device: Device, n_past: int, tokens: int) -> None:
    rng = np.random.default_rng(n_past)
    heads, capacity, n_ctx, scale = 3, 7, 96, float(np.float32(0.171))
    scores = floats(rng, heads, capacity, n_ctx) * 40
    buffer = upload(device, scores)
    buffers = {"scores": buffer, "params": params(device, n_past, tokens)}
    push = {"capacity": capacity, "n_ctx": n_ctx, "scale": scale}
    launch(device, kernels.SOFTMAX_CAUSAL, buffers, (capacity, heads, 1), push=push)
    found = fetch(buffer, heads, capacity, n_ctx)
    read = -(-(n_past + tokens) // 32) * 32
    for t in range(tokens):
        visible = n_past + t + 1
        scaled = scale * scores[:, t, :visible].astype(np.float64)
        below = scaled.max(axis=-1, keepdims=True) - scaled
        expected = ops.softmax(scaled)
        # exp's argument rounds twice and exp itself to 3 + 2 |x| places; as much again in the sum it is divided by.
        tolerance = 2 * U * (2 * (3 + 2 * below) + 2 * below + visible) * expected + 1e-37
        assert (np.abs(found[:, t, :visible] - expected) <= tolerance).all()
        assert (found[:, t, visible:read] == 0).all()
    np.testing.assert_array_equal(found[:, tokens:], scores[:, tokens:])
    np.testing.assert_array_equal(found[:, :, read:], scores[:, :, read:])


@pytest.mark.parametrize("width", [4, 36, 100])
def test_silu_mul(device: Device, width: int) -> None:
    rng = np.random.default_rng(width)
    tokens, capacity = 2, 3
    gate, up = floats(rng, capacity, width) * 4, floats(rng, capacity, width)
    gate[0, :4] = (-200, 200, 0, -60)
    buffer = upload(device, gate)
    buffers = {"gate": buffer, "up": upload(device, up), "params": params(device, 0, tokens)}
    grid = (-(-width // 4 // device.subgroup_size), capacity, 1)
    launch(device, kernels.SILU_MUL, buffers, grid, push={"per_token": width})
    found = fetch(buffer, capacity, width)
    exact = gate.astype(np.float64)
    expected = ops.silu(exact) * up
    tolerance = 2 * U * (2 * (3 + 2 * np.abs(exact)) + 5) * np.abs(expected) + 1e-37
    assert (np.abs(found - expected) <= tolerance)[:tokens].all()
    np.testing.assert_array_equal(found[tokens:], gate[tokens:])


LOGITS = {
    "one": np.array([-3.0]),
    "fewer than groups": np.array([0.5, -1, 7, 7, 2]),
    "no multiple of the groups": np.random.default_rng(0).standard_normal(301),
    "many": np.random.default_rng(1).standard_normal(2048),
    "tie far apart": np.where(np.isin(np.arange(1000), [301, 302, 999]), 5.0, 0.0),
    "all equal": np.full(700, -2.5),
    "one above minus infinity": np.where(np.arange(500) == 499, -1e30, -np.inf),
    "all minus infinity": np.full(130, -np.inf),
    "last": np.arange(6401.0),
}


@pytest.mark.parametrize("case", LOGITS)
def test_argmax_takes_the_lowest_id_among_equals(device: Device, case: str) -> None:
    logits = LOGITS[case].astype(np.float32)
    best, token = upload(device, np.zeros(2 * ARGMAX_GROUPS, np.uint32)), upload(device, np.zeros(1, np.uint32))
    # Larger numbers stand behind the logits: they must not win.
    buffer = upload(device, np.concatenate([logits, np.full(64, 1e9, np.float32)]))
    first, last = {"logits": buffer, "best": best}, {"best": best, "token": token}
    push = {"count": logits.size, "share": -(-logits.size // ARGMAX_GROUPS)}
    launch(device, kernels.ARGMAX, first, (ARGMAX_GROUPS, 1, 1), push=push)
    launch(device, kernels.ARGMAX_FINAL, last, (1, 1, 1), push={"count": ARGMAX_GROUPS, "share": ARGMAX_GROUPS})
    assert int(token.download(np.uint32, 1)[0]) == int(np.argmax(logits))
