"""A router's product with the choice by it, in one launch: the last workgroup to finish chooses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from gguf import GGMLQuantizationType as Q

from harness.oracles.case import CANARY, UNTOUCHED, Case, Draft, Expected, Target
from harness.oracles.inputs import largest_error
from harness.oracles.linear import Normed, norm_error, random_tensor, tiling_of, uploaded
from harness.oracles.routing import MARGIN, choice_configs, choice_error
from model.config import ModelConfig
from model.feed_forward import route_constants
from model.linear import View, routing_linear
from model.reference import ops
from model.tiling import Tiling
from vkbackend.physical import DeviceInfo


def router_case(
    info: DeviceInfo,
    rng: np.random.Generator,
    config: ModelConfig,
    columns: int,
    tiling: Tiling | None,
    *,
    normed: bool,
    always: int = 0,
    runs: int = 3,
) -> Case:
    """Logits, ids and weights of one token, launched ``runs`` times over: each must leave the count of finished
    workgroups as it found it. The input is drawn until no expert is on the edge of being chosen."""
    experts, used = config.n_expert, config.n_expert_used
    draft = Draft(info, f"{experts} x {columns}: {used} of {experts} experts, {config.gating}, {always} always")
    data, w = random_tensor(rng, Q.F32, (experts, columns), scale=columns**-0.5)
    weight, matrix = uploaded(draft, "w", Q.F32, (experts, columns), data, 0), w.astype(np.float64)
    norm = Normed.draw(draft, rng, columns) if normed else None
    bias = (0.3 * rng.standard_normal(experts)).astype(np.float32)
    if config.n_group > 1 and config.gating == "softmax":
        bias[:] = 0  # no such model has one
    while True:
        x = rng.standard_normal(8 + columns).astype(np.float32)
        vector = norm.of(x[8:].astype(np.float64)) if norm else x[8:].astype(np.float64)
        logits = matrix @ vector
        error = largest_error(matrix, vector) + (norm_error(matrix, vector) if norm else 0)
        # No score is steeper in its logit than 1; a group's is the sum of two.
        if ops.routing_margin(logits[None], bias, config)[0] > MARGIN + 4 * error.max():
            break
    before = np.full(2 + experts + 3, CANARY)
    y, chosen, shares = draft.upload(before, "y"), draft.untouched(used + always), draft.canary(used + always)
    arrivals = draft.upload(np.zeros(1, np.uint32), "arrivals")
    buffers = {"bias": draft.upload(bias), "chosen": chosen, "shares": shares, "arrivals": arrivals}
    spec, push = route_constants(config, info.subgroup_size, always)
    source, to = View(draft.upload(x), 8), View(y, 2)
    for _ in range(runs):
        routing_linear(
            draft.program, weight, source, to, norm.norm if norm else None, buffers, spec, push, tiling=tiling
        )
    expected, tolerance = before.astype(np.float64), np.zeros(before.size)
    expected[2 : 2 + experts], tolerance[2 : 2 + experts] = logits, error
    ids, values = np.full(used + always, UNTOUCHED, np.uint32), np.ones(used + always)
    (ids[:used],), (values[:used],) = ops.route(logits[None], bias.astype(np.float64), config)
    ids[used:] = experts + np.arange(always)
    # A sigmoid changes by its logit's error times itself, a softmax by twice that, and as much again where divided.
    off = (choice_error(config, float(np.abs(logits).max())) + 4 * error.max()) * np.abs(values)
    off[used:] = 0
    return draft.case(
        {
            y: Expected(expected, tolerance=tolerance, locate=lambda index: f"expert {index - 2}"),
            chosen: Expected(ids, np.uint32, axes=("slot",)),
            shares: Expected(values, tolerance=off, axes=("slot",)),
            arrivals: Expected(np.zeros(1, np.uint32), np.uint32),
        }
    )


def router_cases(target: Target, rng: np.random.Generator) -> Iterator[Case]:
    """Every gate with as many experts, and groups, as the constants have room for."""
    tiling, normed = tiling_of(target, "ROWS"), target.has("NORMED")
    for config in choice_configs(target, rng):
        columns = 32 * int(rng.integers(1, 41))
        always = int(rng.integers(3))
        yield router_case(target.info, rng, config, columns, tiling, normed=normed, always=always)
