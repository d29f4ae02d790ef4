"""What governs our own decoding, from samples made by a known law; and the sentences that it becomes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from random_model import BASE

from harness import diagnose_report
from harness.diagnose_report import headline, reasons, remedies
from harness.diagnose_run import Entry, Line, Result
from harness.inference import Interval
from harness.own_lines import Measured, OwnLine, Subject, medians, own_line
from harness.quants import effect_text, quant_effect
from harness.roofline import Peaks, attention_flops_per_row, fit_line
from harness.stats import median_interval
from model.layout import PATHS, active_parameters, cache_bytes_per_token
from vkbackend.peaks import LaunchCost

CONFIG = replace(BASE, n_vocab=37)
PEAKS = Peaks(1e9, 1e12, "test")
COST = LaunchCost(2e-5, 1e-4)
FREE = LaunchCost(0.0, 0.0)


def subject(active_bytes: int = 10**6, launches: int = 50, path: str = "mla") -> Subject:
    return Subject("a.gguf", CONFIG, PATHS[path], active_bytes, launches)


def rows(
    intercept: float, slope: float, noise: float = 0.0, contexts: tuple[int, ...] = (100, 400, 1600)
) -> list[Measured]:
    rng = np.random.default_rng(5)
    return [
        Measured(c, tuple((intercept + slope * c) * np.exp(rng.normal(0, noise, 9))), 0, {"cache": 0.5})
        for c in contexts
    ]


def line_of(own: OwnLine | None, path: str = "mla", contexts: tuple[int, ...] = (100, 1600)) -> Line:
    model: Any = None
    results = tuple(Result(Entry("a.gguf", model, PATHS[path], context)) for context in contexts)
    return Line(subject(path=path), results, own)


def test_the_parts_are_bytes_launches_and_operations() -> None:
    found = own_line(subject(), rows(0.01, 2e-6), PEAKS, COST)
    assert found is not None
    assert found.intercept.value == pytest.approx(0.01)
    assert found.slope.value == pytest.approx(2e-6)
    assert found.parts == {
        "weights": pytest.approx(1e-3),
        "launches": pytest.approx(50 * 2e-5 + 1e-4),
        "arithmetic": pytest.approx(2 * active_parameters(CONFIG) / 1e12),
    }
    assert found.slope_memory == pytest.approx(cache_bytes_per_token(CONFIG, PATHS["mla"].layout) / 1e9)
    assert found.slope_arithmetic == pytest.approx(attention_flops_per_row(CONFIG, PATHS["mla"]) / 1e12)
    assert found.crossing == pytest.approx(5000)


def test_one_context_gives_no_line() -> None:
    assert own_line(subject(), rows(0.01, 2e-6)[:1], PEAKS, COST) is None


@pytest.mark.parametrize(
    ("active_bytes", "launches", "intercept", "part"),
    [
        (9 * 10**6, 10, 0.01, "weights"),
        (10**6, 400, 0.01, "launches"),
        (10**6, 10, 0.01, None),
        (10**6, 10, 0.002, "weights"),
    ],
)
def test_the_part_that_governs(active_bytes: int, launches: int, intercept: float, part: str | None) -> None:
    found = own_line(subject(active_bytes, launches), rows(intercept, 2e-6), PEAKS, COST)
    assert found is not None
    assert found.governs[0] == part


def test_half_of_the_weights_saves_half_of_their_time() -> None:
    found = own_line(subject(8 * 10**6), rows(0.01, 2e-6), PEAKS, FREE)
    assert found is not None
    assert found.gain_of_half_the_weights(0) == pytest.approx(0.01 / 0.006)
    assert found.gain_of_half_the_weights(5000) == pytest.approx(0.02 / 0.016)
    # No token is faster than its weights can be read, whatever the line says.
    assert replace(found, intercept=Interval(0.001, 0, 0)).gain_of_half_the_weights(0) == pytest.approx(2)


def test_the_intervals_hold_the_truth_in_the_presence_of_noise() -> None:
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        noisy = [
            Measured(c, tuple((0.01 + 2e-6 * c) * (1 + rng.exponential(0.1, 12))), 0, {}) for c in (100, 400, 1600)
        ]
        found = own_line(subject(), noisy, PEAKS, COST)
        assert found is not None
        # Load only makes a sample slower: half of an exponential's mean log 2 lies in every sample alike.
        expected = 2e-6 * (1 + 0.1 * np.log(2))
        held += found.slope.low <= expected <= found.slope.high
    assert held >= 180  # at least 95% of 200 expected: below 180 has a probability of 0.002


@pytest.mark.parametrize("count", [6, 9, 12, 25])
def test_the_order_statistics_hold_the_median(count: int) -> None:
    rng = np.random.default_rng(count)
    held = 0
    for _ in range(1000):
        middle, low, high = median_interval(rng.exponential(1.0, count).tolist())
        assert low <= middle <= high
        held += low <= np.log(2) <= high
    assert held >= 930  # 95% or more are expected


def test_few_samples_have_students_interval() -> None:
    middle, low, high = median_interval([1.0, 2.0, 3.0])
    assert (middle, low, high) == pytest.approx((2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))


def test_relative_errors_weigh_short_contexts_more() -> None:
    seconds = [1.0, 2.0, 40.0]  # a line through the first two, and a last one that is off
    plain, relative = (fit_line([0, 10, 100], seconds, relative=value) for value in (False, True))
    assert plain is not None and relative is not None
    assert relative.intercept == pytest.approx(1.0, abs=0.25)
    assert plain.intercept < -0.4
    exact = fit_line([0, 10, 100], [1.0, 2.0, 11.0], relative=True)
    assert exact is not None
    assert (exact.intercept, exact.slope, exact.slope_error) == pytest.approx((1.0, 0.1, 0.0), abs=1e-9)


def repeats(seconds: float, noise: float = 0.0, seed: int = 0) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return [[seconds * float(np.exp(rng.normal(0, noise))) for _ in range(8)] for _ in range(12)]


@pytest.mark.parametrize(
    ("share", "bottleneck"),
    [(0.05, False), (0.95, True), (0.5, None)],
)
def test_two_quantisations_tell_what_goes_with_the_bytes(share: float, bottleneck: bool | None) -> None:
    # 8 and 5 units of bytes; of the larger one's time `share` goes with them.
    larger, smaller = 0.01, 0.01 * (1 - share + share * 5 / 8)
    found = quant_effect((8, repeats(larger, 0.02, 1)), (5, repeats(smaller, 0.02, 2)))
    assert found.bytes_ratio == pytest.approx(1.6)
    assert found.speed_ratio == pytest.approx(larger / smaller, rel=0.02)
    assert found.share.low <= share <= found.share.high
    assert found.bottleneck is bottleneck


def test_medians_are_by_repeat() -> None:
    assert medians([[1.0, 5.0, 2.0], [3.0]]) == (2.0, 3.0)


def test_verdicts_in_words() -> None:
    launches = own_line(subject(10**6, 400), rows(0.01, 2e-5), PEAKS, COST)
    assert headline(line_of(launches)) == "launch-bound up to about 500 tokens of context, cache-bound from there on"
    weights = own_line(subject(9 * 10**6), rows(0.01, 2e-6), PEAKS, COST)
    assert headline(line_of(weights)) == (
        "weight-bound, and cache-bound from about 5,000 tokens on, beyond what was measured"
    )
    kernels = own_line(subject(10**6, 10), rows(0.01, 1e-9), PEAKS, COST)
    assert headline(line_of(kernels)) == (
        "bound by its kernels, not by bandwidth, launches or arithmetic, at all contexts up to 1,600; what the cache "
        "costs there does not count"
    )
    noisy = own_line(subject(9 * 10**6), rows(0.01, 1e-6, noise=0.3), PEAKS, COST)
    assert headline(line_of(noisy)) == (
        "weight-bound at first; these samples do not tell from where the cache governs: take more repeats"
    )
    assert headline(line_of(None)) == (
        "no verdict: fewer than two contexts could be measured; choose shorter --contexts"
    )


def test_evidence_and_remedies_in_words() -> None:
    own = own_line(subject(2 * 10**6, path="mha"), rows(0.01, 2e-6), PEAKS, COST)
    line = line_of(own, "mha")
    assert own is not None and own.slope_memory == pytest.approx(1.29e-6)
    assert reasons(line) == [
        "A token without context takes 10.0 ms (10.0 ms to 10.0 ms). The weights' 1.00 MB at the measured bandwidth "
        "explain 20% of it, 50 launches 11%, arithmetic at its peak <1%.",
        "Each cached token adds 2.00 µs (2.00 µs to 2.00 µs); its bytes at the measured peak would take "
        "1.29 µs, 65% of that.",
    ]
    times = cache_bytes_per_token(CONFIG, PATHS["mha"].layout) / cache_bytes_per_token(CONFIG, PATHS["mla"].layout)
    assert remedies(line) == [
        "A quant of half the size would help by 1.11x at 100 and 1.08x at 1,600, predicted from the bytes.",
        f"Its cache is {times:.2f} times larger than the latent one's: --path mla.",
    ]
    small = line_of(own_line(subject(10**5), rows(0.01, 2e-6), PEAKS, COST))
    assert remedies(small) == [
        "A quant of half the size would not help: 1.00x at 100 and 1.00x at 1,600, predicted from the bytes."
    ]


def test_a_refused_context_is_told_in_the_devices_words() -> None:
    line = line_of(None)
    line = replace(line, results=(replace(line.results[0], refused="no room"), line.results[1]))
    assert reasons(line) == ["100 tokens: no room."]
    assert diagnose_report.remedies(line) == []


def test_two_files_in_words() -> None:
    found = quant_effect((8, repeats(0.01)), (5, repeats(0.01 * (1 - 0.1 * 3 / 8))))
    assert effect_text("mla", 2048, "q8.gguf", "q5.gguf", found) == (
        "mla at 2,048: q5.gguf reads 1.60x fewer weight bytes than q8.gguf and decodes 1.04x as fast; 10% (10% to 10%) "
        "of a token's time goes with the weights' bytes: the weights are not the bottleneck."
    )
