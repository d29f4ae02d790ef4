"""The performance model: the published rooflines and the arithmetic behind them, by value."""

from dataclasses import replace

import pytest

from harness.chips import CHIPS, GIB, get_chip
from harness.predict import predict
from harness.results import governing
from harness.roofline import (
    Bound,
    Peaks,
    Weights,
    attention_flops_per_row,
    best_peaks,
    chip_peaks,
    decode_bound,
    estimated_weights,
    fit_line,
    flops_per_cache_byte,
    prompt_bound,
    run_bound,
)
from model.layout import PATHS, cache_bytes_per_token
from model.presets import get_preset
from vkbackend.errors import InputError
from vkbackend.peaks import Peaks as DevicePeaks

GLM = get_preset("glm-4.7-flash")
WEIGHTS = estimated_weights(GLM)
CHIP = get_chip("780m")
K = 1024


def test_active_weights_of_the_preset_are_the_published_2_17_gb() -> None:
    assert WEIGHTS.active_bytes == pytest.approx(2.17e9, rel=1e-3)
    assert WEIGHTS.total_bytes == pytest.approx(18.2e9, rel=5e-3)


@pytest.mark.parametrize(
    ("path", "context", "published"),
    [
        ("mha", 4 * K, 13.1),
        ("mha", 16 * K, 4.46),
        ("mha", 32 * K, 2.37),
        ("mha", 64 * K, 1.23),
        ("mla", 4 * K, 33),
        ("mla", 16 * K, 26),
        ("mla", 32 * K, 20),
        ("mla", 64 * K, 14),
        ("mla", 128 * K, 8.6),
    ],
)
def test_the_780m_predictions_round_to_the_published_rooflines(path: str, context: int, published: float) -> None:
    table = predict(GLM, WEIGHTS, CHIP, [context], [PATHS[path]])
    rate = table.rows[0].decode_rate
    digits = len(str(published).partition(".")[2])
    assert rate is not None
    assert round(rate, digits) == published


def test_mha_at_128k_does_not_fit_96_gib_because_of_the_cache_alone() -> None:
    table = predict(GLM, WEIGHTS, CHIP, [128 * K], list(PATHS.values()))
    by_path = {row.path: row for row in table.rows}
    assert by_path["mha"].not_run == "does not fit"
    assert by_path["mha"].cache_bytes_formula == 117.5 * GIB
    assert by_path["mha"].decode_seconds == ()
    assert by_path["mla"].ran
    assert by_path["mla"].cache_bytes_formula / GIB == pytest.approx(6.6, abs=0.05)


def test_memory_overrides_what_the_chip_has() -> None:
    bigger = predict(GLM, WEIGHTS, CHIP, [128 * K], [PATHS["mha"]], memory=160 * GIB)
    assert bigger.rows[0].ran
    smaller = predict(GLM, WEIGHTS, CHIP, [4 * K], [PATHS["mla"]], memory=GIB)
    assert smaller.rows[0].needed_bytes == WEIGHTS.total_bytes + 4 * K * 54_144


def test_predicted_lines_give_back_the_cache_bytes_of_each_layout() -> None:
    table = predict(GLM, WEIGHTS, CHIP, [4 * K, 16 * K, 64 * K], list(PATHS.values()))
    found = {line.path: line.bytes_per_token for line in table.lines}
    assert found == {
        "mla": pytest.approx(54_144),
        "mla-v": pytest.approx(102_272),
        "mha": pytest.approx(962_560),
    }
    assert {line.governs for line in table.lines} == {"memory"}


def test_a_runtime_is_recognised_as_mha_from_four_reported_timings() -> None:
    """The report that started the project: 7.3, 2.1, 1.1 and 0.6 tok/s on 0.48 of 80 GB/s."""
    line = fit_line([4 * K, 16 * K, 32 * K, 64 * K], [1 / 7.3, 1 / 2.1, 1 / 1.1, 1 / 0.6])
    assert line is not None
    # The share 0.48 is published with two digits, so the product is known to 0.005 / 0.48.
    assert line.bytes_per_token(0.48 * CHIP.bandwidth) == pytest.approx(956_050, rel=0.005 / 0.48)


