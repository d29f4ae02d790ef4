"""Rotation and what a chunk adds to a cache: rope_query, latent_cache, cache_per_head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from harness.oracles.activations import floats, norm_error
from harness.oracles.case import CANARY, Case, Draft, Expected, Target, U
from harness.oracles.latent_rows import Stored
from model import kernels
from model.config import ModelConfig
from model.presets import PRESETS
from model.reference import ops
from model.rope import plain_frequencies
from model.scratch import rope_tables
from vkbackend.kernel import Kernel
from vkbackend.physical import DeviceInfo

GLM = PRESETS["glm-4.7-flash"]
Doubles = NDArray[np.float64]


def with_rope(rope: int) -> ModelConfig:
    return replace(GLM, qk_rope=rope)


def rotated(x: NDArray[np.float32], n_past: int) -> Doubles:
    """``x`` [T, ..., P] at the positions from ``n_past`` on, in float64."""
    positions = np.arange(n_past, n_past + len(x))
    frequencies = plain_frequencies(x.shape[-1], GLM.rope_theta)
    return ops.rope(x.astype(np.float64), positions, frequencies).astype(np.float64)


def rope_error(pairs: NDArray[np.float32]) -> Doubles:
    """Cosine and sine come from two rounded factors each (4 roundings), two products and a sum. Bound per element."""
    size = np.abs(pairs[..., 0::2]) + np.abs(pairs[..., 1::2])
    error: Doubles = np.repeat(8 * U * size, 2, axis=-1).astype(np.float64)
    return error


def rope_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    rope: int,
    n_past: int,
    in_place: bool,
    *,
    heads: int = 3,
    tokens: int = 4,
) -> Case:
    """The last part of every head's query, rotated in place or into rows of another width; one token is not asked for.

    The pair of tables must give the angle's own cosine at GLM-4.7-Flash's last positions as at the first.
    """
    draft = Draft(info, f"{tokens} tokens, {heads} heads of {rope} at {n_past}" + (", in place" if in_place else ""))
    capacity, nope = tokens + 1, 20
    table, n_high = rope_tables(with_rope(rope), GLM.n_ctx_train)
    q = floats(rng, capacity, heads, nope + rope)
    out_head, out_rope = (nope + rope, nope) if in_place else (rope + 44, 44)
    source = draft.upload(q)
    out = source if in_place else draft.canary(capacity, heads, out_head)
    buffers = {"q": source, "rope_tables": draft.upload(table), "params": draft.params(n_past, tokens), "out": out}
    push = {"heads": heads, "rope": rope, "q_head": nope + rope, "q_rope": nope}
    push |= {"out_head": out_head, "out_rope": out_rope, "n_high": n_high}
    draft.launch(kernels.ROPE_QUERY, buffers, (capacity, 1, 1), push=push)
    expected = q.astype(np.float64) if in_place else np.full((capacity, heads, out_head), float(CANARY))
    tolerance = np.zeros(expected.shape)
    expected[:tokens, :, out_rope:] = rotated(q[:tokens, :, nope:], n_past)
    tolerance[:tokens, :, out_rope:] = rope_error(q[:tokens, :, nope:])
    return draft.case({out: Expected(expected, tolerance=tolerance, axes=("token", "head", "element"))})


def rope_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """The first, the last and a random position, across an edge of the coarse table; parts narrow and wide."""
    past = int(rng.integers(1, GLM.n_ctx_train - 9))
    for rope, n_past, tokens in (
        (2, 0, 1),
        (12, 250, 9),
        (64, GLM.n_ctx_train - 5, 4),
        (2 * int(rng.integers(1, 65)), past, 5),
    ):
        yield rope_case(target.info, rng, rope, n_past, False, heads=int(rng.integers(1, 7)), tokens=tokens)
        yield rope_case(target.info, rng, rope, n_past, True, heads=3, tokens=tokens)


def added_rows(kv: NDArray[np.float32], weight: NDArray[np.float32], n_past: int) -> tuple[Doubles, Doubles]:
    """What tokens of ``kv`` [T, R + P] add to a latent cache after ``n_past``, and how far f32 may be from it."""
    latent = weight.size
    normed = ops.rms_norm(kv[:, :latent].astype(np.float64), weight.astype(np.float64), float(np.float32(GLM.rms_eps)))
    added = np.concatenate([normed, rotated(kv[:, latent:], n_past)], axis=1)
    return added, np.concatenate([norm_error(normed), rope_error(kv[:, latent:])], axis=1)


def latent_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    kernel: Kernel,
    *,
    latent: int,
    rope: int,
    n_past: int,
    tokens: int,
    edges: tuple[int, ...] = (),
) -> Case:
    """What ``tokens`` add to a cache of 16 positions more; with ``edges`` one launch for each range between them."""
    macros = kernel.macros
    n_ctx, capacity = n_past + tokens + 6, tokens + 1
    draft = Draft(info, f"{tokens} tokens of {latent} + {rope} after {n_past}" + (f", shards {edges}" if edges else ""))
    table, n_high = rope_tables(with_rope(rope), n_ctx)
    kv_first = 4  # another product's output stands before each token's
    found_beside, weight = floats(rng, capacity, kv_first + latent + rope + 2), floats(rng, latent)
    kv = found_beside[:, kv_first : kv_first + latent + rope]
    buffers = {"kv": draft.upload(found_beside), "weight": draft.upload(weight), "rope_tables": draft.upload(table)}
    buffers["params"] = draft.params(n_past, tokens)
    added, error = added_rows(kv[:tokens], weight, n_past)
    push: dict[str, int | float] = {"latent": latent, "rope": rope, "n_high": n_high, "eps": float(GLM.rms_eps)}
    push |= {"kv_first": kv_first, "kv_token": found_beside.shape[1]}
    if "PER_HEAD" in macros:
        out = draft.canary(capacity, latent + rope)
        draft.launch(kernel, buffers | {"cache": out}, (capacity, 1, 1), push=push)
        expected, tolerance = np.full((capacity, latent + rope), float(CANARY)), np.zeros((capacity, latent + rope))
        expected[:tokens], tolerance[:tokens] = added, error
        return draft.case({out: Expected(expected, tolerance=tolerance, axes=("token", "element"))})
    stored = Stored.of(kernel)
    rows = {"cache": (latent + rope, added, error)}
    if "REDUNDANT_V" in macros:
        rows["values"] = latent, added[:, :latent], error[:, :latent]
    found = {}
    for first, end in list(pairwise(edges)) or [(0, n_ctx)]:
        made = {name: stored.empty(n_ctx, width)[first:end] for name, (width, _, _) in rows.items()}
        buffers_here = {name: draft.upload(before) for name, before in made.items()}
        here = push | ({"first": first, "last": end} if "SHARD" in macros else {})
        draft.launch(kernel, buffers | buffers_here, (capacity, 1, 1), push=here)
        written = slice(max(n_past, first), max(min(n_past + tokens, end), max(n_past, first)))
        of_tokens = slice(written.start - n_past, written.stop - n_past)
        for name, (width, values, of_values) in rows.items():
            off = of_values + stored.error(values)
            found[buffers_here[name]] = stored.expected(
                made[name],
                width,
                slice(written.start - first, written.stop - first),
                values[of_tokens],
                off[of_tokens],
                (f"position {first} +", "element"),
            )
    return draft.case(found)


def latent_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """One token and several, at the first positions and later, widths that are no multiple of the subgroup."""
    aligned = 8 if Stored.of(target.kernel).quantised else 2  # the key part begins a word
    drawn = aligned * int(rng.integers(2, 600 // aligned)), 2 * int(rng.integers(1, 65))
    for (latent, rope), n_past, tokens in (
        ((aligned * (45 // aligned), 12), 7, 3),
        ((64, 12), 0, 1),
        ((512, 64), 255, 4),
        (drawn, int(rng.integers(0, 900)), int(rng.integers(1, 9))),
    ):
        end = n_past + tokens + 6
        edges = (0, n_past + 1, n_past + 2, end) if target.has("SHARD") else ()
        yield latent_case(
            target.info, rng, target.kernel, latent=latent, rope=rope, n_past=n_past, tokens=tokens, edges=edges
        )


def per_head_case(
    info: DeviceInfo, rng: np.random.Generator, kernel: Kernel, n_past: int, tokens: int, *, v_dim: int = 13
) -> Case:
    """Keys and transposed values of five heads in two buffers; neighbours of what is written must stay.

    Odd positions share a word of the transposed values with even ones. Inputs that f16 holds are stored without
    rounding, so results are compared bit for bit.
    """
    draft = Draft(info, f"{tokens} tokens after {n_past}, values of {v_dim}")
    heads, nope, rope, latent, n_ctx = 5, 20, 12, 44, -(-(n_past + tokens) // 32) * 32
    dtype = Stored.of(kernel).dtype

    def numbers(*shape: int) -> NDArray[np.floating]:
        return rng.standard_normal(shape).astype(dtype)

    k_nope, expanded, v_new = (
        numbers(tokens, heads, nope),
        numbers(tokens, latent + rope),
        numbers(tokens, heads, v_dim),
    )
    keys, values = numbers(heads, n_ctx, nope + rope + 4), numbers(heads, v_dim, n_ctx)
    buffers = {
        "k_nope": draft.upload(k_nope.astype(np.float32)),
        "latent_rope": draft.upload(expanded.astype(np.float32)),
        "v_new": draft.upload(v_new.astype(np.float32)),
        "params": draft.params(n_past, tokens),
    }
    after_keys, after_values = keys.copy(), values.copy()
    for t in range(tokens):
        after_keys[:, n_past + t, :nope] = k_nope[t]
        after_keys[:, n_past + t, nope : nope + rope] = expanded[t, latent:]
        after_values[:, :, n_past + t] = v_new[t]
    expected = {}
    for first, end in ((0, 2), (2, heads)):
        k_cache, v_cache = draft.upload(keys[first:end]), draft.upload(values[first:end])
        push = {"head_first": first, "heads": heads, "nope": nope, "rope": rope}
        push |= {"v_dim": v_dim, "latent": latent, "n_ctx": n_ctx, "key_row": nope + rope + 4}
        draft.launch(kernel, buffers | {"k_cache": k_cache, "v_cache": v_cache}, (end - first, 1, 1), push=push)
        expected[k_cache] = Expected(after_keys[first:end], dtype, axes=(f"head {first} +", "position", "element"))
        expected[v_cache] = Expected(after_values[first:end], dtype, axes=(f"head {first} +", "element", "position"))
    return draft.case(expected)


def per_head_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Even and odd positions, first and later ones, values narrower and wider than a subgroup."""
    drawn = int(rng.integers(0, 90)), int(rng.integers(1, 9))
    for n_past, tokens in ((0, 1), (3, 1), (4, 1), (3, 4), (2, 5), drawn):
        yield per_head_case(target.info, rng, target.kernel, n_past, tokens, v_dim=int(rng.integers(1, 80)))
