"""Expert choice, grouping by expert, the weighted sum of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from harness.oracles.case import CANARY, UNTOUCHED, Case, Draft, Expected, Target, U
from model import kernels
from model.config import ModelConfig
from model.feed_forward import route_constants
from model.presets import PRESETS
from model.reference import ops
from vkbackend.kernel import Kernel
from vkbackend.physical import DeviceInfo

# (experts, used): fewer than a subgroup, all of them, no multiple of it, several a lane, GLM-4.7-Flash's.
SIZES = [(5, 2), (5, 5), (21, 1), (24, 4), (61, 8), (64, 4)]
MARGIN = 1e-5  # between the last chosen and the first refused score: far above what rounding moves one by


def config_of(
    experts: int,
    used: int,
    gating: str = "sigmoid",
    norm: bool = True,
    scale: float = 1.8,
    groups: int = 1,
    groups_used: int = 1,
) -> ModelConfig:
    """A model that routes so."""
    return replace(
        PRESETS["glm-4.7-flash"],
        expert_scale=scale,
        n_expert=experts,
        n_expert_used=used,
        gating=gating,
        norm_topk=norm,
        n_group=groups,
        n_group_used=groups_used,
    )


def route_case(
    info: DeviceInfo,
    kernel: Kernel,
    what: str,
    config: ModelConfig,
    logits: NDArray[np.floating],
    bias: NDArray[np.floating],
    tokens: int,
    always: int = 0,
) -> Case:
    """The choice for ``tokens`` rows of ``logits`` [capacity, E]: ids to the bit, in order, and weights; behind them
    the ``always`` experts that each token is sent to."""
    logits, bias = logits.astype(np.float32), bias.astype(np.float32)
    capacity, used = len(logits), config.n_expert_used
    draft = Draft(info, f"{what}: {used} of {config.n_expert} experts, {config.gating}, {tokens} of {capacity} tokens")
    draft.what += f", {always} always" * (always > 0)
    slots = used + always
    chosen, weights = draft.untouched(capacity * slots), draft.canary(capacity, slots)
    buffers = {"logits": draft.upload(logits), "bias": draft.upload(bias), "chosen": chosen, "shares": weights}
    buffers["params"] = draft.params(3, tokens)
    spec, push = route_constants(config, info.subgroup_size, always)
    draft.launch(kernel, buffers, (capacity, 1, 1), spec=spec, push={"experts": config.n_expert} | push)
    ids, values = np.full((capacity, slots), UNTOUCHED, np.uint32), np.full((capacity, slots), float(CANARY))
    ids[:tokens, used:], values[:tokens, used:] = config.n_expert + np.arange(always), 1
    ids[:tokens, :used], values[:tokens, :used] = ops.route(
        logits[:tokens].astype(np.float64), bias.astype(np.float64), config
    )
    tolerance = choice_error(config, np.abs(logits).max(axis=1, keepdims=True)) * np.abs(values)
    tolerance[tokens:], tolerance[:, used:] = 0, 0
    axes = ("token", "slot")
    return draft.case(
        {chosen: Expected(ids, np.uint32, axes=axes), weights: Expected(values, tolerance=tolerance, axes=axes)}
    )


def choice_error(config: ModelConfig, largest: NDArray[np.floating] | float) -> NDArray[np.floating] | float:
    """How much of itself a chosen expert's weight may be off where no logit is above ``largest``.

    exp to 3 + 2 |x| units in the last place, a sum over the experts, divisions of 2.5; twice where renormalised.
    """
    return 2 * U * 2 * (3 + 2 * (2 * largest) + config.n_expert / 2 + 8)


def decided_rows(
    rng: np.random.Generator, config: ModelConfig, bias: NDArray[np.float32], count: int
) -> NDArray[np.float32]:
    """Logits [count, E] of which neither a group nor an expert is on the edge of being chosen."""
    rows: list[NDArray[np.float32]] = []
    while len(rows) < count:
        logits = (2 * rng.standard_normal((1, config.n_expert))).astype(np.float32)
        if ops.routing_margin(logits.astype(np.float64), bias, config)[0] > MARGIN:
            rows.append(logits[0])
    return np.array(rows)


def random_route_case(
    info: DeviceInfo, rng: np.random.Generator, kernel: Kernel, config: ModelConfig, always: int = 0
) -> Case:
    """Ten random rows of eleven, with a bias."""
    bias = (0.3 * rng.standard_normal(config.n_expert)).astype(np.float32)
    if config.n_group > 1 and config.gating == "softmax":
        bias[:] = 0  # no such model has one
    return route_case(info, kernel, "random", config, decided_rows(rng, config, bias, 11), bias, 10, always)


def tied_route_case(info: DeviceInfo, rng: np.random.Generator, kernel: Kernel, config: ModelConfig) -> Case:
    """Three levels of score, equal within a level: ids ascend within each, also across lanes and a lane's registers."""
    levels = rng.integers(0, 3, (6, config.n_expert)).astype(np.float32)
    return route_case(info, kernel, "ties", config, levels, np.zeros(config.n_expert), 6)


def vanishing_route_case(info: DeviceInfo, kernel: Kernel, config: ModelConfig) -> Case:
    """Sigmoids of -200 are 0 in f32: the sum they would be divided by too, and no weight may become NaN.

    In float64 they are 1e-87, equal, so the oracle's ids are the first ones; its weights are what f32 cannot hold.
    """
    made = route_case(
        info, kernel, "all vanish", config, np.full((1, config.n_expert), -200.0), np.zeros(config.n_expert), 1
    )
    ids, weights = made.expected
    return replace(
        made, expected={ids: made.expected[ids], weights: Expected(np.zeros((1, config.n_expert_used), np.float32))}
    )


