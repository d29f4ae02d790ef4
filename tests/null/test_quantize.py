"""Encoders against gguf-py's decoders: error rates, exact cases, quality against plain rounding."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize, quant_shape_to_byte_shape
from gguf.quants import quantize as gguf_quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from model.quantize import quantize
from vkbackend.errors import InputError


def round_trip(x: np.ndarray, kind: Q) -> np.ndarray:
    encoded = quantize(x, kind)
    assert encoded.dtype == np.uint8 and encoded.shape == quant_shape_to_byte_shape(x.shape, kind)
    return dequantize(encoded, kind).reshape(x.shape)


def relative_rms(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(np.mean((x - y) ** 2) / np.mean(x**2)))


# Bounds: uniform quantisation of a normal variable over a sub-block's range (+-2.0 sigma of 32 values, +-1.8 of 16) has
# rms error range / levels / sqrt(12): 4.0/15/3.46 = 0.077 sigma for Q4_K, 3.6/63/3.46 = 0.017 for Q6_K, to which the
# six- and eight-bit scales add a little; F16 rounds to 2^-11 / sqrt(3).
@pytest.mark.parametrize(
    ("kind", "bound"),
    [(Q.F32, 0.0), (Q.F16, 3e-4), (Q.BF16, 2.3e-3), (Q.Q8_0, 6e-3), (Q.Q6_K, 0.019), (Q.Q5_0, 0.05), (Q.Q4_K, 0.077)],
)
@pytest.mark.parametrize("scale", [1e-3, 0.05, 30.0])
def test_error_of_normal_weights(kind: Q, bound: float, scale: float) -> None:
    x = (np.random.default_rng(0).standard_normal((3, 7, 512)) * scale).astype(np.float32)
    assert relative_rms(x, round_trip(x, kind)) <= bound


@pytest.mark.parametrize("kind", [Q.Q4_K, Q.Q6_K])
def test_better_than_plain_rounding(kind: Q) -> None:
    """Plain: each sub-block's own float32 scale from its range, which a file could not even store."""
    x = np.random.default_rng(1).laplace(size=(64, 1024)).astype(np.float32)
    if kind is Q.Q4_K:
        sub = x.reshape(-1, 32)
        low = np.minimum(sub.min(axis=1, keepdims=True), 0)
        step = (sub.max(axis=1, keepdims=True) - low) / 15
        plain = np.rint((sub - low) / step) * step + low
    else:
        sub = x.reshape(-1, 16)
        step = np.abs(sub).max(axis=1, keepdims=True) / 31
        plain = np.rint(sub / step) * step
    assert relative_rms(x, round_trip(x, kind)) < relative_rms(x, plain.reshape(x.shape))


@pytest.mark.parametrize("kind", [Q.Q4_K, Q.Q6_K])
def test_encoding_is_nearly_idempotent(kind: Q) -> None:
    x = np.random.default_rng(2).standard_normal((16, 512)).astype(np.float32)
    once = round_trip(x, kind)
    assert relative_rms(once, round_trip(once, kind)) < 0.6 * relative_rms(x, once)


@pytest.mark.parametrize("kind", [Q.Q4_K, Q.Q6_K])
def test_representable_values_are_kept(kind: Q) -> None:
    """Whole numbers 0..15 (Q4_K) and -32..31 (Q6_K) need no rounding at all: every scale is exact."""
    rng = np.random.default_rng(3)
    low, high = (0, 16) if kind is Q.Q4_K else (-32, 32)
    x = rng.integers(low, high, (5, 256)).astype(np.float32)
    x.reshape(-1, 16)[:, 0] = low or 15  # each sub-block reaches the end of its range
    if kind is Q.Q4_K:
        x *= 63  # d = 1: f16 holds it, and the six-bit scale is 63
    else:
        x *= 128
    np.testing.assert_allclose(round_trip(x, kind), x, rtol=0, atol=1e-3 * np.abs(x).max())


@pytest.mark.parametrize("kind", [Q.Q4_K, Q.Q6_K, Q.Q8_0, Q.Q5_0, Q.F16])
def test_extreme_blocks(kind: Q) -> None:
    zeros = np.zeros((2, 256), np.float32)
    np.testing.assert_array_equal(round_trip(zeros, kind), zeros)
    for value in (1.0, -1.0):
        constant = np.full((2, 256), value, np.float32)
        np.testing.assert_allclose(round_trip(constant, kind), constant, rtol=0.04)
    outlier = np.zeros((1, 256), np.float32)
    outlier[0, 77] = -1000.0
    np.testing.assert_allclose(round_trip(outlier, kind), outlier, atol=1000 / 2**11)  # d and dmin are f16
    tiny = np.full((1, 256), 1e-9, np.float32)  # below f16: becomes zero, nothing worse
    assert np.abs(round_trip(tiny, kind)).max() <= 1e-7


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([Q.Q4_K, Q.Q6_K]), st.integers(0, 2**32), st.floats(-20, 10), st.floats(-1, 1))
def test_any_finite_block_stays_within_its_range(kind: Q, seed: int, exponent: float, offset: float) -> None:
    """Largest error of a sub-block: half its step, and what rounding of the block's scales to 6 (8) bits adds.

    With scale and min on grids of 1/63 of the block's largest, 15 steps and the min may each be off by half a grid
    step; a least-squares scale may cut a lone extreme value by up to two steps.
    """
    rng = np.random.default_rng(seed)
    x = ((rng.standard_normal((4, 256)) + offset) * 2.0**exponent).astype(np.float32)
    error = np.abs(round_trip(x, kind) - x).max(axis=1)
    reach = np.maximum(np.abs(x).max(axis=1), 1e-3)  # d of smaller blocks is a subnormal f16
    steps = 15 if kind is Q.Q4_K else 31
    assert (error <= 2 * reach * (2.5 / steps + 1 / 63)).all()


@pytest.mark.parametrize("kind", [Q.Q8_0, Q.Q5_0, Q.F16, Q.F32, Q.BF16])
def test_other_types_are_gguf_py_s(kind: Q) -> None:
    x = np.random.default_rng(4).standard_normal((5, 96)).astype(np.float32)
    np.testing.assert_array_equal(quantize(x, kind), gguf_quantize(x, kind).view(np.uint8))


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(5).standard_normal((11, 256)).astype(np.float32)
    whole = {kind: quantize(x, kind) for kind in (Q.Q4_K, Q.Q6_K)}
    monkeypatch.setattr("model.quantize.CHUNK_BLOCKS", 3)
    for kind, expected in whole.items():
        np.testing.assert_array_equal(quantize(x, kind), expected)


@pytest.mark.parametrize(
    ("values", "kind", "text"),
    [
        (np.zeros(100), Q.Q4_K, "rows of 100 cannot be stored as Q4_K, expected a multiple of 256; use another type"),
        (
            np.full(32, np.nan),
            Q.Q8_0,
            "values up to nan cannot be stored as Q8_0, expected finite ones within range; rescale",
        ),
        (
            np.full(32, 1e5),
            Q.F16,
            "values up to 100000.0 cannot be stored as F16, expected finite ones within range; rescale",
        ),
        (
            np.zeros(256),
            Q.Q3_K,
            "type Q3_K has no encoder, expected one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q6_K; "
            "use one of them",
        ),
    ],
)
def test_refusals(values: np.ndarray, kind: Q, text: str) -> None:
    with pytest.raises(InputError) as caught:
        quantize(values, kind)
    assert str(caught.value) == text
