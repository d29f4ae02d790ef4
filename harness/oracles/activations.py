"""The norm, the gated activation and the greedy choice.

Tolerances here and in the other files count roundings to f32 (U each) and take the precision of exp, 1 / sqrt and
division from the Vulkan specification, "Precision and Operation of SPIR-V Instructions": 3 + 2 |x|, 2 and 2.5 units in
the last place.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from harness.oracles.case import CANARY, UNTOUCHED, Case, Draft, Expected, Target, U
from model import kernels
from model.reference import ops
from model.scratch import AHEAD, ARGMAX_GROUPS
from vkbackend.physical import DeviceInfo

Floats = NDArray[np.float32]


def floats(rng: np.random.Generator, *shape: int) -> Floats:
    """Normal random numbers of ``shape``."""
    return rng.standard_normal(shape).astype(np.float32)


def norm_case(target: Target, rng: np.random.Generator, width: int, tokens: int, capacity: int) -> Case:
    """A chunk of tokens whose inputs and outputs lie apart; one is so small that eps dominates, one is zero."""
    draft, last = Draft(target.info, f"{tokens} of {capacity} tokens of {width}"), target.has("LAST_TOKEN")
    x_token, y_token, eps = width + 8, width + 4, 1e-5
    x, weight = floats(rng, capacity, x_token) * 7, floats(rng, width)
    x[tokens // 3] *= np.float32(1e-4)
    if not last:
        x[tokens // 2, :width] = 0
    out = draft.canary(capacity, y_token)
    buffers = {"x": draft.upload(x), "weight": draft.upload(weight), "y": out, "params": draft.params(9, tokens)}
    push = {"width": width, "x_token": x_token, "y_token": y_token, "eps": eps}
    draft.launch(target.kernel, buffers, (1 if last else capacity, 1, 1), spec=target.spec, push=push)
    rows = x[tokens - 1 : tokens] if last else x[:tokens]
    normed = ops.rms_norm(rows[:, :width].astype(np.float64), weight.astype(np.float64), float(np.float32(eps)))
    expected, tolerance = np.full((capacity, y_token), float(CANARY)), np.zeros((capacity, y_token))
    expected[: len(rows), :width] = normed
    tolerance[: len(rows), :width] = norm_error(normed)
    return draft.case({out: Expected(expected, tolerance=tolerance, axes=("token", "element"))})


def norm_error(normed: NDArray[np.floating]) -> NDArray[np.float64]:
    """The mean of squares is off by at most width / 4 + 3 roundings, its root by half of that. [..., width]"""
    error: NDArray[np.float64] = (normed.shape[-1] / 8 + 8) * U * np.abs(normed)
    return error


def norm_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Widths from one vec4 to all that the lanes hold, or to several vec4s a lane where they hold none."""
    most = 4 * target.lanes * (target.spec["HELD"] or 16)
    drawn = (4 * int(rng.integers(1, most // 4 + 1)) for _ in range(3))
    for number, width in enumerate((4, min(44, most), most - 4, most, *drawn)):
        for tokens, capacity in ((1, 1), (3 + number % 2, 5)):
            yield norm_case(target, rng, width, tokens, capacity)


def silu_case(info: DeviceInfo, rng: np.random.Generator, width: int, tokens: int, capacity: int) -> Case:
    """gate = silu(gate) * up in place, with gates whose exp overflows and vanishes."""
    draft = Draft(info, f"{tokens} of {capacity} tokens of {width}")
    gate, up = floats(rng, capacity, width) * 4, floats(rng, capacity, width)
    gate[0, :4] = (-200, 200, 0, -60)
    out = draft.upload(gate)
    buffers = {"gate": out, "up": draft.upload(up), "params": draft.params(0, tokens)}
    grid = (-(-width // 4 // info.subgroup_size), capacity, 1)
    draft.launch(kernels.SILU_MUL, buffers, grid, push={"per_token": width})
    exact = gate.astype(np.float64)
    expected = exact.copy()
    expected[:tokens] = (ops.silu(exact) * up)[:tokens]
    # exp's places twice (it is added to 1 and divided by), division 2.5, two products; the last term is what
    # may be flushed to zero.
    tolerance = 2 * U * (2 * (3 + 2 * np.abs(exact)) + 5) * np.abs(expected) + 1e-37
    tolerance[tokens:] = 0
    return draft.case({out: Expected(expected, tolerance=tolerance, axes=("token", "element"))})


def silu_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    for width, tokens, capacity in ((4, 1, 1), (36, 2, 3), (100, 2, 3), (4 * int(rng.integers(1, 300)), 5, 7)):
        yield silu_case(target.info, rng, width, tokens, capacity)


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


def argmax_case(info: DeviceInfo, what: str, values: NDArray[np.floating]) -> Case:
    """The id of the largest of ``values`` [n], the lowest among equals; larger numbers behind them must not win."""
    logits = values.astype(np.float32)
    draft = Draft(info, f"{what}: {logits.size} logits")
    best, tokens, n_past = draft.untouched(2 * ARGMAX_GROUPS), draft.untouched(AHEAD), logits.size % 100
    params = draft.params(n_past, 3, np.array([7, 8, 9]))
    first = {"logits": draft.upload(np.concatenate([logits, np.full(64, 1e9, np.float32)])), "best": best}
    share = -(-logits.size // ARGMAX_GROUPS)
    push = {"count": logits.size, "share": share}
    draft.launch(kernels.ARGMAX, first, (ARGMAX_GROUPS, 1, 1), push=push)
    push = {"count": ARGMAX_GROUPS, "share": ARGMAX_GROUPS, "kept": AHEAD}
    draft.launch(kernels.ARGMAX_FINAL, {"best": best, "tokens": tokens, "params": params}, (1, 1, 1), push=push)
    found = np.empty((ARGMAX_GROUPS, 2), np.uint32)
    for group in range(ARGMAX_GROUPS):
        of_group = logits[group * share : (group + 1) * share]
        # A group without logits offers minus infinity with no id.
        highest = of_group.max(initial=-np.inf)
        found[group, 0] = np.float32(highest).view(np.uint32)
        found[group, 1] = group * share + int(np.argmax(of_group)) if of_group.size else 0xFFFFFFFF
    kept = np.full(AHEAD, UNTOUCHED, np.uint32)
    kept[(n_past + 2) % AHEAD] = np.argmax(logits)
    return draft.case(
        {
            best: Expected(found, np.uint32, axes=("group", "value or id")),
            tokens: Expected(kept, np.uint32),
            params: Expected(np.array([n_past + 3, 1, kept[(n_past + 2) % AHEAD], 8, 9], np.uint32), np.uint32),
        }
    )


def argmax_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Both stages, whichever is under test: ties, infinities, shares that end early, groups with nothing."""
    for what, values in LOGITS.items():
        yield argmax_case(target.info, what, values)
    yield argmax_case(target.info, "random", rng.integers(0, 50, int(rng.integers(65, 5000))).astype(np.float32))