def test_line_through_exact_points_and_its_error() -> None:
    line = fit_line([0, 10, 20], [1.0, 3.0, 5.0])
    assert line is not None
    assert (line.intercept, line.slope) == pytest.approx((1.0, 0.2))
    assert line.slope_error == pytest.approx(0.0, abs=1e-12)
    # Residuals of (+1, -2, +1)/3 around slope 1: squares sum to 6/9, one degree of freedom, spread 2.
    bent = fit_line([0, 1, 2], [0.0, 0.0, 2.0])
    assert bent is not None
    assert bent.slope == pytest.approx(1.0)
    assert bent.slope_error == pytest.approx((6 / 9 / 2) ** 0.5)


def test_a_line_needs_two_contexts() -> None:
    assert fit_line([], []) is None
    assert fit_line([512, 512], [1.0, 2.0]) is None
    two = fit_line([0, 100], [1.0, 2.0])
    assert two is not None
    assert two.slope_error is None


def test_attention_work_per_row_and_per_byte() -> None:
    # 20 heads, 47 layers; absorbed 576 for scores and 512 for values, per head 256 and 256.
    assert attention_flops_per_row(GLM, PATHS["mla"]) == 2 * 20 * 1088 * 47
    assert attention_flops_per_row(GLM, PATHS["mla-v"]) == 2 * 20 * 1088 * 47
    assert attention_flops_per_row(GLM, PATHS["mha"]) == 2 * 20 * 512 * 47
    assert flops_per_cache_byte(GLM, PATHS["mla"]) == pytest.approx(20 * 1088 / 576)
    assert flops_per_cache_byte(GLM, PATHS["mha"]) == 1.0


def test_the_governing_bound_turns_where_balance_and_intensity_meet() -> None:
    """A device of 7 FLOP per byte (a CPU) is bound by arithmetic on the latent, by memory on the fallback's cache."""
    cpu = Peaks(20e9, 140e9, "test")
    weights = Weights(10**9, 10**9, "test")
    assert decode_bound(GLM, weights.active_bytes, PATHS["mla"], 64 * K, cpu).governs == "compute"
    assert decode_bound(GLM, weights.active_bytes, PATHS["mha"], 64 * K, cpu).governs == "memory"
    assert decode_bound(GLM, weights.active_bytes, PATHS["mla"], 64 * K, chip_peaks(CHIP)).governs == "memory"


def test_governing_names_the_context_where_it_changes() -> None:
    memory, compute = Bound(0, 0, 2.0, 1.0), Bound(0, 0, 1.0, 2.0)
    assert governing([(1, memory), (2, memory)]) == "memory"
    assert governing([(4096, compute), (1, memory), (512, memory)]) == "memory, compute from 4096"
    assert governing([]) == ""


