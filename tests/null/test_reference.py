"""The oracle against itself and plain loops: all ways of attention, caches, chunks, causality, lazy weights."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from model.config import ModelConfig, expected_tensors
from model.gguf_file import GGUFFile, TensorInfo
from model.reference import PATHS, DequantisedWeights, Reference
from model.reference.attention import LayerCache, RowCache, latent_attention
from model.reference.moe import moe_ffn
from model.reference.ops import route
from model.rope import frequencies
from tests.null.random_model import BASE, CONFIGS, random_tokens, random_weights
from vkbackend.errors import InputError

N_TOKENS = 17
# float32 against float64 was at most 9e-7 of the largest logit over all configs here; two such results, ten times.
ROUNDING = 2e-5


def reference(name: str, seed: int = 0, dtype: type = np.float32) -> Reference:
    config = CONFIGS[name]
    return Reference(random_weights(config, seed), config, dtype)


def prompt(model: Reference, seed: int = 1) -> list[int]:
    """Random tokens, none of them so near a tie that rounding could choose other experts."""
    while True:
        tokens = random_tokens(model.config, N_TOKENS, seed)
        if model.routing_margins(tokens).min() > 1e-4:
            return tokens
        seed += 1


def assert_close(got: np.ndarray, want: np.ndarray, share: float) -> None:
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= share * np.abs(want).max()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_ways_of_attention_agree(name: str, seed: int) -> None:
    model = reference(name, seed)
    tokens = prompt(model)
    latent, copied, expanded = (model.logits(tokens, path) for path in PATHS)
    assert latent.dtype == np.float32
    assert_close(latent, expanded, ROUNDING)
    np.testing.assert_array_equal(copied, latent)
    exact = reference(name, seed, np.float64)
    assert_close(latent, exact.logits(tokens, "expanded"), ROUNDING)
    assert_close(exact.logits(tokens, "latent"), exact.logits(tokens, "expanded"), 1e-13)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("chunk", [1, 5, N_TOKENS - 1, N_TOKENS + 3])
@pytest.mark.parametrize("name", ["glm", "yarn"])
def test_chunked_is_whole(name: str, path: str, chunk: int) -> None:
    model = reference(name)
    tokens = prompt(model)
    assert_close(model.logits(tokens, path, chunk=chunk), model.logits(tokens, path, chunk=N_TOKENS), ROUNDING)


@pytest.mark.parametrize("path", PATHS)
def test_later_tokens_do_not_change_earlier_logits(path: str) -> None:
    model = reference("glm", dtype=np.float64)
    tokens = prompt(model)
    changed = [*tokens[:9], *random_tokens(model.config, N_TOKENS - 9, 77)]
    before, after = model.logits(tokens, path), model.logits(changed, path)
    assert_close(after[:9], before[:9], 1e-13)
    assert np.abs(after[9:] - before[9:]).max() > 0.1


def test_earlier_tokens_and_their_order_do_change_later_logits() -> None:
    model = reference("glm", dtype=np.float64)
    tokens = prompt(model)
    tokens[1] = (tokens[0] + 1) % model.config.n_vocab
    swapped = [tokens[1], tokens[0], *tokens[2:]]
    assert np.abs(model.logits(tokens)[-1] - model.logits(swapped)[-1]).max() > 1e-3


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", CONFIGS)
def test_f16_cache_error_is_bounded(name: str, path: str) -> None:
    # Each cached number is off by at most 2^-11 of itself; three layers of it reach at most a few times that.
    model = reference(name)
    tokens = prompt(model)
    rounded = model.logits(tokens, path, cache_type=np.float16)
    assert_close(rounded, model.logits(tokens, path), 6 * 2**-11)
    assert np.abs(rounded - model.logits(tokens, path)).max() > 1e-6


def test_f16_cache_chunked_is_one_at_a_time() -> None:
    model = reference("glm")
    tokens = prompt(model)
    one = model.logits(tokens, cache_type=np.float16, chunk=1)
    assert_close(one, model.logits(tokens, cache_type=np.float16), ROUNDING)


def test_joint_kv_b_is_the_split_one() -> None:
    joint = CONFIGS["joint-kv-b"]
    weights = random_weights(joint, 3)
    split = dict(weights)
    for layer in range(joint.n_layer):
        kv_b = split.pop(f"blk.{layer}.attn_kv_b.weight")
        heads = np.split(kv_b, joint.n_head)
        split[f"blk.{layer}.attn_k_b.weight"] = np.stack([h[: joint.qk_nope].T for h in heads])
        split[f"blk.{layer}.attn_v_b.weight"] = np.stack([h[joint.qk_nope :] for h in heads])
    config = replace(joint, split_kv_b=True)
    assert {n: w.shape for n, w in split.items()} == expected_tensors(config)
    tokens = random_tokens(joint, N_TOKENS, 0)
    np.testing.assert_array_equal(Reference(weights, joint).logits(tokens), Reference(split, config).logits(tokens))


def looped_attention(x: np.ndarray, weights: dict[str, np.ndarray], c: ModelConfig) -> np.ndarray:
    """Expanded attention from the definition, number by number where it decides the layout. x [T, D] -> [T, D]."""
    w = {name.removeprefix("blk.0.").removesuffix(".weight"): v.astype(np.float64) for name, v in weights.items()}

    def norm(v: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return v / math.sqrt(np.mean(v**2) + c.rms_eps) * weight

    def rotate(v: np.ndarray, position: int) -> np.ndarray:
        pairs = v[0::2] + 1j * v[1::2]
        turned = pairs * np.exp([1j * position * c.rope_theta ** (-2 * i / c.qk_rope) for i in range(c.qk_rope // 2)])
        return np.stack([turned.real, turned.imag], axis=1).ravel()

    n_tokens = x.shape[0]
    out = np.zeros((n_tokens, c.n_head, c.v_head))
    q = [w["attn_q_b"] @ norm(w["attn_q_a"] @ v, w["attn_q_a_norm"]) for v in x]
    kv = [w["attn_kv_a_mqa"] @ v for v in x]
    latent = [norm(v[: c.kv_lora], w["attn_kv_a_norm"]) for v in kv]
    for h in range(c.n_head):
        for i in range(n_tokens):
            query = q[i][h * c.key_dim : (h + 1) * c.key_dim]
            query = np.concatenate([query[: c.qk_nope], rotate(query[c.qk_nope :], i)])
            scores = []
            for j in range(i + 1):
                k_nope = latent[j] @ w["attn_k_b"][h]  # [R] @ [R, N]
                key = np.concatenate([k_nope, rotate(kv[j][c.kv_lora :], j)])
                scores.append(query @ key / math.sqrt(c.key_dim))
            p = np.exp(np.array(scores) - max(scores))
            p /= p.sum()
            out[i, h] = sum(p[j] * (w["attn_v_b"][h] @ latent[j]) for j in range(i + 1))
    return out.reshape(n_tokens, -1) @ w["attn_output"].T


@pytest.mark.parametrize("path", PATHS)
def test_attention_against_plain_loops(path: str) -> None:
    weights = random_weights(BASE, 5)
    x = np.random.default_rng(6).standard_normal((6, BASE.n_embd)).astype(np.float32)
    cache = LayerCache(np.float32)
    weight = {n.removeprefix("blk.0.").removesuffix(".weight"): v for n, v in weights.items()}
    parts = [
        latent_attention(x[a:b], np.arange(a, b), frequencies(BASE), weight.__getitem__, BASE, cache, path)
        for a, b in ((0, 4), (4, 6))
    ]
    assert_close(np.concatenate(parts), looped_attention(x.astype(np.float64), weights, BASE), ROUNDING)


def test_moe_against_plain_loops() -> None:
    weights = {n.removeprefix("blk.1."): v for n, v in random_weights(BASE, 7).items()}
    x = np.random.default_rng(8).standard_normal((5, BASE.n_embd)).astype(np.float32)
    logits = x @ weights["ffn_gate_inp.weight"].T
    bias = weights["exp_probs_b.bias"]
    asked: set[int] = set()

    def expert(name: str, e: int) -> np.ndarray:
        asked.add(e)
        return weights[f"{name}.weight"][e]

    got = moe_ffn(x, logits, lambda name: weights[f"{name}.weight"], expert, bias, BASE)

    def ffn(v: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
        g = gate.astype(np.float64) @ v
        return down @ (g / (1 + np.exp(-g)) * (up @ v))

    ids, scales = route(logits, bias, BASE)
    want = np.zeros((5, BASE.n_embd))
    for t in range(5):
        want[t] = ffn(x[t], *(weights[f"ffn_{n}_shexp.weight"] for n in ("gate", "up", "down")))
        for e, scale in zip(ids[t], scales[t], strict=True):
            want[t] += scale * ffn(x[t], *(weights[f"ffn_{n}_exps.weight"][e] for n in ("gate", "up", "down")))
    assert_close(got, want, ROUNDING)
    assert asked == set(ids.ravel().tolist()) != set(range(BASE.n_expert))


@pytest.mark.parametrize("path", PATHS)
def test_generate_continues_as_logits_say(path: str) -> None:
    model = reference("glm")
    tokens = random_tokens(model.config, 7, 2)
    out = model.generate(tokens, 6, path, chunk=3)
    assert len(out) == 6
    logits = model.logits(tokens + out, path)
    assert out == logits[6:-1].argmax(axis=1).tolist()
    assert model.generate(tokens, 0, path) == []


def test_rewind_forgets() -> None:
    model = reference("glm")
    for path in PATHS:
        state = model.start(path)
        first = model.step([5, 6, 7, 8], state)
        model.step([1, 2, 3], state)
        state.rewind(2)
        assert state.n_past == 2
        again = model.step([7, 8], state)
        assert state.n_past == 4
        assert_close(again, first[2:], ROUNDING)


@pytest.mark.parametrize("rank", [64, 44])
def test_a_copy_of_the_values_is_quantised_in_blocks_of_its_own(rank: int) -> None:
    """The row's last block of 32 holds rotated numbers beside latent ones where no block ends with these."""
    config = replace(BASE, kv_lora=rank, qk_rope=12)
    weights = random_weights(config, 5)
    weight = {n.removeprefix("blk.0.").removesuffix(".weight"): v for n, v in weights.items()}
    x = np.random.default_rng(6).standard_normal((6, config.n_embd)).astype(np.float32)
    cached = {}
    for path in ("latent", "latent_v"):
        cached[path] = LayerCache(GGMLQuantizationType.Q8_0)
        where = np.arange(6), frequencies(config), weight.__getitem__, config, cached[path], path
        latent_attention(x, *where)
    none = np.zeros((0, config.latent_dim), np.float32)
    rows = cached["latent"].rows.append(none)
    np.testing.assert_array_equal(cached["latent_v"].rows.append(none), rows)
    values = cached["latent_v"].values.append(none[:, :rank])
    whole = rank // 32 * 32
    np.testing.assert_array_equal(values[:, :whole], rows[:, :whole])
    assert values.shape == (6, rank) and cached["latent"].values.length == 0
    kv = x.astype(np.float64) @ weight["attn_kv_a_mqa"].T.astype(np.float64)
    latent = kv[:, :rank] / np.sqrt((kv[:, :rank] ** 2).mean(axis=1, keepdims=True) + config.rms_eps)
    latent *= weight["attn_kv_a_norm"]
    for block in range(0, rank, 32):
        part = latent[:, block : min(block + 32, rank)]
        step = np.abs(part).max(axis=1, keepdims=True) / 127  # of Q8_0: a block's largest is 127; its scale an f16
        error = np.abs(values[:, block : block + 32] - part)
        assert (error <= step * (0.5 + 127 * 2.0**-11 + 0.01)).all()
    assert rank % 32 == 0 or not np.array_equal(values[:, whole:], rows[:, whole:rank])


