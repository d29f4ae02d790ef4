"""Expert choice, grouping by expert and the weighted sum, each by itself against the reference."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import CANARY, U, canary, fetch, launch, params, upload

from model import kernels
from model.config import ModelConfig
from model.feed_forward import route_constants
from model.presets import PRESETS
from model.reference import ops
from vkbackend.device import Device

# (experts, used): fewer than a subgroup, all of them, no multiple of it, several a lane, GLM-4.7-Flash's.
SIZES = [(5, 2), (5, 5), (21, 1), (24, 4), (61, 8), (64, 4)]
UNTOUCHED = 0x7BADF00D


# (experts, used, groups, groups used): groups of one expert, narrower and wider than a subgroup, no multiples of it,
# more than it; DeepSeek-V2's, DeepSeek-V3's and Kimi-K2's (which has one).
GROUPED = [(6, 3, 6, 3), (24, 5, 6, 2), (21, 4, 3, 1), (66, 6, 33, 3), (140, 5, 2, 1), (160, 6, 8, 3), (256, 8, 8, 4)]
GROUPED += [(384, 8, 1, 1)]


def config_of(
    experts: int,
    used: int,
    gating: str = "sigmoid",
    norm: bool = True,
    scale: float = 1.8,
    groups: int = 1,
    groups_used: int = 1,
) -> ModelConfig:
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


def route(
    device: Device, config: ModelConfig, logits: np.ndarray, bias: np.ndarray, tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """The kernel's choice: ids u32 and weights f32, [capacity, used], of which ``tokens`` rows were asked for."""
    capacity, used = len(logits), config.n_expert_used
    chosen = upload(device, np.full((capacity, used), UNTOUCHED, np.uint32))
    weights = canary(device, capacity, used)
    buffers = {
        "logits": upload(device, logits.astype(np.float32)),
        "bias": upload(device, bias.astype(np.float32)),
        "chosen": chosen,
        "weights": weights,
        "params": params(device, 3, tokens),
    }
    spec, push = route_constants(config, device.subgroup_size)
    kernel = kernels.for_device(kernels.ROUTE, device.info.kind)
    launch(device, kernel, buffers, (capacity, 1, 1), spec=spec, push=push)
    ids = np.asarray(chosen.download(np.uint32, capacity * used)).reshape(capacity, used)
    return ids, fetch(weights, capacity, used)


def check_choice(device: Device, config: ModelConfig, logits: np.ndarray, bias: np.ndarray) -> None:
    """All but the last row of ``logits`` f32 [11, E], chosen and weighed as the reference does it in f64."""
    found_ids, found = route(device, config, logits, bias, tokens=10)
    ids, weights = ops.route(logits[:10].astype(np.float64), bias.astype(np.float64), config)
    np.testing.assert_array_equal(found_ids[:10], ids)
    # exp to 3 + 2 |x| units in the last place, a sum over the experts, divisions of 2.5; twice where renormalised.
    reach = np.abs(logits[:10]).max(axis=1, keepdims=True) * 2
    tolerance = 2 * U * 2 * (3 + 2 * reach + config.n_expert / 2 + 8) * weights
    assert (np.abs(found[:10] - weights) <= tolerance).all()
    assert (found_ids[10] == UNTOUCHED).all() and (found[10] == CANARY).all()


@pytest.mark.parametrize(("experts", "used"), SIZES)
@pytest.mark.parametrize("gating", ["sigmoid", "softmax"])
@pytest.mark.parametrize("norm", [True, False])
def test_choice_and_weights(device: Device, experts: int, used: int, gating: str, norm: bool) -> None:
    rng = np.random.default_rng(experts * used)
    config = config_of(experts, used, gating, norm)
    logits = (2 * rng.standard_normal((11, experts))).astype(np.float32)
    bias = (0.3 * rng.standard_normal(experts)).astype(np.float32)
    check_choice(device, config, logits, bias)


@pytest.mark.parametrize(("experts", "used", "groups", "groups_used"), GROUPED)
@pytest.mark.parametrize("gating", ["sigmoid", "softmax"])
def test_choice_within_the_best_groups(
    device: Device, experts: int, used: int, groups: int, groups_used: int, gating: str
) -> None:
    """Drawn so that neither a group nor an expert is on the edge of being chosen, and so that groups do limit."""
    rng, rows = np.random.default_rng(experts + groups), []
    config = config_of(experts, used, gating, groups=groups, groups_used=groups_used)
    bias = (0.3 * rng.standard_normal(experts)).astype(np.float32) * (gating == "sigmoid")
    while len(rows) < 11:
        logits = (2 * rng.standard_normal((1, experts))).astype(np.float32)
        if ops.routing_margin(logits.astype(np.float64), bias, config)[0] > 1e-5:
            rows.append(logits[0])
    check_choice(device, config, np.array(rows), bias)
    free = ops.route(np.array(rows, np.float64), bias, replace(config, n_group=1, n_group_used=1))[0]
    limited = ops.route(np.array(rows, np.float64), bias, config)[0]
    assert (free != limited).any() == (1 < groups < experts)


