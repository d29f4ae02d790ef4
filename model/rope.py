"""The rotary embedding's frequencies and magnitude: one definition for the device's tables and for the oracle."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from model.config import ModelConfig

Frequencies = NDArray[np.float64]


def frequencies(config: ModelConfig) -> Frequencies:
    """Radians per position of each rope pair, YaRN applied where the config has it. -> float64 [qk_rope / 2]."""
    y = config.yarn
    if y is None:
        return plain_frequencies(config.qk_rope, config.rope_theta)
    return yarn_frequencies(config.qk_rope, config.rope_theta, y.factor, y.n_ctx_orig, y.beta_fast, y.beta_slow)


def magnitude(config: ModelConfig) -> float:
    """What cosines and sines are multiplied by.

    DeepSeek's code divides YaRN's 1 + 0.1 ln(factor) * mscale by the same of mscale_all_dim. Their checkpoints have
    both alike, which leaves 1; one without mscale_all_dim, whose files carry no log multiplier, keeps
    1 + 0.1 ln(factor) (transformers' modeling_rope_utils.py does the same).
    """
    if config.yarn is None or config.yarn.log_multiplier:
        return 1.0
    return 1 + 0.1 * math.log(config.yarn.factor)


def plain_frequencies(n_rope: int, theta: float) -> Frequencies:
    """``theta^(-2i/P)``, i = 0..P/2-1 (Su et al. 2021, RoFormer, equation 15). -> [P/2]."""
    return theta ** (-np.arange(0, n_rope, 2, dtype=np.float64) / n_rope)


def yarn_frequencies(
    n_rope: int, theta: float, factor: float, n_ctx_orig: int, beta_fast: float = 32.0, beta_slow: float = 1.0
) -> Frequencies:
    """YaRN (arXiv 2309.00071, "NTK by parts"): low frequencies divided by ``factor``, high ones kept. -> [P/2].

    A pair that turns more than ``beta_fast`` times within ``n_ctx_orig`` positions is kept, fewer than ``beta_slow``
    times is interpolated, a linear ramp between; the ramp's ends are floored and ceiled, as DeepSeek's code and
    llama.cpp do.
    """

    def pair_turning(turns: float) -> float:
        return n_rope * math.log(n_ctx_orig / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(0, math.floor(pair_turning(beta_fast)))
    high = min(n_rope - 1, math.ceil(pair_turning(beta_slow)))
    ramp = np.clip((np.arange(n_rope // 2) - low) / max(0.001, high - low), 0.0, 1.0)
    kept = plain_frequencies(n_rope, theta)
    return kept / factor * ramp + kept * (1 - ramp)