def route_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Every gate with as many experts, and groups, as the kernel's constants have room for."""
    for config in choice_configs(target, rng):
        yield random_route_case(target.info, rng, target.kernel, config, int(rng.integers(3)))
        yield tied_route_case(target.info, rng, target.kernel, config)
    if not target.spec["GROUP"]:
        room = target.spec["PER_LANE"] * target.lanes
        yield vanishing_route_case(target.info, target.kernel, config_of(room, min(room, 4)))


def choice_configs(target: Target, rng: np.random.Generator) -> Iterator[ModelConfig]:
    """Models with each gate that the choice's constants have room for: most experts, fewest, any number; all groups."""
    group, room = target.spec["GROUP"], target.spec["PER_LANE"] * target.lanes
    least = room - target.lanes + 1
    for gating in ("sigmoid", "softmax"):
        if group:
            groups = _groups(target)
            used = min(6, group * max(1, groups // 2))
            yield config_of(groups * group, used, gating, groups=groups, groups_used=max(1, groups // 2))
        else:
            sizes = (room, least, int(rng.integers(least, room + 1)))
            for n, used, norm in zip(sizes, (4, 8, 1), (True, False, True), strict=True):
                yield config_of(n, min(n, used), gating, norm)


def _groups(target: Target) -> int:
    """The most groups whose experts and scores the constants have room for, at least as many as they need."""
    lanes = target.lanes
    return min(target.spec["PER_LANE"] * lanes // target.spec["GROUP"], target.spec["GROUPS_PER_LANE"] * lanes)


def grouping_case(
    info: DeviceInfo, rng: np.random.Generator, experts: int, used: int, tokens: int, capacity: int = 9
) -> Case:
    """Each expert's pairs in order; one expert that everybody chose."""
    draft = Draft(info, f"{used} of {experts} experts, {tokens} of {capacity} tokens")
    chosen = np.stack([rng.permutation(experts)[:used] for _ in range(capacity)])
    chosen[:, 0] = np.where((chosen == experts - 1).any(axis=1), chosen[:, 0], experts - 1)
    counts, pairs = draft.untouched(experts), draft.untouched(experts * capacity)
    buffers = {"chosen": draft.upload(chosen.astype(np.uint32)), "counts": counts, "pairs": pairs}
    buffers["params"] = draft.params(2, tokens)
    push = {"experts": experts, "used": used, "capacity": capacity}
    draft.launch(kernels.GROUP_BY_EXPERT, buffers, (-(-experts // info.subgroup_size), 1, 1), push=push)
    listed, lengths = np.full((experts, capacity), UNTOUCHED, np.uint32), np.zeros(experts, np.uint32)
    for pair, expert in enumerate(chosen[:tokens].reshape(-1)):
        listed[expert, lengths[expert]] = pair
        lengths[expert] += 1
    return draft.case(
        {
            counts: Expected(lengths, np.uint32, axes=("expert",)),
            pairs: Expected(listed, np.uint32, axes=("expert", "place")),
        }
    )


def grouping_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Full and not full chunks, experts that nobody chose."""
    for experts, used in (*SIZES, (int(rng.integers(9, 300)), 8)):
        for tokens in (1, 9, int(rng.integers(2, 9))):
            yield grouping_case(target.info, rng, experts, used, tokens)


def sum_case(info: DeviceInfo, rng: np.random.Generator, width: int, used: int, has_shared: bool) -> Case:
    """x += weighted experts (+ the shared one) for three of four tokens."""
    draft = Draft(info, f"{used} x {width}" + (" and a shared expert" if has_shared else ""))
    tokens, capacity = 3, 4
    routed = rng.standard_normal((capacity, used, width)).astype(np.float32)
    weights = rng.standard_normal((capacity, used)).astype(np.float32)
    shared = rng.standard_normal((capacity, width)).astype(np.float32)
    x = rng.standard_normal((capacity, width)).astype(np.float32)
    residual = draft.upload(x)
    buffers = {"routed": draft.upload(routed), "weights": draft.upload(weights), "shared": draft.upload(shared)}
    buffers |= {"x": residual, "params": draft.params(0, tokens)}
    push = {"width": width, "used": used, "has_shared": int(has_shared)}
    grid = (-(-width // 4 // info.subgroup_size), capacity, 1)
    draft.launch(kernels.MOE_SUM, buffers, grid, push=push)
    terms = weights[..., None].astype(np.float64) * routed
    extra = shared * float(has_shared)
    expected = x + extra + terms.sum(axis=1)
    # Each term is rounded once and goes through at most used + 1 sums.
    tolerance = U * (used + 2) * (np.abs(x) + np.abs(extra) + np.abs(terms).sum(axis=1))
    expected[tokens:], tolerance[tokens:] = x[tokens:], 0
    return draft.case({residual: Expected(expected, tolerance=tolerance, axes=("token", "element"))})


def sum_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """One expert and many, with and without a shared one, widths that are no multiple of the subgroup."""
    for width, used in ((4, 1), (100, 3), (256, 8), (4 * int(rng.integers(1, 300)), 6)):
        for has_shared in (True, False):
            yield sum_case(target.info, rng, width, used, has_shared)