@pytest.mark.parametrize("gating", ["sigmoid", "softmax"])
def test_ties_of_groups_go_to_the_lowest(device: Device, gating: str) -> None:
    """Equal scores everywhere: the first groups, the first experts. Equal bests count twice."""
    config = config_of(48, 7, gating, groups=6, groups_used=2)
    found, _ = route(device, config, np.zeros((1, 48)), np.zeros(48), 1)
    assert found.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    level = np.full(48, -2.0)
    level[[40, 41]] = 0.5  # two equal bests, which sum to more than one better and one worse
    level[16] = 0.6
    found, _ = route(device, replace(config, n_group_used=1), level[None], np.zeros(48), 1)
    expected, _ = ops.route(level[None], None, replace(config, n_group_used=1))
    np.testing.assert_array_equal(found, expected)
    assert found[0, 0] == (40 if gating == "sigmoid" else 16)


def test_bias_selects_and_does_not_weigh(device: Device) -> None:
    """An expert lifted by its bias alone comes first, with the weight of its own small score."""
    logits = np.zeros((1, 21))
    logits[0, 13] = -4.0
    bias = np.zeros(21)
    bias[13] = 5.0
    ids, weights = route(device, config_of(21, 1, norm=False, scale=1.0), logits, bias, 1)
    assert ids.tolist() == [[13]]
    assert weights[0, 0] == pytest.approx(1 / (1 + np.exp(4.0)), rel=1e-5)


@pytest.mark.parametrize(("experts", "used"), SIZES)
@pytest.mark.parametrize("gating", ["sigmoid", "softmax"])
def test_ties_go_to_the_lowest_id(device: Device, experts: int, used: int, gating: str) -> None:
    """Three levels of score, equal within a level: ids ascend within each, also across lanes and a lane's registers."""
    levels = np.random.default_rng(7).integers(0, 3, (6, experts))
    config = config_of(experts, used, gating)
    found, _ = route(device, config, levels.astype(np.float32), np.zeros(experts), 6)
    expected, _ = ops.route(levels.astype(np.float64), None, config)
    np.testing.assert_array_equal(found, expected)


def test_scores_that_all_vanish_weigh_nothing(device: Device) -> None:
    """Sigmoids of -200 are 0 in f32: the sum they would be divided by too, and no weight may become NaN."""
    _, weights = route(device, config_of(24, 4), np.full((1, 24), -200.0), np.zeros(24), 1)
    np.testing.assert_array_equal(weights, 0)


@pytest.mark.parametrize(("experts", "used"), SIZES)
def test_grouping_lists_each_experts_pairs_in_order(device: Device, experts: int, used: int) -> None:
    """Full and not full chunks, experts that nobody chose, one that everybody did."""
    rng, capacity = np.random.default_rng(experts), 9
    for tokens in (1, 6, 9):
        chosen = np.stack([rng.permutation(experts)[:used] for _ in range(capacity)])
        chosen[:, 0] = np.where((chosen == experts - 1).any(axis=1), chosen[:, 0], experts - 1)
        counts = upload(device, np.full(experts, UNTOUCHED, np.uint32))
        pairs = upload(device, np.full((experts, capacity), UNTOUCHED, np.uint32))
        buffers = {
            "chosen": upload(device, chosen.astype(np.uint32)),
            "counts": counts,
            "pairs": pairs,
            "params": params(device, 2, tokens),
        }
        push = {"experts": experts, "used": used, "capacity": capacity}
        grid = (-(-experts // device.subgroup_size), 1, 1)
        launch(device, kernels.GROUP_BY_EXPERT, buffers, grid, push=push)
        expected = np.full((experts, capacity), UNTOUCHED, np.uint32)
        lengths = np.zeros(experts, np.uint32)
        for pair, expert in enumerate(chosen[:tokens].reshape(-1)):
            expected[expert, lengths[expert]] = pair
            lengths[expert] += 1
        np.testing.assert_array_equal(counts.download(np.uint32, experts), lengths)
        np.testing.assert_array_equal(pairs.download(np.uint32, expected.size), expected.reshape(-1))


@pytest.mark.parametrize(("width", "used"), [(4, 1), (100, 3), (256, 8)])
@pytest.mark.parametrize("has_shared", [True, False])
def test_weighted_sum_into_the_residual(device: Device, width: int, used: int, has_shared: bool) -> None:
    rng, tokens, capacity = np.random.default_rng(width), 3, 4
    routed = rng.standard_normal((capacity, used, width)).astype(np.float32)
    weights = rng.standard_normal((capacity, used)).astype(np.float32)
    shared = rng.standard_normal((capacity, width)).astype(np.float32)
    x = rng.standard_normal((capacity, width)).astype(np.float32)
    residual = upload(device, x)
    buffers = {
        "routed": upload(device, routed),
        "weights": upload(device, weights),
        "shared": upload(device, shared),
        "x": residual,
        "params": params(device, 0, tokens),
    }
    push = {"width": width, "used": used, "has_shared": int(has_shared)}
    grid = (-(-width // 4 // device.subgroup_size), capacity, 1)
    launch(device, kernels.MOE_SUM, buffers, grid, push=push)
    found = fetch(residual, capacity, width)
    terms = weights[..., None].astype(np.float64) * routed
    extra = shared * float(has_shared)
    expected = x + extra + terms.sum(axis=1)
    # Each term is rounded once and goes through at most used + 1 sums.
    tolerance = U * (used + 2) * (np.abs(x) + np.abs(extra) + np.abs(terms).sum(axis=1))
    assert (np.abs(found - expected) <= tolerance)[:tokens].all()
    np.testing.assert_array_equal(found[tokens:], x[tokens:])
