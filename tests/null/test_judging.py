"""Each verdict of `regress` on made-up times and figures, and what keeps it from giving one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from regress_records import RULES, near, side

from harness import judging
from harness.judging import judge, refusal
from harness.metrics import Exact, Side
from harness.regress_report import markdown, summary


def verdicts(base: Side, new: Side, **options: Any) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in judge(base, new, RULES, **options)}


def test_slower_faster_and_no_difference() -> None:
    base = side({"a": [near(1.0)], "b": [near(1.0)], "c": [near(1.0)]})
    new = side({"a": [near(1.05, seed=2)], "b": [near(0.95, seed=2)], "c": [near(1.001, seed=2)]})
    assert verdicts(base, new) == {"a": "slower", "b": "faster", "c": "no difference"}
    finding = judge(base, new, RULES)[0]
    assert finding.ratio == pytest.approx(1.05, rel=0.005)
    assert finding.low is not None and finding.high is not None and finding.low < finding.ratio < finding.high
    assert finding.p == pytest.approx(3 * 2 / 184756)  # complete separation of ten and ten, times three metrics


def test_a_certain_but_small_change_is_none() -> None:
    base, new = side({"a": [near(1.0, 1e-4)]}), side({"a": [near(1.015, 1e-4)]})
    found = judge(base, new, RULES)[0]
    assert found.verdict == "no difference" and found.p is not None and found.p < 1e-4
    assert judge(base, new, replace(RULES, effect=0.01))[0].verdict == "slower"


def test_few_repeats_say_that_nothing_can_be_judged() -> None:
    base, new = side({"a": [[1.0] * 3]}), side({"a": [[9.0] * 3]})
    found = judge(base, new, RULES)[0]
    assert (found.verdict, found.why) == ("too few repeats", "has 3, expected 4 to tell 1 metric apart")
    assert str(refusal((base, new), [found], RULES)) == (
        "no time can be judged: a has 3, expected 4 to tell 1 metric apart; measure more repeats (-r)"
    )
    assert refusal((base, new), [replace(found, verdict="faster")], RULES) is None
    assert refusal((base, new), [], RULES) is None
    # Metrics of single samples do not keep the others from being judged.
    singles = {f"s{i}": [[1.0]] for i in range(30)}
    base, new = side({"a": [near(1.0)], **singles}), side({"a": [near(1.2, seed=2)], **singles})
    assert verdicts(base, new)["a"] == "slower"
    assert verdicts(base, new)["s0"] == "too few repeats"


def test_scatter_among_the_repeats_of_a_single_run_is_noise() -> None:
    base, new = side({"a": [near(1.0, 0.03)]}), side({"a": [near(1.1, 0.03, seed=2)]})
    found = judge(base, new, RULES)[0]
    assert found.verdict == "too noisy" and found.noise is not None and 0.1 < found.noise < 0.3
    assert str(refusal((base, new), [found], RULES)) == (
        f"the machine is too noisy to judge times: a differs by {found.noise:.1%} where the code is equal, expected at "
        "most 5%; close other programs, or measure more repeats or turns"
    )


def test_no_difference_is_said_only_where_a_change_is_ruled_out() -> None:
    wide = [1.0, 1.2] * 6  # all pairs differ by a fifth, one way or the other
    base, new = side({"a": [wide]}), side({"a": [[*wide[1:], wide[0]]]})
    found = judge(base, new, RULES, paired=True)[0]
    assert found.verdict == "too noisy" and found.p == 1.0
    assert found.why == f"may have changed by {found.low - 1:+.1%} to {found.high - 1:+.1%}"  # type: ignore[operator]
    narrow = side({"a": [near(1.0, 0.01, 30)]}), side({"a": [near(1.0, 0.01, 30, seed=2)]})
    assert verdicts(*narrow, paired=True) == {"a": "no difference"}


def test_runs_are_the_unit_where_there_are_enough_of_them() -> None:
    # Ten repeats each agree within their run; six runs of one code lie 4% apart. No run's own scatter tells that.
    shifts = [1.0, 1.04, 0.98, 1.02, 0.99, 1.03]
    base = side({"a": [near(shift, 1e-3, seed=i) for i, shift in enumerate(shifts)]})
    new = side({"a": [near(1.01 * shift, 1e-3, seed=9 + i) for i, shift in enumerate(reversed(shifts))]})
    assert verdicts(base, new) == {"a": "no difference"}
    slower = side({"a": [near(1.1 * shift, 1e-3, seed=9 + i) for i, shift in enumerate(shifts)]})
    assert verdicts(base, slower) == {"a": "slower"}


def test_the_runs_of_one_side_are_its_noise_where_they_are_few() -> None:
    base = side({"a": [near(1.0, 1e-3), near(1.03, 1e-3)]})
    assert verdicts(base, side({"a": [near(1.02, 1e-3), near(1.021, 1e-3)]})) == {"a": "no difference"}
    assert verdicts(base, side({"a": [near(1.08, 1e-3), near(1.081, 1e-3)]})) == {"a": "slower"}


def test_a_drift_that_pairs_share_hides_nothing() -> None:
    drift = np.random.default_rng(4).lognormal(0, 0.3, 20)
    base = side({"a": [drift.tolist()]})
    new = side({"a": [(drift * near(1.05, 0.003, 20)).tolist()]})
    assert verdicts(base, new, paired=True) == {"a": "slower"}
    assert verdicts(base, new) == {"a": "too noisy"}
    assert verdicts(base, new, paired=True, noise={"a": 0.06}) == {"a": "too noisy"}  # an A/A run that differed by 6%
    assert verdicts(base, new, paired=True, noise={"a": 0.04}) == {"a": "slower"}


def test_perplexity_has_slack_for_roundings_and_none_for_nonsense() -> None:
    def judged(value: float) -> tuple[str, str]:
        sides = [side({}, exact={"perplexity of mla at 512": Exact(x, "perplexity", 0.005)}) for x in (46.0, value)]
        findings = judge(*sides, RULES)
        return findings[0].verdict, markdown([(*sides, findings)], RULES)

    assert judged(46.2)[0] == judged(45.8)[0] == "equal"
    verdict, text = judged(50.0)
    assert verdict == "more" and text.startswith("**regression: 1 more**")
    assert "| perplexity of mla at 512 | 46.0000 | 50.0000 | +8.7% |  |  | more |" in text
    assert judged(40.0)[0] == "less"


def test_what_no_longer_runs_is_a_regression() -> None:
    base = side({"decode mha at 512": [near(1.0)], "b": [near(1.0)]})
    new = side({"c": [near(1.0)]}, not_run={"mha at 512": "does not fit"})
    findings = judge(base, new, RULES)
    assert {f.name: f.verdict for f in findings} == {"decode mha at 512": "gone", "b": "not in NEW", "c": "not in BASE"}
    assert summary(findings) == "regression: 1 gone, 1 not in NEW, 1 not in BASE"
    assert "- Gone: decode mha at 512 does not fit." in markdown([(base, new, findings)], RULES)


def test_the_level_is_that_of_all_metrics_together() -> None:
    assert judging.LEVEL == 0.05
    # 2/4096 for 12 pairs, 2/184756 for 10 and 10: what the defaults of `bench` and --turns rest on.
    assert judging.least_p(12, 12, True) * 100 < judging.LEVEL > judging.least_p(10, 10, False) * 100
