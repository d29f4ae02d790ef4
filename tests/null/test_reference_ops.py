"""The oracle's operations against independent ways of computing the same."""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import Yarn
from model.reference import ops
from model.rope import magnitude, plain_frequencies, yarn_frequencies
from tests.null.random_model import BASE

EPS32 = float(np.finfo(np.float32).eps)


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_rms_norm_against_float64() -> None:
    x, weight = normal((3, 37)), normal((37,), 1)
    exact = np.array([[v / math.sqrt(sum(float(u) ** 2 for u in row) / 37 + 1e-5) for v in row] for row in x]) * weight
    got = ops.rms_norm(x, weight, 1e-5)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, exact, rtol=8 * EPS32)


def test_rms_norm_of_zero_is_zero() -> None:
    assert not ops.rms_norm(np.zeros((1, 5), np.float32), np.ones(5, np.float32), 1e-5).any()


def test_sigmoid_and_silu_do_not_overflow() -> None:
    x = np.array([-200, -90, -1.5, 0, 1.5, 90, 200], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        got, silu = ops.sigmoid(x), ops.silu(x)
    exact = np.array([1 / (1 + math.exp(-float(v))) for v in x])
    np.testing.assert_allclose(got, exact, rtol=4 * EPS32, atol=1e-44)  # atol: float32 subnormals
    np.testing.assert_allclose(silu, x * exact, rtol=4 * EPS32, atol=1e-40)


def test_softmax_ignores_minus_infinity_and_survives_large_values() -> None:
    got = ops.softmax(np.array([[1000.0, 999.0, -np.inf]], np.float32))
    np.testing.assert_allclose(got, [[1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0]], rtol=4 * EPS32)


@pytest.mark.parametrize("n_rope", [2, 6, 64])
@pytest.mark.parametrize("offset", [0, 1000, 202_000])
def test_rope_is_multiplication_by_a_complex_unit(n_rope: int, offset: int) -> None:
    x = normal((5, 3, n_rope))
    positions = np.arange(offset, offset + 5)
    frequencies = plain_frequencies(n_rope, 1e6)
    got = ops.rope(x, positions, frequencies)
    units = np.exp(1j * positions[:, None, None] * np.array([1e6 ** (-2 * i / n_rope) for i in range(n_rope // 2)]))
    exact = (x[..., 0::2] + 1j * x[..., 1::2]) * units
    # Two products and a sum, each rounded, plus the rounding of cos and sin.
    bound = 4 * EPS32 * np.abs(x).max()
    np.testing.assert_allclose(got[..., 0::2], exact.real, rtol=0, atol=bound)
    np.testing.assert_allclose(got[..., 1::2], exact.imag, rtol=0, atol=bound)


def test_rope_scores_depend_on_distance_only() -> None:
    q, k = normal((1, 8), 1).astype(np.float64), normal((1, 8), 2).astype(np.float64)
    frequencies = plain_frequencies(8, 1e4)

    def score(at: int, distance: int) -> float:
        rotated_q = ops.rope(q, np.array([at + distance]), frequencies)
        return (rotated_q @ ops.rope(k, np.array([at]), frequencies).T).item()

    assert score(0, 7) == pytest.approx(score(5000, 7), abs=1e-11)
    assert abs(score(0, 7) - score(0, 8)) > 1e-3


def test_yarn_keeps_fast_pairs_divides_slow_ones_and_ramps_between() -> None:
    # DeepSeek-V2-Lite: pairs 0..10 kept, 23..31 interpolated. The ends are 32 log(4096 / 2 pi turns) / log(1e4):
    # 10.47 at 32 turns, floored; 22.51 at one turn, ceiled.
    kept = plain_frequencies(64, 1e4)
    got = yarn_frequencies(64, 1e4, factor=40.0, n_ctx_orig=4096)
    np.testing.assert_array_equal(got[:11], kept[:11])
    np.testing.assert_allclose(got[23:], kept[23:] / 40, rtol=1e-15)
    share = np.arange(1, 13) / 13
    np.testing.assert_allclose(got[11:23], kept[11:23] * (share / 40 + 1 - share), rtol=1e-14)


def test_yarn_with_factor_one_changes_nothing() -> None:
    np.testing.assert_allclose(yarn_frequencies(16, 1e4, 1.0, 4096), plain_frequencies(16, 1e4), rtol=1e-15)


def test_yarn_scales_either_the_scores_or_the_rotation() -> None:
    """DeepSeek's checkpoints have mscale_all_dim, and then rotations keep their length; without it they grow."""
    plain, growth = replace(BASE, yarn=None), 1 + 0.1 * math.log(8)
    with_mscale = replace(BASE, yarn=Yarn(8.0, 16, log_multiplier=0.1))
    without = replace(BASE, yarn=Yarn(8.0, 16))
    assert [magnitude(c) for c in (plain, with_mscale, without)] == [1, 1, growth]
    assert with_mscale.attn_scale == pytest.approx(plain.attn_scale * growth**2)
    assert without.attn_scale == plain.attn_scale
    x, frequencies = normal((3, 6)), plain_frequencies(6, 1e4)
    grown = ops.rope(x, np.arange(3), frequencies, magnitude=growth)
    np.testing.assert_allclose(grown, growth * ops.rope(x, np.arange(3), frequencies), rtol=8 * EPS32, atol=8 * EPS32)


@dataclass(frozen=True)
class Routing:
    n_expert_used: int
    gating: str = "sigmoid"
    norm_topk: bool = True
    expert_scale: float = 1.8
    n_group: int = 1
    n_group_used: int = 1


def brute_force_route(logits: list[float], bias: list[float], config: Routing) -> tuple[list[int], list[float]]:
    """One token's routing from the definition: the best of all sets, then weights in order of selection score."""
    n = len(logits)
    if config.gating == "sigmoid":
        scores = [1 / (1 + math.exp(-v)) for v in logits]
    else:
        total = sum(math.exp(v) for v in logits)
        scores = [math.exp(v) / total for v in logits]
    # What NumPy adds in float32 decides ties, so selection is compared in float32.
    selection = [float(np.float32(np.float32(s) + np.float32(b))) for s, b in zip(scores, bias, strict=True)]
    size = n // config.n_group
    groups = [range(g * size, (g + 1) * size) for g in range(config.n_group)]

    def group_score(members: range) -> float:
        best = sorted((selection[e] for e in members), reverse=True)[: 2 if config.gating == "sigmoid" else 1]
        return float(np.sum(np.array(best, np.float32)))

    chosen = max(
        itertools.combinations(range(config.n_group), config.n_group_used),
        key=lambda c: (sum(sorted(group_score(groups[g]) for g in c)), [-g for g in c]),
    )
    allowed = [e for g in chosen for e in groups[g]]
    ids = sorted(allowed, key=lambda e: (-selection[e], e))[: config.n_expert_used]
    weights = [scores[e] for e in ids]
    if config.norm_topk:
        weights = [w / sum(weights) for w in weights]
    return ids, [w * config.expert_scale for w in weights]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_route_against_brute_force(data: st.DataObject) -> None:
    n_group = data.draw(st.sampled_from([1, 1, 2, 3, 4]))
    n_expert = n_group * data.draw(st.integers(2, 5))
    n_group_used = data.draw(st.integers(1, n_group))
    config = Routing(
        n_expert_used=data.draw(st.integers(1, n_expert // n_group * n_group_used)),
        gating=data.draw(st.sampled_from(["sigmoid", "softmax"])),
        norm_topk=data.draw(st.booleans()),
        n_group=n_group,
        n_group_used=n_group_used,
    )
    # All different and far apart: group sums then differ by more than rounding.
    seed = data.draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    logits = random.permutation(np.linspace(-3, 3, n_expert) + random.uniform(-0.05, 0.05, n_expert))
    bias = random.uniform(-0.5, 0.5, n_expert)
    logits32, bias32 = logits.astype(np.float32)[None], bias.astype(np.float32)
    if ops.routing_margin(logits32, bias32, config)[0] < 1e-5:
        return
    ids, weights = ops.route(logits32, bias32, config)
    expected_ids, expected_weights = brute_force_route(logits32[0].tolist(), bias32.tolist(), config)
    assert ids[0].tolist() == expected_ids
    np.testing.assert_allclose(weights[0], expected_weights, rtol=32 * EPS32)


def test_route_ties_go_to_the_lower_id() -> None:
    ids, weights = ops.route(np.zeros((2, 7), np.float32), None, Routing(n_expert_used=3, expert_scale=1.0))
    assert ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    np.testing.assert_allclose(weights, np.full((2, 3), 1 / 3), rtol=2 * EPS32)


def test_bias_selects_but_does_not_weigh() -> None:
    logits = np.array([[2.0, 1.0, 0.0, -1.0]], np.float32)
    bias = np.array([0, 0, 0, 5], np.float32)
    ids, weights = ops.route(logits, bias, Routing(n_expert_used=2, norm_topk=False, expert_scale=1.0))
    assert ids.tolist() == [[3, 0]]
    np.testing.assert_allclose(weights, [[1 / (1 + math.e), 1 / (1 + math.exp(-2))]], rtol=4 * EPS32)


def test_negative_selection_scores_stay_within_the_chosen_groups() -> None:
    # A refused group's experts must not win over chosen ones whose biased score is below zero.
    logits = np.array([[0.0, 0.0, 1.0, 1.0]], np.float32)
    bias = np.full(4, -3, np.float32)
    config = Routing(n_expert_used=2, n_group=2, n_group_used=1)
    assert ops.route(logits, bias, config)[0].tolist() == [[2, 3]]


def test_a_group_is_as_good_as_its_models_authors_count_it() -> None:
    """DeepSeek-V3 sums a group's two best, DeepSeek-V2 takes the best: here the two choose different groups."""
    p = np.array([[0.5, 0.1, 0.3, 0.28]])
    config = Routing(n_expert_used=1, n_group=2, n_group_used=1)
    assert ops.route(np.log(p / (1 - p)), None, config)[0].tolist() == [[0]]  # 0.6 against 0.58
    p = np.array([[0.4, 0.04, 0.3, 0.26]])
    assert ops.route(np.log(p / (1 - p)), None, config)[0].tolist() == [[2]]  # 0.44 against 0.56
    softmax = Routing(n_expert_used=1, gating="softmax", n_group=2, n_group_used=1)
    assert ops.route(np.log(p), None, softmax)[0].tolist() == [[0]]
    assert ops.routing_margin(np.log(p), None, softmax)[0] == pytest.approx(0.1)


def test_routing_margin_is_the_gap_that_decides() -> None:
    config = Routing(n_expert_used=2)
    p = np.array([[0.9, 0.7, 0.6, 0.1]])
    logits = np.log(p / (1 - p))
    assert ops.routing_margin(logits, None, config)[0] == pytest.approx(0.1)
    assert ops.routing_margin(logits, np.array([0, -0.05, 0, 0]), config)[0] == pytest.approx(0.05)
    assert ops.routing_margin(logits, None, Routing(n_expert_used=4))[0] == np.inf
    grouped = Routing(n_expert_used=2, n_group=2, n_group_used=1)
    assert ops.routing_margin(logits, None, grouped)[0] == pytest.approx(0.9)  # (0.9 + 0.7) - (0.6 + 0.1)
