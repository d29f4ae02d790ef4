"""What the smoke test on load says of logits, by full text."""

from dataclasses import replace

import numpy as np
import pytest

from harness.smoke import broken
from tests.null.random_model import BASE

DENSE = replace(BASE, n_dense=BASE.n_layer)


@pytest.mark.parametrize("spread", [0.2, 3.0, 300.0])
@pytest.mark.parametrize("n", [30, 1000, 150_000])
def test_logits_of_any_working_scale_pass(spread: float, n: int) -> None:
    """Also those of a network that was only initialised, at 0.02: a tenth of a trained one's spread or less."""
    logits = (spread * np.random.default_rng(n).standard_normal(n)).astype(np.float32)
    assert broken(logits, BASE) == ""
    assert broken(logits - 1000, BASE) == ""


def test_uniform_logits_are_told_with_the_remedy() -> None:
    logits = np.full(5, 2.5, np.float32)
    logits[3] = 2.5 + 2**-9
    told = "after one token all 5 tokens are about equally likely (logits from 2.5 to 2.502), expected some to "
    told += "stand out: check the file's hash, or use another file"
    assert broken(logits, DENSE) == told
    assert broken(logits, BASE) == (
        f"{told}; if its router is no sigmoid, --override-kv deepseek2.expert_gating_func=int:1 for softmax"
    )
    assert broken(logits, replace(BASE, gating="softmax")) == (
        f"{told}; if its router is no softmax, --override-kv deepseek2.expert_gating_func=int:2 for sigmoid"
    )


def test_one_token_is_no_sign() -> None:
    assert broken(np.zeros(1, np.float32), BASE) == ""