def test_prompt_bound_counts_causal_pairs_and_passes() -> None:
    peaks = Peaks(1.0, 1.0, "one byte and one operation a second")
    weights = Weights(1000, 100, "test")
    bound = prompt_bound(GLM, weights, PATHS["mla"], tokens=5, chunk=2, peaks=peaks)
    row_bytes, of_heads = 54_144, 2 * 20 * 47
    # Passes end at rows 2, 4 and 5; tokens meet 1 + 2 + 3 + 4 + 5 rows, the first pass's alone need no expanding. Of
    # two tokens that choose 4 of 64 experts each, the second brings 60 of 64 of its own; only the last pass ends with
    # logits. What one token does not need are 60 of 64 of each layer's experts and the embedding.
    active, output = round(WEIGHTS.active_bytes * 8 / 4.85), 154_880 * 2048
    others = 46 * 60 * 3 * 2048 * 1536
    second = 900 * others / (others + output) * (4 / 64)
    weight_bytes = 3 * 100 + 2 * second - 2 * 100 * output / active
    assert bound.bytes_read == pytest.approx(weight_bytes + (2 + 4 + 5) * row_bytes, rel=1e-8)
    assert bound.flops == pytest.approx(
        2 * (5 * (active - output) + output) + of_heads * (3 * 512 + 12 * 1088), rel=1e-8
    )
    # Of 1,000 tokens after 1,000 it is less to expand these, 448 x 512 multiply-adds a head, than to absorb.
    pairs = 2 * 500_500 + 1_000_000
    long = prompt_bound(GLM, weights, PATHS["mla"], tokens=2000, chunk=1000, peaks=peaks)
    assert long.flops == pytest.approx(
        2 * (2000 * (active - output) + output) + of_heads * (pairs * 512 + 1000 * 512 * 448), rel=1e-8
    )
    fallback = prompt_bound(GLM, weights, PATHS["mha"], tokens=2000, chunk=1000, peaks=peaks)
    assert fallback.flops == pytest.approx(2 * (2000 * (active - output) + output) + of_heads * pairs * 512, rel=1e-8)
    single = prompt_bound(GLM, weights, PATHS["mla"], tokens=2, chunk=1, peaks=peaks)
    assert single.bytes_read == pytest.approx(2 * 100 - 100 * output / active + 3 * row_bytes, rel=1e-8)
    after = prompt_bound(GLM, weights, PATHS["mla"], tokens=1000, chunk=1000, peaks=peaks, past=1000)
    first = prompt_bound(GLM, weights, PATHS["mla"], 1000, 1000, peaks)
    assert after.flops == pytest.approx(long.flops - first.flops + 2 * output)
    assert after.bytes_read == pytest.approx(100 + 900 * others / (others + output) + 2000 * row_bytes)
    dense = get_preset("deepseek-v2-lite")
    dense = replace(dense, n_dense=dense.n_layer)  # every weight but the embedding is active
    assert prompt_bound(dense, weights, PATHS["mla"], 5, 5, peaks).bytes_read == pytest.approx(
        100 + 5 * cache_bytes_per_token(dense, PATHS["mla"].layout, "f16")
    )


def test_the_bound_of_a_run_is_its_prompts_and_each_tokens() -> None:
    peaks = Peaks(2.0, 3.0, "two bytes and three operations a second")
    weights = Weights(10**9, 10**8, "test")
    path = PATHS["mla-v"]
    prompt = prompt_bound(GLM, weights, path, 300, 128, peaks, past=77)
    tokens = [decode_bound(GLM, weights.active_bytes, path, context, peaks) for context in (378, 379, 380)]
    bound = run_bound(GLM, weights, path, 300, 3, 77, 128, peaks)
    assert bound.bytes_read == prompt.bytes_read + sum(token.bytes_read for token in tokens)
    assert bound.flops == prompt.flops + sum(token.flops for token in tokens)
    assert (bound.memory_seconds, bound.compute_seconds) == (bound.bytes_read / 2, bound.flops / 3)
    assert run_bound(GLM, weights, path, 300, 0, 77, 128, peaks) == prompt
    assert run_bound(GLM, weights, path, 0, 1, 377, 128, peaks) == tokens[0]


def test_of_two_measurements_the_higher_is_the_peak() -> None:
    before = DevicePeaks(10.0, 200.0, {"bandwidth": [9.0, 10.0], "arithmetic": [200.0]})
    after = DevicePeaks(11.0, 150.0, {"bandwidth": [11.0], "arithmetic": [150.0]})
    peaks, samples = best_peaks(before, after)
    assert (peaks.bandwidth, peaks.flops) == (11.0, 200.0)
    assert samples == {
        "bandwidth before": [9.0, 10.0],
        "arithmetic before": [200.0],
        "bandwidth after": [11.0],
        "arithmetic after": [150.0],
    }
    alone, samples = best_peaks(before, None)
    assert (alone.bandwidth, alone.flops) == (10.0, 200.0) and list(samples) == [
        "bandwidth before",
        "arithmetic before",
    ]


def test_chips_name_their_sources_and_unknown_ones_are_refused() -> None:
    assert all(chip.bandwidth_source and chip.flops_source for chip in CHIPS.values())
    assert get_chip("780M").balance == pytest.approx(103.68)
    with pytest.raises(InputError) as error:
        get_chip("790m")
    assert str(error.value) == (
        "unknown chip '790m'; expected one of 780m, 680m, 890m, 8060s, 7900xtx; choose one of them"
    )
