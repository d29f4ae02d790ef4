"""Expert choice, grouping by expert and the weighted sum, each by itself against its oracle."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import hold

from harness.oracles.case import Case
from harness.oracles.router import router_case
from harness.oracles.routing import (
    SIZES,
    config_of,
    grouping_case,
    random_route_case,
    route_case,
    sum_case,
    tied_route_case,
    vanishing_route_case,
)
from model import kernels
from model.config import ModelConfig
from model.reference import ops
from model.tiling import Tiling
from vkbackend.device import Device
from vkbackend.kernel import Kernel
from vkbackend.pace import Pace
from vkbackend.tuning import Entry

# (experts, used, groups, groups used): groups of one expert, narrower and wider than a subgroup, no multiples of it,
# more than it; DeepSeek-V2's, DeepSeek-V3's and Kimi-K2's (which has one).
GROUPED = [(6, 3, 6, 3), (24, 5, 6, 2), (21, 4, 3, 1), (66, 6, 33, 3), (140, 5, 2, 1), (160, 6, 8, 3), (256, 8, 8, 4)]
GROUPED += [(384, 8, 1, 1)]


@pytest.fixture
def kernel(device: Device) -> Kernel:
    return kernels.for_device(kernels.ROUTE, device.info.kind)


def choice_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The ids and weights that a case expects, [capacity, used]."""
    ids, weights = (expected.values for expected in case.expected.values())
    return ids, weights


@pytest.mark.parametrize(("experts", "used"), SIZES)
@pytest.mark.parametrize("gating", ["sigmoid", "softmax"])
@pytest.mark.parametrize("norm", [True, False])
def test_choice_and_weights(device: Device, kernel: Kernel, experts: int, used: int, gating: str, norm: bool) -> None:
    rng = np.random.default_rng(experts * used)
    hold(device, random_route_case(device.info, rng, kernel, config_of(experts, used, gating, norm)))


@pytest.mark.parametrize(("experts", "used", "groups", "groups_used"), GROUPED)
@pytest.mark.parametrize("gating", ["sigmoid", "softmax"])
def test_choice_within_the_best_groups(
    device: Device, kernel: Kernel, experts: int, used: int, groups: int, groups_used: int, gating: str
) -> None:
    """Groups do limit the choice here."""
    rng = np.random.default_rng(experts + groups)
    config = config_of(experts, used, gating, groups=groups, groups_used=groups_used)
    case = random_route_case(device.info, rng, kernel, config)
    free = replace(config, n_group=1, n_group_used=1)
    assert (choice_of(case)[0][:10] != _without_groups(case, free)).any() == (1 < groups < experts)
    hold(device, case)


def _without_groups(case: Case, config: ModelConfig) -> np.ndarray:
    """What the same inputs would choose if there were no groups."""
    buffers = case.launches[0].buffers
    bias = buffers["bias"].download(np.float32, config.n_expert).astype(np.float64)
    logits = buffers["logits"].download(np.float32, 10 * config.n_expert).astype(np.float64)
    return np.asarray(ops.route(logits.reshape(10, -1), bias, config)[0])


@pytest.mark.parametrize("gating", ["sigmoid", "softmax"])
def test_ties_of_groups_go_to_the_lowest(device: Device, kernel: Kernel, gating: str) -> None:
    """Equal scores everywhere: the first groups, the first experts. Equal bests count twice."""
    config = config_of(48, 7, gating, groups=6, groups_used=2)
    case = route_case(device.info, kernel, "all equal", config, np.zeros((1, 48)), np.zeros(48), 1)
    assert choice_of(case)[0].tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    hold(device, case)
    level = np.full(48, -2.0)
    level[[40, 41]] = 0.5  # two equal bests, which sum to more than one better and one worse
    level[16] = 0.6
    case = route_case(device.info, kernel, "equal bests", replace(config, n_group_used=1), level[None], np.zeros(48), 1)
    assert choice_of(case)[0][0, 0] == (40 if gating == "sigmoid" else 16)
    hold(device, case)


