"""The sampling chain against llama.cpp's own samplers, on random logits: the same tokens stay, as likely."""

import ctypes

import numpy as np
import pytest

from model.sampling import Sampler, SamplingParams, adjusted, distribution

llama_cpp = pytest.importorskip("llama_cpp")
lib = llama_cpp.llama_cpp


def theirs(logits: np.ndarray, params: SamplingParams, accepted: list[int]) -> np.ndarray:
    """float64 [n]: what llama.cpp's default chain gives each token."""
    n = len(logits)
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    bias = (lib.llama_logit_bias * len(params.logit_bias))(*params.logit_bias.items())
    for sampler in (
        lib.llama_sampler_init_logit_bias(n, len(bias), bias),
        lib.llama_sampler_init_penalties(
            *(n,) * (len(lib.llama_sampler_init_penalties.argtypes) - 4),
            params.repeat_last_n,
            params.repeat_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        ),
        lib.llama_sampler_init_top_k(params.top_k),
        lib.llama_sampler_init_top_p(params.top_p, 0),
        lib.llama_sampler_init_min_p(params.min_p, 0),
        lib.llama_sampler_init_temp(params.temperature),
    ):
        lib.llama_sampler_chain_add(chain, sampler)
    for token in accepted:
        lib.llama_sampler_accept(chain, token)
    data = (lib.llama_token_data * n)(*((i, float(x), 0.0) for i, x in enumerate(logits)))
    rows = lib.llama_token_data_array(data, n, -1, False)
    lib.llama_sampler_apply(chain, ctypes.byref(rows))
    lib.llama_sampler_free(chain)
    kept = [(rows.data[i].id, rows.data[i].logit) for i in range(rows.size)]
    out = np.zeros(n)
    best = max(logit for _, logit in kept)
    for token, logit in kept:
        out[token] = np.exp(logit - best)
    return out / out.sum()


@pytest.mark.parametrize("seed", range(200))
def test_same_distribution(seed: int) -> None:
    draw = np.random.default_rng(seed)
    n = int(draw.integers(2, 300))
    logits = draw.normal(0, 3, n).astype(np.float32)
    params = SamplingParams(
        temperature=float(draw.choice([0.3, 1.0, 1.7])),
        top_k=int(draw.choice([0, 1, 5, 40])),
        top_p=float(draw.choice([1.0, 0.95, 0.5])),
        min_p=float(draw.choice([0.0, 0.05, 0.3])),
        repeat_penalty=float(draw.choice([1.0, 1.1, 1.8])),
        repeat_last_n=int(draw.choice([0, 3, 64])),
        presence_penalty=float(draw.choice([0.0, 0.5])),
        frequency_penalty=float(draw.choice([0.0, 0.2])),
        logit_bias={int(i): float(draw.normal(0, 4)) for i in draw.integers(0, n, 2)},
    )
    accepted = draw.integers(0, n, int(draw.integers(0, 90))).tolist()
    sampler = Sampler(params)
    sampler.accept(accepted)
    expected = theirs(logits, params, accepted)
    recent = accepted[max(0, len(accepted) - params.repeat_last_n) :]
    found = distribution(adjusted(logits, params, {t: recent.count(t) for t in recent}), params)
    assert (found > 0).tolist() == (expected > 0).tolist()
    # llama.cpp computes in f32: 2^-24 of a logit below 30, a few operations, divided by the temperature.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=0)
    drawn = sampler(logits)
    assert expected[drawn] > 0
