"""The statistics of `regress` against their definitions: ranks counted by brute force, published values, coverage."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import significance
from harness.significance import (
    holm,
    least_p,
    median_ratio,
    rank_sum_test,
    ratio_interval,
    ratio_of_medians,
    signed_rank_test,
)

FEW = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=5)


def mid_ranks(values: list[float]) -> list[float]:
    return [sum(x < v for x in values) + (sum(x == v for x in values) + 1) / 2 for v in values]


@given(FEW, FEW)
def test_rank_sum_counts_every_division_of_the_values(base: list[float], new: list[float]) -> None:
    ranks = mid_ranks([*base, *new])
    total = sum(ranks[len(base) :])
    sums = [sum(ranks[i] for i in chosen) for chosen in combinations(range(len(ranks)), len(new))]
    tails = [sum(s <= total for s in sums), sum(s >= total for s in sums)]
    assert rank_sum_test(base, new) == pytest.approx(min(1.0, 2 * min(tails) / len(sums)))


@given(st.lists(st.integers(-5, 5).map(float), max_size=9))
def test_signed_rank_counts_every_choice_of_signs(differences: list[float]) -> None:
    kept = [d for d in differences if d]
    ranks = mid_ranks([abs(d) for d in kept])
    total = sum(rank for rank, d in zip(ranks, kept, strict=True) if d > 0)
    sums = [sum(r for r, sign in zip(ranks, signs, strict=True) if sign) for signs in product((0, 1), repeat=len(kept))]
    tails = [sum(s <= total for s in sums), sum(s >= total for s in sums)]
    assert signed_rank_test(differences) == pytest.approx(min(1.0, 2 * min(tails) / len(sums)) if kept else 1.0)


def test_values_from_the_tables() -> None:
    # Mann and Whitney's: U = 2 with 5 and 5 values has 4 of 252 divisions at or below it.
    assert rank_sum_test([4, 7, 8, 9, 10], [1, 2, 3, 5, 6]) == pytest.approx(2 * 4 / 252)
    assert least_p(5, 5, paired=False) == pytest.approx(2 / 252)
    assert least_p(10, 10, paired=False) == pytest.approx(2 / 184756)
    assert least_p(12, 12, paired=True) == pytest.approx(2 / 4096)
    signs = [-1.0, -2.0, -5.0, *(float(i) for i in range(1, 11) if i not in (1, 2, 5))]
    assert signed_rank_test(signs) == pytest.approx(0.0488, abs=5e-5)  # W = 8, n = 10: p = 0.0488 in the tables


def test_nothing_to_compare_is_no_difference() -> None:
    assert (
        rank_sum_test([], [1.0]) == rank_sum_test([1.0], []) == signed_rank_test([]) == signed_rank_test([0.0]) == 1.0
    )


def test_many_values_go_over_to_the_normal_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    base, new = rng.normal(0, 1, 50).tolist(), rng.normal(0.3, 1, 50).tolist()
    pairs = [b - a for a, b in zip(base, new, strict=True)]
    exact = rank_sum_test(base, new), signed_rank_test(pairs)
    monkeypatch.setattr(significance, "_EXACT_UP_TO", 10)
    # The normal distribution's error at 50 values is below 1 in 100 of p for p of this size.
    assert (rank_sum_test(base, new), signed_rank_test(pairs)) == pytest.approx(exact, rel=0.02)


def test_holm_as_published() -> None:
    # Holm (1979): the smallest times 4, the next times 3, ..., never below one that came before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_ratios_are_of_medians_and_medians_of_ratios() -> None:
    assert ratio_of_medians([1.0, 2.0, 100.0], [3.0, 3.0, 3.0]) == 1.5
    assert median_ratio([1.0, 2.0, 4.0], [2.0, 2.0, 2.0]) == 1.0
    assert ratio_interval([2.0] * 5, [3.0] * 5, paired=False, seed=1) == (1.5, 1.5)


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_covers_the_ratio_as_often_as_it_says(paired: bool) -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for seed in range(200):
        drift = rng.lognormal(0, 0.05, 12) if paired else np.ones(12)
        base, new = (drift * rng.lognormal(0, 0.02, 12) for _ in range(2))
        low, high = ratio_interval(base.tolist(), (1.1 * new).tolist(), paired, seed)
        inside += low <= 1.1 <= high
    # 95% asked for; a bootstrap of 12 medians is discrete. 90% is 3 standard errors short of 95%.
    assert inside / 200 >= 0.9