def test_row_cache_grows_and_rounds() -> None:
    cache = RowCache(np.float16)
    rows = np.random.default_rng(0).standard_normal((11, 3)).astype(np.float32)
    for a, b in ((0, 1), (1, 7), (7, 11)):
        got = cache.append(rows[a:b])
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, rows.astype(np.float16).astype(np.float32))


def test_trace_names_every_intermediate() -> None:
    model = reference("glm")
    seen: dict[tuple[str, int], tuple[int, ...]] = {}
    model.step([1, 2], model.start(), lambda name, layer, array: seen.update({(name, layer): array.shape}))
    names = ["attn_norm", "attn_out", "ffn_inp", "ffn_norm", "ffn_out", "l_out"]
    assert seen == {(n, i): (2, BASE.n_embd) for n in names for i in range(3)} | {
        ("ffn_moe_logits", i): (2, BASE.n_expert) for i in (1, 2)
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.logits([]), "tokens have shape (0,): give at least one token id, in one list"),
        (lambda m: m.logits([3, 101]), "token 101 is outside the vocabulary: give ids from 0 to 100"),
        (lambda m: m.logits([-1]), "token -1 is outside the vocabulary: give ids from 0 to 100"),
        (lambda m: m.logits([1], chunk=0), "chunk 0 is not a number of tokens: give 1 or more"),
        (lambda m: m.logits([1], "mla"), "reference path 'mla' is unknown: choose one of latent, latent_v, expanded"),
    ],
)
def test_errors(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as error:
        call(reference("glm"))
    assert str(error.value) == message


# --- weights dequantised on use ---------------------------------------------------------------------------------------

QUANTISED = replace(
    BASE,
    n_embd=64,
    n_head=3,
    q_lora=32,
    kv_lora=32,
    qk_nope=32,
    qk_rope=8,
    v_head=32,
    n_ff=96,
    n_ff_exp=32,
)


def quantised_file() -> tuple[GGUFFile, dict[str, np.ndarray]]:
    """A GGUF in memory, matrices as Q8_0, and what its weights are as float32."""
    tensors, plain = {}, {}
    for name, values in random_weights(QUANTISED, 9).items():
        is_matrix = values.ndim > 1
        kind = GGMLQuantizationType.Q8_0 if is_matrix else GGMLQuantizationType.F32
        data = quantize(values, kind)
        plain[name] = dequantize(data, kind).reshape(values.shape)
        flat = np.ascontiguousarray(data).view(np.uint8).ravel()
        tensors[name] = TensorInfo(name, kind, values.shape, flat.nbytes, flat)
    return GGUFFile(Path("random.gguf"), {}, tensors), plain


@pytest.mark.parametrize("budget", [1 << 30, 20_000, 0])
def test_quantised_weights_give_the_same_logits_at_any_budget(budget: int) -> None:
    file, plain = quantised_file()
    weights = DequantisedWeights(file, budget)
    assert set(weights) == set(plain) and len(weights) == len(plain)
    tokens = random_tokens(QUANTISED, 9, 0)
    for path in PATHS:
        want = Reference(plain, QUANTISED).logits(tokens, path)
        np.testing.assert_array_equal(Reference(weights, QUANTISED).logits(tokens, path), want)


def test_parts_of_a_quantised_tensor() -> None:
    file, plain = quantised_file()
    weights = DequantisedWeights(file)
    name = "blk.1.ffn_down_exps.weight"
    tensor, want = weights[name], plain[name]
    assert tensor.shape == want.shape
    np.testing.assert_array_equal(tensor[4], want[4])
    np.testing.assert_array_equal(tensor[2:7], want[2:7])
    np.testing.assert_array_equal(tensor[7:99], want[7:99])
    np.testing.assert_array_equal(tensor[np.array([8, 0, 8])], want[[8, 0, 8]])
    np.testing.assert_array_equal(np.asarray(tensor), want)
    assert np.asarray(tensor, np.float64).dtype == np.float64
