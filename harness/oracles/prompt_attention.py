"""A long prompt chunk's attention in tiles: cache rows as halves, a tile's scores, values joined from tile to tile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from harness.oracles.activations import floats
from harness.oracles.attention import SCALE, attended_scores
from harness.oracles.case import CANARY, UNTOUCHED, Case, Draft, Expected, Target, U, anything
from harness.oracles.latent_rows import F16_SMALLEST, F16_STEP, Stored
from model import kernels
from model.half_columns import EIGHT, eights
from vkbackend.buffer import Buffer
from vkbackend.kernel import Kernel
from vkbackend.physical import DeviceInfo


def _tile(draft: Draft, first: int, count: int) -> Buffer:
    return draft.upload(np.array([first, count], np.uint32), "tile")


def rows_case(
    info: DeviceInfo, rng: np.random.Generator, kernel: Kernel, width: int, first: int, count: int, n_ctx: int
) -> Case:
    """``count`` rows from ``first`` on; with SHARD from three buffers. The tile's other rows stay as they were."""
    stored, capacity, halves = Stored.of(kernel), count + 2, 8 * eights(width)
    draft = Draft(info, f"{count} rows of {width} from {first} on")
    packed = stored.pack(floats(rng, n_ctx, width))
    out = draft.untouched(capacity * halves // 2)
    edges = (0, first + 1, first + 1 + count // 2, n_ctx) if "SHARD" in kernel.macros else (0, n_ctx)
    for start, end in pairwise(edges):
        buffers = {"cache": draft.upload(packed[start:end]), "rows": out, "tile": _tile(draft, first, count)}
        push = {"pairs": width // 2, "words": halves // 2}
        push |= {"first": start, "last": end} if "SHARD" in kernel.macros else {}
        draft.launch(kernel, buffers, (capacity, 1, 1), push=push)
    expected = np.full(capacity * halves // 2, UNTOUCHED, np.uint32).view(np.float16).reshape(capacity, halves)
    expected, tolerance = expected.astype(np.float64), np.zeros(expected.shape)
    exact = stored.unpack(np.ascontiguousarray(packed).view(np.uint32), width)[first : first + count]
    expected[:count] = 0
    expected[:count, :width] = exact
    if stored.quantised:  # d * q has up to 19 bits, of which GLSL lets a device round or cut off the last eight
        tolerance[:count, :width] = F16_STEP * np.abs(exact) + F16_SMALLEST
    return draft.case({out: Expected(expected, np.float16, tolerance, axes=("row", "element"))})


def rows_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Rows that are whole eights and not, from the first position and later ones."""
    drawn = int(rng.integers(0, 50)), int(rng.integers(1, 40))
    for width, first, count in ((576, 0, 1), (56, 0, 9), (44, 7, 3), (4 * int(rng.integers(2, 200)), *drawn)):
        yield rows_case(target.info, rng, target.kernel, width, first, count, first + count + 5)


def scores_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    kernel: Kernel,
    spec: Mapping[str, int],
    *,
    width: int,
    n_past: int,
    tokens: int,
    tile: tuple[int, int],
    shared: bool = True,
) -> Case:
    """Scores of ``tokens`` after ``n_past`` with the tile (first position, positions); keys of a head's own, or shared.

    Queries of tokens that are not asked for are NaN, and so are the keys behind the tile's last.
    """
    (first, count), lanes, heads = tile, info.subgroup_size, 3
    capacity, positions = tokens + 3, -(-(count + 5) // (4 * lanes)) * 4 * lanes
    draft = Draft(info, f"{tokens} tokens after {n_past}, keys of {width}, positions {first} to {first + count}")
    q, row = floats(rng, capacity, heads, width), 8 * eights(width)
    q[tokens:] = np.nan
    keys = np.zeros((1 if shared else heads, positions, row), np.float16)
    keys[..., :width] = floats(rng, *keys.shape[:2], width)
    keys[:, count:] = np.nan
    out = draft.canary(heads, capacity, positions)
    buffers = {"q": draft.upload(q), "keys": draft.upload(keys), "scores": out, "tile": _tile(draft, first, count)}
    buffers["params"] = draft.params(n_past, tokens)
    each = spec["POSITIONS"] * lanes
    push = {"quads": width // 4, "q_token": heads * width // 4, "q_head": width // 4, "key_row": row // 8}
    push |= {"key_head": 0 if shared else positions * row // 8, "chunk": capacity, "tile": positions}
    grid = (-(-positions // each), -(-capacity // spec["TOKENS"]), heads)
    draft.launch(kernel, buffers, grid, spec=spec, push=push | {"scale": SCALE})
    expected, tolerance = np.full((heads, capacity, positions), float(CANARY)), np.zeros((heads, capacity, positions))
    of_heads = np.broadcast_to(keys, (heads, *keys.shape[1:]))[:, :count, :width].astype(np.float64)
    q64 = q[:tokens].astype(np.float64).transpose(1, 0, 2)
    scores = SCALE * q64 @ of_heads.transpose(0, 2, 1)
    # Products of exact halves: K roundings of the sum, one of each product and one of the scale.
    error = U * (width + 3) * SCALE * np.abs(q64) @ np.abs(of_heads).transpose(0, 2, 1)
    for start in range(0, tokens, spec["TOKENS"]):
        last = min(start + spec["TOKENS"], tokens)
        # Blocks of which a token of the block sees the first position.
        seen = min(count, max(0, -(-(n_past + last - first) // each) * each))
        expected[:, start:last, :seen] = scores[:, start:last, :seen]
        tolerance[:, start:last, :seen] = error[:, start:last, :seen]
    return draft.case({out: Expected(expected, tolerance=tolerance, axes=("head", "token", "position"))})


def scores_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """A first chunk, of which blocks are hidden; tiles before it, across it and behind some tokens; one token."""
    drawn = 4 * int(rng.integers(1, 80)), int(rng.integers(0, 300)), int(rng.integers(1, 60))
    for (width, n_past, tokens), tile, shared in (
        ((576, 0, 37), (0, 37), True),
        ((56, 100, 16), (32, 64), False),
        ((44, 70, 33), (64, 39), True),
        ((12, 0, 1), (0, 1), False),
        (drawn, (0, drawn[1] + drawn[2]), bool(rng.integers(2))),
    ):
        yield scores_case(
            target.info,
            rng,
            target.kernel,
            target.spec,
            width=width,
            n_past=n_past,
            tokens=tokens,
            tile=tile,
            shared=shared,
        )


def softmax_case(
    info: DeviceInfo, rng: np.random.Generator, *, n_past: int, tokens: int, tile: tuple[int, int], reach: float = 3.0
) -> Case:
    """Weights, running maximum and sum of ``tokens`` after ``n_past`` in one tile, after others unless it is the first.

    What a token does not see has a score of NaN. Behind the tile's last whole load all stays as it was.
    """
    (first, count), each, heads = tile, 4 * info.subgroup_size, 3
    capacity, end = tokens + 3, -(-count // each) * each
    draft = Draft(info, f"{tokens} tokens after {n_past}, positions {first} to {first + count}, scores of {reach:g}")
    scores = reach * floats(rng, heads, capacity, end + each)
    seen = np.minimum(n_past + np.arange(tokens) + 1 - first, count)[:, None]  # none where it is not positive
    visible = np.arange(end + each) < seen
    scores[:, :tokens][:, ~visible] = np.nan
    before = np.stack([reach * floats(rng, capacity, heads), 1 + rng.random((capacity, heads))], axis=-1)
    stats = np.concatenate([before, np.zeros_like(before)], axis=-1).astype(np.float32)
    buffers = {"scores": draft.upload(scores), "stats": draft.upload(stats), "tile": _tile(draft, first, count)}
    push = {"heads": heads, "chunk": capacity, "tile": end + each}
    buffers["params"] = draft.params(n_past, tokens)
    draft.launch(kernels.PROMPT_SOFTMAX, buffers, (capacity, heads, 1), push=push)
    known = np.where(visible, scores[:, :tokens], -np.inf).astype(np.float64)
    old = (
        stats[:tokens].astype(np.float64).transpose(1, 0, 2) if first else np.broadcast_to([-1e30, 0, 0, 0], (3, 1, 4))
    )
    top = np.maximum(known.max(axis=-1), old[..., 0])
    nothing = np.zeros(top.shape)
    weights, shrink = np.exp(known - top[..., None]), np.exp(old[..., 0] - top)

    def error(below: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of exp(-below): its argument rounds once, itself to 3 + 2 |x| places; subnormal numbers may be 0."""
        return np.where(below < 1e4, 2 * U * (3 + 2 * below) + U * below, 0) * np.exp(-below) + 1.2e-38

    of_weights, of_shrink = error(top[..., None] - known), error(top - old[..., 0])
    expected, tolerance = scores.astype(np.float64), np.zeros(scores.shape)
    expected[:, :tokens, :end], tolerance[:, :tokens, :end] = weights[..., :end], of_weights[..., :end]
    sums = np.stack([top, old[..., 1] * shrink + weights.sum(axis=-1), shrink, nothing], axis=-1)
    off = of_weights.sum(axis=-1) + old[..., 1] * of_shrink + U * (count + 2) * sums[..., 1]
    after, of_stats = stats.astype(np.float64), np.zeros(stats.shape)
    after[:tokens] = sums.transpose(1, 0, 2)
    of_stats[:tokens] = np.stack([0 * top, off, of_shrink, nothing], axis=-1).transpose(1, 0, 2)
    return draft.case(
        {
            buffers["scores"]: Expected(expected, tolerance=tolerance, axes=("head", "token", "position")),
            buffers["stats"]: Expected(after, tolerance=of_stats, axes=("token", "head", "number")),
        }
    )


def softmax_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """First tiles and later ones, of which tokens see all, some or nothing; scores that exp alone would overflow."""
    drawn = int(rng.integers(1, 300)), int(rng.integers(1, 40))
    for n_past, tokens, tile, reach in (
        (0, 1, (0, 1), 3.0),
        (0, 37, (0, 37), 3.0),
        (100, 16, (32, 64), 3.0),
        (60, 40, (64, 36), 3000.0),
        (sum(drawn), 3, drawn, 30.0),
    ):
        yield softmax_case(target.info, rng, n_past=n_past, tokens=tokens, tile=tile, reach=reach)


def values_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    kernel: Kernel,
    spec: Mapping[str, int],
    *,
    columns: int,
    n_past: int,
    tokens: int,
    edges: tuple[int, ...],
    shared: bool = True,
    reach: float = 3.0,
) -> Case:
    """``tokens`` after ``n_past`` over the tiles between ``edges``, one launch each; scores about ``reach`` in size.

    What is hidden from a token has a score of NaN, and what is behind the tile's last value is NaN.
    """
    lanes, heads, end = info.subgroup_size, 3, n_past + tokens
    capacity, each = tokens + 3, 4 * lanes
    positions = -(-max(b - a for a, b in pairwise(edges)) // each) * each
    draft = Draft(info, f"{tokens} tokens after {n_past}, values of {columns}, tiles {edges}, scores of {reach:g}")
    ahead = 0 if shared else EIGHT * int(rng.integers(3))  # halves before a value, which are not its
    row = ahead + EIGHT * eights(columns)
    values = np.zeros((1 if shared else heads, end, row), np.float16)
    values[..., :ahead] = np.nan
    values[..., ahead : ahead + columns] = floats(rng, *values.shape[:2], columns)
    scores = reach * floats(rng, heads, tokens, end)
    hidden = np.arange(end) > n_past + np.arange(tokens)[:, None]
    scores[:, hidden] = np.nan
    per_lane = 4 if "FOURS" in kernel.macros else 8
    blocks = -(-columns // (per_lane * lanes))
    out, stats = draft.canary(capacity, heads, columns, name="out"), draft.canary(capacity, heads, 4)
    found = {stats: anything(capacity, heads, 4)}
    sizes = {"heads": heads, "chunk": capacity, "tile": positions}
    push = {"columns": columns, "value_row": row // per_lane}
    push |= {"value_head": 0 if shared else positions * row // per_lane, "value_first": ahead // per_lane}
    for first, last in pairwise(edges):
        of_tile = np.full((heads, capacity, positions), np.nan, np.float32)
        of_tile[:, :tokens, : last - first] = scores[:, :, first:last]
        kept = np.full((len(values), positions, row), np.nan, np.float16)
        kept[:, : last - first] = values[:, first:last]
        weights = draft.upload(of_tile)
        found[weights] = anything(heads, capacity, positions)
        both = {"stats": stats, "params": draft.params(n_past, tokens), "tile": _tile(draft, first, last - first)}
        draft.launch(kernels.PROMPT_SOFTMAX, both | {"scores": weights}, (capacity, heads, 1), push=sizes)
        buffers = both | {"weights": weights, "values": draft.upload(kept), "out": out}
        grid = (blocks, -(-capacity // spec["TOKENS"]), heads)
        draft.launch(kernel, buffers, grid, spec=spec, push=sizes | push)
    expected, tolerance = np.full((capacity, heads, columns), float(CANARY)), np.zeros((capacity, heads, columns))
    of_heads = np.broadcast_to(values, (heads, *values.shape[1:]))[..., ahead : ahead + columns].astype(np.float64)
    for t in range(tokens):
        n = n_past + t + 1
        expected[t], tolerance[t] = attended_scores(scores[:, t, :n].astype(np.float64), of_heads[:, :n], 0.0)
    found[out] = Expected(expected, tolerance=tolerance, axes=("token", "head", "element"))
    return draft.case(found)


def values_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """One tile and several, of which a token sees none, some or one position; scores that exp alone would overflow."""
    widest = 4 * target.lanes if target.has("FOURS") else 600
    drawn, past = 4 * int(rng.integers(1, widest // 4)), int(rng.integers(0, 200))
    tokens = int(rng.integers(2, 60))
    shapes: tuple[tuple[int, int, int, tuple[int, ...], bool, float], ...] = (
        (min(512, widest), 0, 37, (0, 37), True, 3.0),
        (min(56, widest), 100, 16, (0, 32, 64, 96, 116), False, 3.0),
        (min(44, widest), 31, 33, (0, 32, 64), True, 3000.0),
        (12, 0, 1, (0, 1), False, 3.0),
        (drawn, past, tokens, (0, past // 2 + 1, past + tokens), bool(rng.integers(2)), 30.0),
    )
    for columns, n_past, count, edges, shared, reach in shapes:
        yield values_case(
            target.info,
            rng,
            target.kernel,
            target.spec,
            columns=columns,
            n_past=n_past,
            tokens=count,
            edges=edges,
            shared=shared,
            reach=reach,
        )
