"""Matrix products over every weight format: of a token, of a chunk, of chosen experts, of a cache taken as a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize
from numpy.typing import NDArray

from harness.oracles.case import CANARY, Case, Draft, Expected, Target, U
from harness.oracles.halves import INPUTS, Halves
from harness.oracles.inputs import EightBits, Floats
from model import kernels
from model.block_formats import PLAIN, codebook
from model.kernels import weight_kind
from model.linear import Norm, View, linear, routed_linear
from model.random_blocks import random_blocks
from model.reference import ops
from model.tiling import IN_HALVES, Tiling
from model.weights import Weight, allocate, stack_upload
from vkbackend.physical import DeviceInfo
from vkbackend.tuning import Entry

Doubles = NDArray[np.float64]
FLOATS = Floats()


def tiling_of(target: Target, *names: str) -> Tiling:
    """The tiling that the kernel's own constants stand for, or those ``names`` of them that are a product's."""
    spec = {name: target.spec[name] for name in names or target.spec}
    return Tiling.of(Entry(target.kernel.file, spec), target.lanes)


def inputs_of(target: Target) -> Floats:
    """What the kernel's inputs are."""
    if target.kernel.file == kernels.MATMUL_DOT.file:
        return EightBits()
    return Halves(target.kernel.file, weight_kind(target.kernel)) if target.kernel.file in IN_HALVES else FLOATS


