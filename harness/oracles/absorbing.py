"""The product with attn_k_b that also stores a token's latent row and rotates its queries."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q

from harness.oracles.activations import floats
from harness.oracles.caches import GLM, added_rows, rope_error, rotated, with_rope
from harness.oracles.case import CANARY, Case, Draft, Expected, Target
from harness.oracles.inputs import largest_error
from harness.oracles.latent_rows import Stored
from harness.oracles.linear import random_tensor, tiling_of, uploaded
from model.kernels import weight_kind
from model.linear import View, absorbing_linear
from model.scratch import rope_tables


def absorbing_case(
    target: Target, rng: np.random.Generator, kind: Q, *, heads: int, nope: int, latent: int, rope: int, n_past: int
) -> Case:
    """One token after ``n_past``: queries of ``heads`` heads, whose rope part stands behind their ``nope`` numbers, and
    a latent row between other products' outputs. Neighbours of all that is written must stay."""
    draft = Draft(target.info, f"{heads} heads of {latent} x {nope}, {rope} rotated, after {n_past}")
    table, n_high = rope_tables(with_rope(rope), n_past + 6)
    data, values = random_tensor(rng, kind, (heads, latent, nope))
    weight = uploaded(draft, "k_b", kind, (heads, latent, nope), data, 0)
    q, kv_first, out_head = floats(rng, 1, heads, nope + rope), 4, latent + rope
    compressed, norm = floats(rng, 1, kv_first + latent + rope), floats(rng, latent)
    added, error = added_rows(compressed[:, kv_first:], norm, n_past)
    stored, n_ctx = Stored.of(target.kernel), n_past + 4
    rows = {"cache": (latent + rope, added, error)}
    if target.has("REDUNDANT_V"):
        rows["values"] = latent, added[:, :latent], error[:, :latent]
    before = {name: stored.empty(n_ctx, width) for name, (width, _, _) in rows.items()}
    caches = {name: draft.upload(empty) for name, empty in before.items()}
    buffers = {"kv": draft.upload(compressed), "weight": draft.upload(norm), "rope_tables": draft.upload(table)}
    buffers |= {"params": draft.params(n_past, 1), **caches}
    push: dict[str, int | float] = {"latent": latent, "rope": rope, "kv_first": kv_first, "kv_token": compressed.size}
    push |= {"n_high": n_high, "eps": float(GLM.rms_eps), "heads": heads, "q_head": nope + rope, "q_rope": nope}
    push |= {"out_head": out_head, "out_rope": latent}
    y = draft.canary(heads + 1, out_head)
    absorbing_linear(
        draft.program,
        weight,
        View(draft.upload(q), batch=nope + rope, token=q.size),
        View(y, batch=out_head, token=heads * out_head),
        buffers,
        push,
        stored.kind.name.lower(),
        tiling=tiling_of(target),
    )
    expected, tolerance = np.full((heads + 1, out_head), float(CANARY)), np.zeros((heads + 1, out_head))
    for head in range(heads):
        matrix, vector = values[head].astype(np.float64), q[0, head, :nope].astype(np.float64)
        expected[head, :latent], tolerance[head, :latent] = matrix @ vector, largest_error(matrix, vector)
    expected[:heads, latent:] = rotated(q[..., nope:], n_past)[0]
    tolerance[:heads, latent:] = rope_error(q[0, :, nope:])
    found = {y: Expected(expected, tolerance=tolerance, axes=("head", "element"))}
    for name, (width, row, off) in rows.items():
        at = slice(n_past, n_past + 1)
        found[caches[name]] = stored.expected(
            before[name], width, at, row, off + stored.error(row), ("position", "element")
        )
    return draft.case(found)


def cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """One head and several, the first position and later ones, fewer rows than a workgroup's and more."""
    kind = weight_kind(target.kernel)
    block = max(GGML_QUANT_SIZES[kind][0], 32)
    drawn = int(rng.integers(2, 6)), 8 * int(rng.integers(2, 40)), 4 * int(rng.integers(1, 17))
    for (heads, latent, rope), nope, n_past in (
        ((1, 8, 2), block, 0),
        ((5, 512, 64), block, 255),
        (drawn, block * int(rng.integers(1, 512 // block + 1)), int(rng.integers(0, 900))),
    ):
        yield absorbing_case(target, rng, kind, heads=heads, nope=nope, latent=latent, rope=rope, n_past=n_past)
