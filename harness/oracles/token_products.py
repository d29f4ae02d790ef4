"""Products of one token in every form: alone, gated by another product, summed over the chosen experts, absorbing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from numpy.typing import NDArray

from harness.oracles import absorbing, linear
from harness.oracles.case import CANARY, Case, Draft, Expected, Target, U
from harness.oracles.inputs import largest_error
from harness.oracles.linear import ROUTINGS, Normed, norm_error, random_tensor, tiling_of, uploaded
from harness.oracles.router import router_cases
from model.kernels import weight_kind
from model.linear import View, gated_linear, summed_linear
from model.reference import ops
from model.tiling import Tiling
from vkbackend.physical import DeviceInfo

Doubles = NDArray[np.float64]


def gated_error(gate: Doubles, up: Doubles, gate_error: Doubles, up_error: Doubles) -> Doubles:
    """What errors of both sums and its own roundings may do to silu(gate) * up.

    The slope of silu is below 1.1. exp's places count twice (it is added to 1 and divided by), division 2.5, two
    products; the last term is what may be flushed to zero.
    """
    own = 2 * U * (2 * (3 + 2 * np.abs(gate)) + 5) * np.abs(ops.silu(gate) * up)
    error: Doubles = np.abs(ops.silu(gate)) * up_error + 1.1 * gate_error * (np.abs(up) + up_error) + own + 1e-37
    return error


def gated_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    kind: Q,
    shape: tuple[int, ...],
    tiling: Tiling | None,
    *,
    used: int = 0,
    limit: int = 0,
) -> Case:
    """y = silu(W x') * (V x') and x' = norm(x) for ``shape`` [experts,] rows, columns; of ``used`` experts where there
    are such. What lies around must stay as it was. ``limit`` as of ``product_case``."""
    experts, rows, columns = (1, *shape)[-3:]
    what = " x ".join(map(str, shape)) + (f", {used} experts used" if used else "")
    draft = Draft(info, f"{what}, gated" + (f", buffers of {limit} bytes" if limit else ""))
    # Sums of about 1, as those of normed inputs are, where silu is far from its ends.
    pair = [random_tensor(rng, kind, shape, scale=columns**-0.5) for _ in range(2)]
    gate, up = (uploaded(draft, name, kind, shape, data, limit) for name, (data, _) in zip("wv", pair, strict=True))
    w, v = (values.astype(np.float64).reshape(experts, rows, columns) for _, values in pair)
    slots, y_batch = used or 1, rows + 3
    chosen = rng.permutation(experts)[:slots]
    x = 7 * rng.standard_normal(8 + columns).astype(np.float32)
    norm = Normed.draw(draft, rng, columns)
    before = np.full(2 + slots * y_batch, CANARY)
    y = draft.upload(before, "y")
    ids = draft.upload(chosen.astype(np.uint32)) if used else None
    to = View(y, 2, y_batch)
    gated_linear(
        draft.program,
        gate,
        up,
        View(draft.upload(x), 8),
        to,
        norm.norm,
        chosen=ids,
        used=slots,
        tiling=tiling,
    )
    expected, tolerance = before.astype(np.float64), np.zeros(before.size)
    vector = norm.of(x[8:].astype(np.float64))
    for slot, expert in enumerate(chosen):
        at = slice(2 + slot * y_batch, 2 + slot * y_batch + rows)
        one, other = w[expert] @ vector, v[expert] @ vector
        expected[at] = ops.silu(one) * other
        errors = [largest_error(m, vector) + norm_error(m, vector) for m in (w[expert], v[expert])]
        tolerance[at] = gated_error(one, other, *errors)

    def locate(index: int) -> str:
        slot, row = divmod(index - 2, y_batch)
        return f"slot {slot}, row {row}"

    return draft.case({y: Expected(expected, tolerance=tolerance, locate=locate)})


def summed_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    kind: Q,
    shape: tuple[int, int, int],
    tiling: Tiling | None,
    *,
    used: int,
    limit: int = 0,
) -> Case:
    """y += sum of shares * W[expert] x[slot] over ``used`` slots, for ``shape`` experts, rows, columns."""
    experts, rows, columns = shape
    what = f"{experts} x {rows} x {columns}, {used} experts summed"
    draft = Draft(info, what + (f", buffers of {limit} bytes" if limit else ""))
    data, w = random_tensor(rng, kind, shape)
    weight = uploaded(draft, "w", kind, shape, data, limit)
    chosen = ROUTINGS["random"](rng, 1, used, experts)[0]
    shares = rng.standard_normal(used).astype(np.float32)
    x_batch = columns + 4
    x = rng.standard_normal((used, x_batch)).astype(np.float32)
    before = rng.standard_normal(2 + rows + 5).astype(np.float32)
    y = draft.upload(before, "y")
    summed_linear(
        draft.program,
        weight,
        View(draft.upload(x), batch=x_batch),
        View(y, 2),
        used=used,
        chosen=draft.upload(chosen.astype(np.uint32)),
        shares=draft.upload(shares),
        tiling=tiling,
    )
    expected, tolerance = before.astype(np.float64), np.zeros(before.size)
    here, launches = slice(2, 2 + rows), len(weight.shards)
    reach = np.abs(expected[here])
    for slot, expert in enumerate(chosen):
        matrix, vector = w[expert].astype(np.float64), x[slot, :columns].astype(np.float64)
        term = shares[slot].astype(np.float64) * (matrix @ vector)
        expected[here] += term
        # One more product with the share, and sums over the slots, in as many steps as a slot has.
        error = largest_error(matrix, vector) * used + 2 * U * np.abs(matrix) @ np.abs(vector)
        tolerance[here] += np.abs(shares[slot]) * error
        reach += np.abs(term)
    tolerance[here] += U * launches * reach  # each launch adds to what is there
    return draft.case({y: Expected(expected, tolerance=tolerance, locate=lambda index: f"row {index - 2}")})


def cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """One row, odd numbers over several workgroups, splits; and all that a plain product must hold."""
    if target.has("ROUTES"):
        yield from router_cases(target, rng)
        return
    gates, sums = target.has("GATED"), target.has("SUMMED")
    if not gates and not sums:
        yield from (absorbing if target.has("ABSORBS") else linear).cases(target, rng)
        return
    kind, tiling = weight_kind(target.kernel), tiling_of(target)
    block, size = GGML_QUANT_SIZES[kind]
    least = max(block, 32)
    wide = least * int(rng.integers(1, 1280 // least + 1))
    row = 256 // block * size
    one, several, many = (target.fitting_rows(n) for n in (1, 21, 2 * tiling.rows + 3))
    if not target.has("CHOSEN"):
        for shape in ((one, least), (target.fitting_rows(tiling.rows + 1), 512), (many, wide)):
            yield gated_case(target.info, rng, kind, shape, tiling)
        rows = target.fitting_rows(67)
        yield gated_case(target.info, rng, kind, (rows, 256), tiling, limit=rows * row // 3)
        return
    for experts, rows, columns, used, limit in (
        (1, one, least, 1, 0),
        (11, several, 256, 3, 8 * several * row),
        (7, many, wide, 5, 0),
    ):
        make = summed_case if sums else gated_case
        yield make(target.info, rng, kind, (experts, rows, columns), tiling, used=used, limit=limit)