def random_tensor(
    rng: np.random.Generator, kind: Q, shape: tuple[int, ...], scale: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A random tensor: its bytes as in a GGUF (u8, flat) and the f32 values that gguf-py reads from them."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    data = random_blocks(kind, int(np.prod(shape)) // block, rng, scale).reshape(-1)
    rows = data.reshape(-1, shape[-1] // block * block_bytes)
    return data, np.asarray(dequantize(rows, kind)).reshape(shape).astype(np.float32)


@dataclass(frozen=True)
class Normed:
    """An RMS norm before a product: what the kernel is told, and what it does to an input."""

    norm: Norm
    weight: Doubles

    @classmethod
    def draw(cls, draft: Draft, rng: np.random.Generator, columns: int) -> Normed:
        weight = rng.standard_normal(columns).astype(np.float32)
        return cls(Norm(draft.upload(weight, "norm"), 1e-5), weight.astype(np.float64))

    def of(self, x: Doubles) -> Doubles:
        """The norm of ``x`` [K]."""
        normed: Doubles = ops.rms_norm(x, self.weight, float(np.float32(self.norm.eps))).astype(np.float64)
        return normed


def norm_error(weight: NDArray[np.floating], normed: Doubles) -> Doubles:
    """What a product's norm adds to ``largest_error`` of ``weight`` [..., rows, K] and the normed input [..., K].

    The sum of squares is off by at most K / 4 + 3 roundings, its root by half of that; its division, the root's own 2
    units in the last place, two products.
    """
    error: Doubles = (weight.shape[-1] / 8 + 8) * U * np.einsum("...rk,...k->...r", np.abs(weight), np.abs(normed))
    return error


def uploaded(draft: Draft, name: str, kind: Q, shape: tuple[int, ...], data: NDArray[np.uint8], limit: int) -> Weight:
    """A tensor in buffers of at most ``limit`` bytes beside the codebook (0: in one)."""
    owner = draft.limited(codebook(kind).size + limit) if limit else draft.device
    return stack_upload(owner, name, kind, shape, data)


def _upload(
    draft: Draft, rng: np.random.Generator, kind: Q, shape: tuple[int, ...], limit: int
) -> tuple[Weight, Doubles]:
    """A random tensor on the device, and its values."""
    data, values = random_tensor(rng, kind, shape)
    return uploaded(draft, "w", kind, shape, data, limit), values.astype(np.float64)


def product_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    kind: Q,
    shape: tuple[int, ...],
    tiling: Tiling | None,
    *,
    capacity: int,
    n_tokens: int | None = None,
    accumulate: bool = False,
    normed: bool = False,
    limit: int = 0,
    inputs: Floats = FLOATS,
) -> Case:
    """y[token][matrix] (+)= W[matrix] x[token][matrix] for ``shape`` [matrices,] rows, columns.

    Inputs lie apart at odd strides, outputs in the middle of a larger buffer, and everything around them must stay as
    it was. With ``normed`` inputs are normed first. ``limit`` is the bytes of weights in a buffer, 0 for all.
    """
    n_tokens = capacity if n_tokens is None else n_tokens
    matrices, rows, columns = (1, *shape)[-3:]
    more = f", {n_tokens} of {capacity} tokens" + ", accumulated" * accumulate + ", normed" * normed
    draft = Draft(info, " x ".join(map(str, shape)) + more + (f", buffers of {limit} bytes" if limit else ""))
    weight, values = _upload(draft, rng, kind, shape, limit)
    values = values.reshape(matrices, rows, columns)
    x_batch, y_batch = columns + 12, rows + 3
    x_token, y_token = matrices * x_batch + 4, matrices * y_batch + 5
    x = (7 if normed else 1) * rng.standard_normal((capacity, x_token)).astype(np.float32)
    taken = np.arange(matrices)[:, None] * x_batch + np.arange(columns)
    x[:, taken] = inputs.drawn(rng, x[:, taken])
    before = rng.standard_normal(2 + capacity * y_token + 40).astype(np.float32)
    y = draft.upload(before, "y")
    norm = Normed.draw(draft, rng, columns) if normed else None
    kept = inputs.workspace(draft, capacity * matrices * columns)
    linear(
        draft.program,
        weight,
        View(draft.upload(np.concatenate([np.zeros(8, np.float32), x.reshape(-1)])), 8, x_batch, x_token),
        View(y, 2, y_batch, y_token),
        tokens=capacity,
        params=draft.params(5, n_tokens),
        accumulate=accumulate,
        norm=norm.norm if norm else None,
        tiling=tiling,
    )
    expected, tolerance = before.astype(np.float64), np.zeros(before.size)
    for token in range(n_tokens):
        for m in range(matrices):
            vector = inputs.seen(x[token, m * x_batch : m * x_batch + columns].astype(np.float64))
            at = slice(2 + token * y_token + m * y_batch, 2 + token * y_token + m * y_batch + rows)
            if norm:
                vector = norm.of(vector)
                tolerance[at] += norm_error(values[m], vector)
            result = values[m] @ vector
            expected[at] = expected[at] + result if accumulate else result
            # What is added to is exact; the sum rounds once more.
            tolerance[at] += inputs.error(values[m], vector) + (U * np.abs(expected[at]) if accumulate else 0)

    def locate(index: int) -> str:
        token, rest = divmod(index - 2, y_token)
        return f"token {token}, matrix {rest // y_batch}, row {rest % y_batch}"

    return draft.case({y: Expected(expected, tolerance=tolerance, locate=locate)} | kept)


ROUTINGS = {
    "random": lambda rng, n, used, experts: np.stack([rng.permutation(experts)[:used] for _ in range(n)]),
    "all the same": lambda rng, n, used, experts: np.tile(np.arange(experts)[-used:], (n, 1)),
}


def routed_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    kind: Q,
    shape: tuple[int, int, int],
    tiling: Tiling | None,
    *,
    capacity: int,
    n_tokens: int,
    used: int,
    shared_input: bool,
    routing: str = "random",
    limit: int = 0,
    inputs: Floats = FLOATS,
) -> Case:
    """y[token][slot] = W[expert of (token, slot)] x for ``shape`` experts, rows, columns.

    Inputs belong to a token (gate, up) or to a chosen expert (down); outputs past the tokens must stay as they were.
    """
    experts, rows, columns = shape
    each = "a token" if shared_input else "a slot"
    what = f"{experts} x {rows} x {columns}, {n_tokens} of {capacity} tokens, {used} experts used, {routing}"
    draft = Draft(info, f"{what}, an input {each}" + (f", buffers of {limit} bytes" if limit else ""))
    weight, values = _upload(draft, rng, kind, shape, limit)
    chosen = ROUTINGS[routing](rng, capacity, used, experts)
    counts = np.zeros(experts, np.uint32)
    pairs = np.full((experts, capacity), 10**9, np.uint32)  # entries past the count must not be read
    for pair, expert in enumerate(chosen[:n_tokens].reshape(-1)):
        pairs[expert, counts[expert]] = pair
        counts[expert] += 1
    vectors = 1 if shared_input else used
    x = inputs.drawn(rng, rng.standard_normal((capacity, vectors, columns)).astype(np.float32))
    y = draft.canary(capacity, used, rows)
    kept = inputs.workspace(draft, x.size)
    routed_linear(
        draft.program,
        weight,
        View(draft.upload(x), batch=0 if shared_input else columns, token=x[0].size),
        View(y, batch=rows, token=used * rows),
        tokens=capacity,
        used=used,
        routing={
            "chosen": draft.upload(chosen.astype(np.uint32)),
            "counts": draft.upload(counts),
            "pairs": draft.upload(pairs),
        },
        params=draft.params(0, n_tokens),
        tiling=tiling,
    )
    expected, tolerance = np.full((capacity, used, rows), float(CANARY)), np.zeros((capacity, used, rows))
    for token in range(n_tokens):
        for slot in range(used):
            matrix, vector = values[chosen[token, slot]], x[token, 0 if shared_input else slot].astype(np.float64)
            vector = inputs.seen(vector)
            expected[token, slot] = matrix @ vector
            tolerance[token, slot] = inputs.error(matrix, vector)
    return draft.case({y: Expected(expected, tolerance=tolerance, axes=("token", "slot", "row"))} | kept)