def test_bias_selects_and_does_not_weigh(device: Device, kernel: Kernel) -> None:
    """An expert lifted by its bias alone comes first, with the weight of its own small score."""
    logits, bias = np.zeros((1, 21)), np.zeros(21)
    logits[0, 13], bias[13] = -4.0, 5.0
    case = route_case(device.info, kernel, "lifted", config_of(21, 1, norm=False, scale=1.0), logits, bias, 1)
    ids, weights = choice_of(case)
    assert ids.tolist() == [[13]]
    assert weights[0, 0] == pytest.approx(1 / (1 + np.exp(4.0)), rel=1e-5)
    hold(device, case)


@pytest.mark.parametrize(("experts", "used"), SIZES)
@pytest.mark.parametrize("gating", ["sigmoid", "softmax"])
def test_ties_go_to_the_lowest_id(device: Device, kernel: Kernel, experts: int, used: int, gating: str) -> None:
    rng = np.random.default_rng(7)
    hold(device, tied_route_case(device.info, rng, kernel, config_of(experts, used, gating)))


def test_scores_that_all_vanish_weigh_nothing(device: Device, kernel: Kernel) -> None:
    hold(device, vanishing_route_case(device.info, kernel, config_of(24, 4)))


@pytest.fixture(params=[kernels.MATVEC.file, kernels.MATVEC_ROWS.file])
def tiling(request: pytest.FixtureRequest, device: Device) -> Tiling:
    """Both forms of a token's product, whichever is the device's, with one row a lane or subgroup: many workgroups."""
    return Tiling.of(Entry(request.param, {"ROWS": 1}), device.subgroup_size)


@pytest.mark.parametrize(("experts", "used"), SIZES)
@pytest.mark.parametrize("gating", ["sigmoid", "softmax"])
@pytest.mark.parametrize("normed", [True, False])
def test_a_router_chooses_in_its_last_workgroup(
    device: Device, tiling: Tiling, experts: int, used: int, gating: str, normed: bool
) -> None:
    rng = np.random.default_rng(experts * used)
    config = config_of(experts, used, gating)
    hold(device, router_case(device.info, rng, config, 224, tiling, normed=normed, always=experts % 3))


@pytest.mark.parametrize(("experts", "used", "groups", "groups_used"), GROUPED)
def test_a_router_chooses_within_the_best_groups(
    device: Device, tiling: Tiling, experts: int, used: int, groups: int, groups_used: int
) -> None:
    rng = np.random.default_rng(experts + groups)
    config = config_of(experts, used, groups=groups, groups_used=groups_used)
    hold(device, router_case(device.info, rng, config, 64, tiling, normed=True))


def test_a_router_submitted_in_pieces_chooses_once(device: Device, tiling: Tiling) -> None:
    """One workgroup, as many again, and so on, as what the device does not know is run; then all at once."""
    before, device.pace = device.pace, Pace()
    try:
        rng = np.random.default_rng(3)
        case = router_case(device.info, rng, config_of(61, 8), 224, tiling, normed=True, runs=4)
        submissions = device.pace.submissions
        hold(device, case)
        assert device.pace.submissions - submissions > 4
    finally:
        device.pace = before


@pytest.mark.parametrize(("experts", "used"), SIZES)
@pytest.mark.parametrize("tokens", [1, 6, 9])
def test_grouping_lists_each_experts_pairs_in_order(device: Device, experts: int, used: int, tokens: int) -> None:
    hold(device, grouping_case(device.info, np.random.default_rng(experts), experts, used, tokens))


@pytest.mark.parametrize(("width", "used"), [(4, 1), (100, 3), (256, 8)])
@pytest.mark.parametrize("has_shared", [True, False])
def test_weighted_sum_into_the_residual(device: Device, width: int, used: int, has_shared: bool) -> None:
    hold(device, sum_case(device.info, np.random.default_rng(width), width, used, has_shared))
