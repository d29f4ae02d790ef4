"""Latent rows expanded to keys and values of all heads: the weights as halves, a tile's products."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from harness.oracles.activations import floats
from harness.oracles.case import UNTOUCHED, Case, Draft, Expected, Target, U
from harness.oracles.latent_rows import F16_SMALLEST, F16_STEP
from model import kernels
from model.half_columns import EIGHT, HalfColumns, eights
from vkbackend.buffer import Buffer
from vkbackend.physical import DeviceInfo

LARGEST = 65504.0  # of halves


def _flag(draft: Draft) -> Buffer:
    return draft.upload(np.zeros(1, np.uint32), "too_large")


def _flagged(exact: NDArray[np.floating]) -> Expected:
    return Expected(np.array([(~(np.abs(exact) <= LARGEST)).any()], np.uint32), np.uint32, axes=("flag",))


def weights_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    *,
    heads: int,
    latent: int,
    columns: int,
    first: int,
    turned: bool,
    large: float | None = None,
) -> Case:
    """A tensor [heads][latent][columns], ``turned`` [heads][columns][latent], to columns from ``first`` on of rows that
    have eight more on each side, which stay as they were. One of its numbers is ``large``."""
    what = f"{heads} heads, {latent} x {columns}{' turned' if turned else ''} from column {first} on"
    draft = Draft(info, what if large is None else f"{what}, one number {large:g}")
    exact = floats(rng, heads, latent, columns) * 10.0 ** rng.integers(-6, 3, (heads, latent, columns))
    source = exact.astype(np.float32)
    if large is not None:
        source.reshape(-1)[rng.integers(source.size)] = large
    width = EIGHT * eights(first + columns) + EIGHT
    out = draft.untouched(heads * latent * width // 2)
    push = {"pairs": columns // 2, "rows": latent, "head": latent * columns, "words": width // 2, "first": first // 2}
    push |= {"latent": 1, "column": latent} if turned else {"latent": columns, "column": 1}
    given = draft.upload(source.swapaxes(1, 2) if turned else source)
    buffers = {"source": given, "halves": out, "too_large": _flag(draft)}
    draft.launch(kernels.PROMPT_WEIGHTS, buffers, (latent, heads, 1), push=push)
    kept = np.full(heads * latent * width // 2, UNTOUCHED, np.uint32).view(np.float16)
    expected = kept.reshape(heads, latent, width).astype(np.float64)
    tolerance = np.zeros(expected.shape)
    made = slice(first, first + columns)
    expected[..., made] = np.nan_to_num(np.clip(source, -LARGEST, LARGEST), nan=LARGEST)
    tolerance[..., made] = F16_STEP * np.abs(expected[..., made]) + F16_SMALLEST
    found = Expected(expected, np.float16, tolerance, axes=("head", "latent", "column"))
    return draft.case({out: found, buffers["too_large"]: _flagged(source)})


def weights_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """A key's columns and a value's, one head and several, columns that lanes have several of or none; the largest
    half and more."""
    drawn = int(rng.integers(1, 9)), 4 * int(rng.integers(1, 80)), 2 * int(rng.integers(1, 99)), int(rng.integers(2))
    for (heads, latent, columns, turned), large in (
        ((3, 32, 24, False), None),
        ((2, 64, 28, True), None),
        ((1, 8, 2, True), -LARGEST),
        ((2, 16, 40, False), -1.01 * LARGEST),
        ((1, 12, 6, False), np.nan),
        (drawn, 1e30),
    ):
        first = EIGHT * int(rng.integers(4))
        case = {"heads": heads, "latent": latent, "columns": columns, "first": first}
        yield weights_case(target.info, rng, **case, turned=bool(turned), large=large)


def expand_case(
    target: Target,
    rng: np.random.Generator,
    *,
    latent: int,
    shared: int,
    parts: tuple[int, int],
    count: int,
    copied: bool = True,
    large: float | None = None,
) -> Case:
    """``count`` rows of ``latent`` and ``shared`` numbers, of three heads: ``parts``, in eights, are a key's own and a
    value's columns; between them stands what the heads share. Without ``copied`` the value's columns alone are made.
    One of a head's values is about ``large``.

    What is behind the tile's last row is NaN, and positions behind it stay as they were.
    """
    heads, (own, value) = 3, parts
    what = f"{count} rows of {latent} + {shared}, eights {own} and {value}, copied {copied}"
    draft = Draft(target.info, what if large is None else f"{what}, one number {large:g}")
    row, behind = EIGHT * eights(latent + shared), eights(shared)
    capacity, key = count + 3, own + behind
    width = key + value
    rows = np.zeros((capacity, row), np.float16)
    rows[:, : latent + shared] = floats(rng, capacity, latent + shared)
    rows[count:] = np.nan
    weights = floats(rng, heads, latent, EIGHT * width).astype(np.float16)
    weights[..., EIGHT * own : EIGHT * key] = 0  # as the model's buffer has it
    if large is not None:  # a row by itself is its squares' sum
        head, position, column = (int(rng.integers(n)) for n in (heads, count, EIGHT * value))
        one = rows[position, :latent].astype(np.float64)
        weights[head, :, EIGHT * key + column] = one * (large / (one @ one))
    out = draft.untouched(heads * capacity * width * EIGHT // 2)
    lanes = HalfColumns(4 if target.has("FOURS") else EIGHT, target.has("TEXELS"), 0)
    first = 0 if copied else key
    push = {"latent": latent, "row": row // 4, "width": lanes.takes(width), "tile": capacity}
    push |= {"column_first": lanes.takes(first), "column_end": lanes.takes(width)}
    push |= {"copied_first": lanes.takes(own), "copied_end": lanes.takes(key)}
    buffers = {"rows": draft.upload(rows), "weights": draft.upload(weights), "expanded": out}
    buffers["too_large"] = _flag(draft)
    buffers["tile"] = draft.upload(np.array([7, count], np.uint32), "tile")
    each = target.spec["ROWS"]
    grid = (-(-lanes.takes(width - first) // target.lanes), -(-capacity // each), heads)
    draft.launch(target.kernel, buffers, grid, spec=target.spec, push=push)
    kept = np.full(heads * capacity * width * EIGHT // 2, UNTOUCHED, np.uint32).view(np.float16)
    expected = kept.reshape(heads, capacity, EIGHT * width).astype(np.float64)
    tolerance = np.zeros(expected.shape)
    latents, by = rows[:count, :latent].astype(np.float64), weights.astype(np.float64)
    made = slice(EIGHT * first, None)
    exact = latents @ by
    # Exact products of halves, `latent` roundings of their sum; the result is rounded to a half.
    error = U * (latent + 1) * np.abs(latents) @ np.abs(by)
    expected[:, :count, made] = np.clip(exact, -LARGEST, LARGEST)[..., made]
    tolerance[:, :count, made] = (error * (1 + F16_STEP) + F16_STEP * np.abs(exact) + F16_SMALLEST)[..., made]
    if copied:
        middle = slice(EIGHT * own, EIGHT * key)
        expected[:, :count, middle] = rows[:count, latent : latent + EIGHT * behind]
        tolerance[:, :count, middle] = 0
    found = Expected(expected, np.float16, tolerance, axes=("head", "position", "column"))
    return draft.case({out: found, buffers["too_large"]: _flagged(exact[..., made])})


def expand_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Blocks of columns that are all copied, partly, and not; a shared part that is no whole eight; one row; nearly the
    largest half and more."""
    drawn = tuple(int(n) for n in rng.integers((1, 1, 1, 1, 1), (40, 17, 30, 30, 60)))
    for latent, shared, parts, count, copied, large in (
        (512, 64, (24, 32), 19, True, None),
        (32, 12, (2, 2), 1, True, 0.99 * LARGEST),
        (64, 8, (3, 4), 37, False, -1.01 * LARGEST),
        (8 * drawn[0], 4 * drawn[1], (drawn[2], drawn[3]), drawn[4], bool(rng.integers(2)), 1.2 * LARGEST),
    ):
        shape = {"latent": latent, "shared": shared, "count": count}
        yield expand_case(target, rng, **shape, parts=parts, copied=copied, large=large)