def keys_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    kind: Q,
    tiling: Tiling | None,
    *,
    capacity: int,
    heads: int,
    n_past: int,
    n_tokens: int | None = None,
    inputs: Floats = FLOATS,
) -> Case:
    """Scores of a per-head cache of keys taken as a matrix: only filled rows make them."""
    n_tokens = capacity if n_tokens is None else n_tokens
    n_ctx, key = -(-(n_past + capacity) // 32) * 32 + 32, 32
    draft = Draft(info, f"keys of {heads} heads, {n_tokens} of {capacity} tokens after {n_past}")
    keys = allocate(draft.device, "k", kind, heads, n_ctx, key)
    k = rng.standard_normal((heads, n_ctx, key)).astype(_STORED[kind])
    keys.shards[0].buffer.upload(k)
    q = rng.standard_normal((capacity, heads, key)).astype(np.float32)
    scores = draft.canary(heads, capacity, n_ctx)
    query = View(draft.upload(q), batch=key, token=heads * key)
    to = View(scores, batch=capacity * n_ctx, token=n_ctx)
    params = draft.params(n_past, n_tokens)
    linear(draft.program, keys, query, to, tokens=capacity, params=params, cache_extent="ROWS", tiling=tiling)
    expected, tolerance = np.full((heads, capacity, n_ctx), float(CANARY)), np.zeros((heads, capacity, n_ctx))
    filled = n_past + n_tokens
    here = np.s_[:, :n_tokens, :filled]
    expected[here] = np.einsum("hnk,thk->htn", k.astype(np.float64), q)[here]
    tolerance[here] = inputs.error(k, q.transpose(1, 0, 2).astype(np.float64))[:, :n_tokens, None]
    return draft.case({scores: Expected(expected, tolerance=tolerance, axes=("head", "token", "position"))})


def values_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    kind: Q,
    tiling: Tiling | None,
    *,
    capacity: int,
    heads: int,
    n_past: int,
    n_tokens: int | None = None,
    inputs: Floats = FLOATS,
) -> Case:
    """A per-head cache of transposed values times weights: only filled columns, in whole units, take part."""
    n_tokens = capacity if n_tokens is None else n_tokens
    padded, value = -(-(n_past + n_tokens) // 32) * 32, 20
    n_ctx = -(-(n_past + capacity) // 32) * 32 + 32
    draft = Draft(info, f"values of {heads} heads, {n_tokens} of {capacity} tokens after {n_past}")
    values = allocate(draft.device, "v", kind, heads, value, n_ctx)
    v = rng.standard_normal((heads, value, n_ctx)).astype(_STORED[kind])
    values.shards[0].buffer.upload(v)
    p = rng.random((heads, capacity, n_ctx)).astype(np.float32)
    out = draft.canary(capacity, heads, value)
    weights = View(draft.upload(p), batch=capacity * n_ctx, token=n_ctx)
    to = View(out, batch=value, token=heads * value)
    params = draft.params(n_past, n_tokens)
    linear(draft.program, values, weights, to, tokens=capacity, params=params, cache_extent="UNITS", tiling=tiling)
    expected, tolerance = np.full((capacity, heads, value), float(CANARY)), np.zeros((capacity, heads, value))
    attended = np.einsum("hvn,htn->thv", v[..., :padded].astype(np.float64), p[..., :padded])
    expected[:n_tokens] = attended[:n_tokens]
    error = inputs.error(v[..., :padded], p[..., :padded].astype(np.float64)).transpose(1, 0)[..., None]
    tolerance[:n_tokens] = error[:n_tokens]
    return draft.case({out: Expected(expected, tolerance=tolerance, axes=("token", "head", "row"))})


_STORED = {Q.F16: np.float16, Q.F32: np.float32}  # types of caches


def cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Every case of the kernel's kind: cache as a matrix, chosen or grouped experts, plain product."""
    kind, tiling = weight_kind(target.kernel), tiling_of(target)
    if target.has("ROWS_FROM_CACHE") or target.has("UNITS_FROM_CACHE"):
        of_cache = keys_case if target.has("ROWS_FROM_CACHE") else values_case
        make = partial(of_cache, target.info, rng, kind, tiling, inputs=inputs_of(target))
        single = tiling.tokens == 1
        for heads, n_past in ((1, 0), (5, 31), (2, 60), (3, int(rng.integers(1, 200)))):
            capacity = 1 if single else int(rng.integers(2, 8))
            yield make(capacity=capacity, heads=heads, n_past=n_past)
        if not single:
            yield make(capacity=6, heads=2, n_past=29, n_tokens=2)
    elif target.has("CHOSEN") or target.has("ROUTED"):
        yield from _routed_cases(target, rng, kind, tiling)
    else:
        yield from _product_cases(target, rng, kind, tiling)


def _product_cases(target: Target, rng: np.random.Generator, kind: Q, tiling: Tiling) -> Iterator[Case]:
    """One row; one more than a workgroup's; odd numbers over several; heads, padding, splits, chunks not full."""
    block = max(32, GGML_QUANT_SIZES[kind][0])
    chunk = 1 if tiling.tokens == 1 else tiling.tokens + 3
    normed = target.has("NORMED")
    case = partial(
        product_case, target.info, rng, kind, tiling=tiling, capacity=chunk, normed=normed, inputs=inputs_of(target)
    )
    drawn = int(rng.integers(2, 3 * tiling.rows + 9)), block * int(rng.integers(1, 1280 // block + 1))
    for rows, columns in ((1, block), (tiling.rows + 1, 512), (2 * tiling.rows + 3, 1280), drawn):
        yield case((target.fitting_rows(rows), columns))
    yield case((5, target.fitting_rows(21), 256), accumulate=True)
    rows, row = target.fitting_rows(67), GGML_QUANT_SIZES[kind][1] * 256 // GGML_QUANT_SIZES[kind][0]
    yield case((rows, 256), limit=rows * row // 3)
    rows = target.fitting_rows(5)
    yield case((19, rows, 256), limit=rows * 19 * row // 2 + 1)
    for columns in (4, 24, 100) if kind in PLAIN and not normed else ():
        yield case((6, 13, columns))
    if chunk > 1:
        rows = target.fitting_rows(33)
        for n_tokens in (1, tiling.tokens, tiling.tokens + 1):
            yield case((rows, 256), n_tokens=n_tokens)
    for made in INPUTS if target.kernel.file in IN_HALVES else ():
        yield case((target.fitting_rows(37), 1024), inputs=Halves(target.kernel.file, kind, made))


def _routed_cases(target: Target, rng: np.random.Generator, kind: Q, tiling: Tiling) -> Iterator[Case]:
    """Experts that no token chose and experts that all chose, chunks full and not, in one buffer and in two."""
    single = target.has("CHOSEN")
    capacity = 1 if single else target.spec["CAPACITY"]
    divisor = 3 if single else target.spec["X_DIVISOR"]  # 1: an input for each slot
    used = divisor if divisor > 1 else 3
    rows = target.fitting_rows(21)
    matrix = rows * 256 // GGML_QUANT_SIZES[kind][0] * GGML_QUANT_SIZES[kind][1]
    for routing, experts, limit in (("random", 11, 0), ("all the same", 7, 0), ("random", 11, 8 * matrix)):
        for shared in (True, False) if single else (divisor > 1,):
            n_tokens = 1 if single else int(rng.integers(2, min(capacity, 12) + 1)) if capacity > 1 else 1
            yield routed_case(
                target.info,
                rng,
                kind,
                (experts, rows, 256),
                tiling,
                capacity=capacity,
                n_tokens=n_tokens,
                used=min(used, experts),
                shared_input=shared,
                routing=routing,
                limit=limit,
                inputs=inputs_of(target),
            )
    if single:
        return
    full = min(capacity, 2 * tiling.tokens + 1)
    for experts, rows, n_tokens, routing in ((5, 3, 1, "random"), (used + 1, 9, full, "all the same")):
        yield routed_case(
            target.info,
            rng,
            kind,
            (experts, target.fitting_rows(rows), 256),
            tiling,
            capacity=capacity,
            n_tokens=n_tokens,
            used=used,
            shared_input=divisor > 1,
            routing=routing,
            inputs=inputs_of(target),
        )
