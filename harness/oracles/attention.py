"""Fused attention over the latent cache in all its cuts, the sum of its splits, and the fallback's causal softmax."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from harness.oracles.activations import floats
from harness.oracles.case import CANARY, Case, Draft, Expected, Target, U, anything
from harness.oracles.inputs import quantize
from harness.oracles.latent_rows import F16_SMALLEST, F16_STEP, Stored
from model import kernels
from model.attention_shape import lane_pairs
from model.layout import UNIT
from model.reference.ops import softmax
from vkbackend.kernel import Kernel
from vkbackend.physical import DeviceInfo

Doubles = NDArray[np.float64]
Floating = NDArray[np.floating]
SCALE = float(np.float32(0.1443))
CHAIN = 8  # rows that shaders/attention_packed.comp sums in halves
LOWEST = np.float32(-1e30)  # of a split without rows
EXACT_SCALE = 2.0**-10  # of whole numbers up to 127: scores of some units, and the product with it is exact


@dataclass(frozen=True)
class Arithmetic:
    """What a kernel's scores and weighted sums are made of, and what rounding may do to them."""

    kernel: Kernel

    @property
    def packed(self) -> bool:
        """Queries in 8 bits, weights and values in halves (shaders/attention_packed.comp)."""
        return self.kernel.file == kernels.ATTENTION_PACKED.file

    def queries(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> NDArray[np.float32]:
        """Numbers of about 2; packed ones such that no rounding moves one to another of a block's steps, some blocks
        all zero."""
        if not self.packed:
            return (2 * rng.standard_normal(shape)).astype(np.float32)
        *many, width = shape
        steps = rng.integers(-126, 127, shape) + rng.uniform(-0.4, 0.4, shape)
        d = np.empty(shape)
        for first in range(0, width, UNIT):
            block = np.s_[..., first : first + UNIT]
            columns = min(UNIT, width - first)
            peak = np.arange(columns) == rng.integers(0, columns, (*many, 1))
            steps[block] = np.where(peak, rng.choice([-127.0, 127.0], (*many, 1)), steps[block])
            d[block] = 0.03 * 2.0 ** rng.uniform(-3, 1, (*many, 1)) * (rng.random((*many, 1)) < 0.9)
        return (d * steps).astype(np.float32)

    def seen(self, q: Floating) -> Doubles:
        """Queries [..., R + P] as they are multiplied."""
        if not self.packed:
            return q.astype(np.float64)
        padded = np.pad(q, [(0, 0)] * (q.ndim - 1) + [(0, -q.shape[-1] % UNIT)])
        return quantize(padded)[..., : q.shape[-1]]

    def score_error(self, width: int, sums: Doubles) -> Doubles:
        """Of scores whose terms' magnitudes add up to ``sums``: they round with each of R + P products, in lanes or
        parts of a row; packed ones in a query's step, its two factors, and with each block."""
        error: Doubles = U * ((-(-width // UNIT) + 6) if self.packed else (width + 3)) * sums
        return error

    def sum_error(self, weights: Floating, values: Doubles) -> Doubles | float:
        """What halves add to a head's sums: the weight's rounding in the sum and in what it is divided by, the value's,
        and one with each row of a chain; below their smallest normal number a step for the weights beside the largest,
        which are 1 / CHAIN of it, and for the sums."""
        if not self.packed:
            return 0.0
        small = CHAIN * F16_SMALLEST * (2 * np.abs(values).sum(axis=-2) + len(values))
        return (CHAIN + 3) * F16_STEP * _weighted(weights, np.abs(values)) + small


def attended(
    q: Floating, rows: Floating, values: Floating, n_past: int, scale: float, of: Arithmetic, exact: bool = False
) -> tuple[Doubles, Doubles]:
    """Causal attention in float64, and what the kernel may differ by. q [T, H, R + P], rows [n, R + P], values [n, R].

    ``exact``: the numbers are such that scores, and sums in halves, are without rounding.
    """
    q64, rows64, values64 = of.seen(q), rows.astype(np.float64), values.astype(np.float64)
    out, error = np.empty((*q.shape[:2], values.shape[1])), np.empty((*q.shape[:2], values.shape[1]))
    for t in range(q.shape[0]):
        n = n_past + t + 1
        scores = scale * q64[t] @ rows64[:n].T  # [H, n]
        sums = scale * np.abs(q64[t]) @ np.abs(rows64[:n]).T
        score_error = 0.0 if exact else of.score_error(q.shape[-1], sums.max(axis=1, keepdims=True))
        out[t], error[t] = attended_scores(scores, values64[:n], score_error)
        error[t] += 0.0 if exact else of.sum_error(softmax(scores), values64[:n])
    return out, error


def attended_scores(scores: Doubles, values: Doubles, score_error: Doubles | float) -> tuple[Doubles, Doubles]:
    """softmax(scores) @ values in float64, and what f32 may differ by. scores [H, n], values [n, R] or [H, n, R].

    A weight is exp of a score (3 + 2 |x| places), rescaled at each tile and divided by a sum that is off by as much
    again; the output sums n weighted values.
    """
    n, weights = scores.shape[-1], softmax(scores)
    relative = _weight_error(scores, score_error)
    return _weighted(weights, values), (relative + U * n) * _weighted(weights, np.abs(values))


def _weight_error(scores: Doubles, score_error: Doubles | float) -> Doubles:
    """Of softmax(``scores``) [H, n], relative. [H, 1]"""
    error: Doubles = 2 * (score_error + 2 * U * (3 + 2 * np.ptp(scores, axis=1, keepdims=True)) + U * scores.shape[-1])
    return error


def _weighted(weights: Floating, values: Doubles) -> Doubles:
    """Each head's sum of ``values``, of all heads or its own."""
    return weights @ values if values.ndim == 2 else (weights[:, None] @ values)[:, 0]


def attention_spec(
    lanes: int, latent: int, rope: int, heads: int, splits: int, kind: GGMLQuantizationType = GGMLQuantizationType.F16
) -> dict[str, int]:
    """The kernel's constants for rows of ``latent`` + ``rope``, ``heads`` a workgroup and tiles of 8 rows."""
    pairs = {"LATENT_PAIRS": lane_pairs(latent, kind, lanes), "ROPE_PAIRS": lane_pairs(rope, kind, lanes)}
    return {"LATENT": latent, "ROPE": rope, "HEADS": heads, "TILE": 8, "SPLITS": splits, **pairs}


def latent_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    kernel: Kernel,
    spec: Mapping[str, int],
    *,
    heads: int,
    n_past: int,
    tokens: int,
    edges: tuple[int, ...] = (),
    exact: bool = False,
) -> Case:
    """``tokens`` attend to a cache of ``n_past`` rows and their own; with ``edges`` a launch for each range between.

    With REDUNDANT_V the values' own copy holds other numbers, to see that it is the one that is read. A chunk has room
    for two tokens more, which must stay as they were. ``exact`` draws whole numbers whose scores f32 sums without
    rounding, so that the tolerance is some hundred times smaller.
    """
    latent, rope, splits = spec["LATENT"], spec["ROPE"], spec["SPLITS"]
    capacity, n_ctx = (1, n_past + 9) if tokens == 1 else (tokens + 2, n_past + tokens + 9)
    what = f"{tokens} tokens of {heads} heads after {n_past}" + (f", shards {edges}" if edges else "")
    what += ", whole numbers" if exact else ""
    draft = Draft(info, what)
    stored, of = Stored.of(kernel), Arithmetic(kernel)
    q = of.queries(rng, (capacity, heads, latent + rope))
    if exact:  # packed: no queries, so that all weights are one and sums of quants exact in halves
        q = np.zeros_like(q) if of.packed else np.round(q)
    draw = stored.exact if exact else floats
    scale = EXACT_SCALE if exact else SCALE
    packed = stored.pack(draw(rng, n_ctx, latent + rope))
    redundant = "REDUNDANT_V" in kernel.macros
    packed_values = stored.pack(draw(rng, n_ctx, latent)) if redundant else packed
    rows = stored.unpack(packed.view(np.uint32), latent + rope)
    values = stored.unpack(packed_values.view(np.uint32), latent) if redundant else rows[:, :latent]
    slots = splits * max(1, len(edges) - 1)
    out, stats = draft.canary(capacity, heads, latent, name="out"), draft.canary(capacity, heads, slots, 2)
    joined = slots > 1 or bool(edges)
    parts = draft.canary(capacity * slots, heads, latent) if joined else out
    buffers = {"q": draft.upload(q), "out": parts, "stats": stats, "params": draft.params(n_past, tokens)}
    grid = (heads // spec["HEADS"], splits, capacity)
    push: dict[str, int | float] = {"heads": heads, "scale": scale}
    ranges = list(pairwise(edges)) if edges else [(0, n_ctx)]
    for index, (first, end) in enumerate(ranges):
        own = {"cache": draft.upload(packed[first:end])}
        own |= {"values": draft.upload(packed_values[first:end])} if redundant else {}
        slot = {"first": first, "last": end, "slot_first": index * splits, "slots": slots} if edges else {}
        draft.launch(kernel, buffers | own, grid, spec=spec, push=push | slot)
    expected, tolerance = np.full((capacity, heads, latent), float(CANARY)), np.zeros((capacity, heads, latent))
    expected[:tokens], tolerance[:tokens] = attended(q[:tokens], rows, values, n_past, scale, of, exact)
    found = {out: Expected(expected, tolerance=tolerance, axes=("token", "head", "element"))}
    if joined:
        combine = {"parts": parts, "stats": stats, "out": out}
        draft.launch(
            kernels.ATTENTION_COMBINE, combine, (tokens * heads, 1, 1), push={"latent": latent, "splits": slots}
        )
        found[parts] = anything(capacity * slots, heads, latent)
        found[stats] = _split_sums(q[:tokens], rows, n_past, scale, of, exact, spec, ranges, capacity)
    else:
        found[stats] = Expected(np.full((capacity, heads, 2), CANARY))  # written where sums are to be joined
    return draft.case(found)


def _split_sums(
    q: Floating,
    rows: Floating,
    n_past: int,
    scale: float,
    of: Arithmetic,
    exact: bool,
    spec: Mapping[str, int],
    ranges: Sequence[tuple[int, int]],
    capacity: int,
) -> Expected:
    """Each split's largest score and sum of weights, of the rows that it has of its range of positions."""
    splits, tile, seen, kept = spec["SPLITS"], spec["TILE"], of.seen(q), rows.astype(np.float64)
    expected = np.full((capacity, q.shape[1], splits * len(ranges), 2), float(CANARY))
    tolerance = np.zeros(expected.shape)
    expected[: len(q)] = LOWEST, 0.0
    for t, slot in np.ndindex(len(q), expected.shape[2]):
        first, last = (min(n_past + t + 1, edge) for edge in ranges[slot // splits])
        share = -(-(last - first) // (splits * tile)) * tile
        begin = first + slot % splits * share
        here = kept[begin : min(begin + share, last)]
        if len(here):
            scores, sums = scale * seen[t] @ here.T, scale * np.abs(seen[t]) @ np.abs(here).T
            error = 0.0 * sums if exact else of.score_error(q.shape[-1], sums)
            top = scores.max(axis=1)
            expected[t, :, slot, 0], tolerance[t, :, slot, 0] = top, error.max(axis=1)
            weights = np.exp(scores - top[:, None])
            relative = _weight_error(scores, error.max(axis=1, keepdims=True))[:, 0]
            of_halves = F16_STEP * weights.sum(axis=1) + CHAIN * F16_SMALLEST * len(here)
            expected[t, :, slot, 1] = weights.sum(axis=1)
            tolerance[t, :, slot, 1] = relative * weights.sum(axis=1) + (of_halves if of.packed and not exact else 0.0)
    if of.packed:
        expected[: len(q), ..., 1] /= CHAIN
        tolerance[..., 1] /= CHAIN
    return Expected(expected, tolerance=tolerance, axes=("token", "head", "split", "maximum and sum"))


def far_case(info: DeviceInfo, kernel: Kernel, spec: Mapping[str, int]) -> Case:
    """Scores from -30,000 to 30,000: online softmax must not overflow where exp of a score would, nor lose a later, far
    greater one. All weight is on the last row, whose value comes out to the bit."""
    draft = Draft(info, "scores far apart and far from zero")
    latent, rope, heads, n = spec["LATENT"], spec["ROPE"], spec["HEADS"], 40
    stored, rows = Stored.of(kernel), np.zeros((n, latent + rope), np.float32)
    rows[:, 0] = np.linspace(-1000, 1000, n)
    rows[:, 1] = np.arange(n)
    q = np.zeros((1, heads, latent + rope), np.float32)
    q[..., 0] = 30
    out, stats = draft.canary(heads, latent), draft.canary(heads, 2)
    buffers = {"q": draft.upload(q), "cache": draft.upload(stored.pack(rows)), "out": out, "stats": stats}
    buffers["params"] = draft.params(n - 1, 1)
    draft.launch(kernel, buffers, (1, 1, 1), spec=spec, push={"heads": heads, "scale": 1.0})
    expected = np.tile(stored.rounded(rows)[-1, :latent], (heads, 1)) + np.float32(0.0)  # no -0: it is a sum
    off = F16_STEP * np.abs(expected).astype(np.float64) if Arithmetic(kernel).packed else 0.0
    told = Expected(expected, tolerance=off, axes=("head", "element"))
    return draft.case({out: told, stats: Expected(np.full((heads, 2), CANARY))})


def latent_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """A cache of one row, tiles that are full and not, more splits than tiles; chunks, where the kernel serves them."""
    info, kernel, spec = target.info, target.kernel, target.spec
    tile, drawn = spec["TILE"], int(rng.integers(1, 200))
    single = spec["SPLITS"] > 1
    shapes = [(0, 1), (tile - 2, 1), (tile - 1, 1), (tile, 1), (drawn, 1)]
    shapes = shapes if single else [(0, 1), (0, tile + 1), (tile - 1, 3), (drawn, int(rng.integers(2, 9)))]
    for n_past, tokens in shapes:
        end = n_past + tokens + 9
        heads = spec["HEADS"] * int(rng.integers(1, 3))
        edges = ((0, 7, 8, 20, end) if end > 20 else (0, 1, 4, end)) if target.has("SHARD") else ()
        yield latent_case(info, rng, kernel, spec, heads=heads, n_past=n_past, tokens=tokens, edges=edges)
        yield latent_case(info, rng, kernel, spec, heads=heads, n_past=n_past, tokens=tokens, edges=edges, exact=True)
    if not (single or target.has("SHARD") or target.has("REDUNDANT_V")):
        yield far_case(info, kernel, spec)


def combine_case(info: DeviceInfo, rng: np.random.Generator, rows: int, latent: int, splits: int) -> Case:
    """Sums of ``splits`` parts for each of ``rows`` tokens and heads; of some the last part is empty."""
    draft = Draft(info, f"{rows} rows of {latent} in {splits} parts")
    parts, stats = floats(rng, rows, splits, latent), np.empty((rows, splits, 2), np.float32)
    stats[..., 0], stats[..., 1] = 5 * floats(rng, rows, splits), 1 + rng.random((rows, splits))
    if splits > 1:
        parts[::2, -1], stats[::2, -1] = 0, (-1e30, 0)
    written = parts.copy()
    written[stats[..., 1] == 0] = np.nan  # a split without rows leaves whatever was there
    out = draft.canary(rows + 1, latent)
    buffers = {"parts": draft.upload(written), "stats": draft.upload(stats), "out": out}
    draft.launch(kernels.ATTENTION_COMBINE, buffers, (rows, 1, 1), push={"latent": latent, "splits": splits})
    below = stats[..., 0].astype(np.float64).max(axis=1, keepdims=True) - stats[..., 0]
    factors = np.exp(-below)
    total = (factors * stats[..., 1]).sum(axis=1)[:, None]
    expected, tolerance = np.full((rows + 1, latent), float(CANARY)), np.zeros((rows + 1, latent))
    expected[:rows] = (factors[..., None] * parts).sum(axis=1) / total
    # A factor is off by exp's 3 + 2 |x| places and half a place of x itself (U |x|); a sum of S products rounds S + 1
    # times, above and below the line; the division takes 2.5 places. A factor below e^-87 is 0 either way.
    reach = np.where(below < 87, below, 0).max(axis=1)[:, None]
    relative = 2 * (2 * U * (3 + 2 * reach) + U * reach + U * (splits + 1)) + 5 * U
    tolerance[:rows] = relative * (factors[..., None] * np.abs(parts)).sum(axis=1) / total
    return draft.case({out: Expected(expected, tolerance=tolerance, axes=("row", "element"))})


def combine_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    for rows, latent, splits in ((1, 4, 1), (3, 44, 5), (20, 512, 4), (7, 4 * int(rng.integers(1, 200)), 9)):
        yield combine_case(target.info, rng, rows, latent, splits)


def softmax_case(info: DeviceInfo, rng: np.random.Generator, n_past: int, tokens: int, *, capacity: int = 7) -> Case:
    """Weights of what each token sees, zeros up to the next 32 positions past the chunk, and nothing else."""
    heads, n_ctx, scale = 3, -(-(n_past + capacity) // 32) * 32 + 32, float(np.float32(0.171))
    draft = Draft(info, f"{tokens} of {capacity} tokens after {n_past}")
    scores = floats(rng, heads, capacity, n_ctx) * 40
    out = draft.upload(scores)
    push = {"capacity": capacity, "n_ctx": n_ctx, "scale": scale}
    buffers = {"scores": out, "params": draft.params(n_past, tokens)}
    draft.launch(kernels.SOFTMAX_CAUSAL, buffers, (capacity, heads, 1), push=push)
    expected, tolerance = scores.astype(np.float64), np.zeros(scores.shape)
    read = -(-(n_past + tokens) // 32) * 32
    for t in range(tokens):
        visible = n_past + t + 1
        scaled = scale * scores[:, t, :visible].astype(np.float64)
        below = scaled.max(axis=-1, keepdims=True) - scaled
        weights = softmax(scaled)
        expected[:, t, :visible] = weights
        # exp's argument rounds twice and exp itself to 3 + 2 |x| places; as much again in the sum it is divided by.
        tolerance[:, t, :visible] = 2 * U * (2 * (3 + 2 * below) + 2 * below + visible) * weights + 1e-37
        expected[:, t, visible:read] = 0
    return draft.case({out: Expected(expected, tolerance=tolerance, axes=("head", "token", "position"))})


def softmax_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """One visible position; edges of the 32 positions that are read; chunks that are full and not."""
    drawn = int(rng.integers(0, 500)), int(rng.integers(1, 8))
    for n_past, tokens in ((0, 1), (0, 5), (29, 1), (31, 1), (30, 5), (90, 6), drawn):
        yield softmax_case(target.info, rng, n_past, tokens)
