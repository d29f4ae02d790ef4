"""Random blocks: valid, of the size asked for, centred on zero, and the same from the same generator."""

import math

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize

from model.random_blocks import RANDOM_TYPES, random_blocks
from vkbackend.errors import InputError

TERNARY = (Q.TQ1_0, Q.TQ2_0)  # a quarter to a third of their values are zero, or half


@pytest.mark.parametrize("kind", RANDOM_TYPES)
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_random_blocks(kind: Q, scale: float) -> None:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    n_blocks = 2**19 // block
    blocks = random_blocks(kind, n_blocks, np.random.default_rng(6), scale)
    assert blocks.dtype == np.uint8 and blocks.shape == (n_blocks, block_bytes)
    values = dequantize(blocks.reshape(1, -1), kind)
    assert np.isfinite(values).all()
    # 2^19 values: the mean's own deviation is scale/724; Q8_0 centres on -0.5/74 by construction
    assert abs(values.mean()) < scale * (0.01 if kind is Q.Q8_0 else 6 / math.sqrt(values.size) + 2e-3)
    # a block of 256 shares one d (+-25 %), so 2,048 blocks fix the deviation to about 0.4 %; f16 scales add 0.5 %
    assert values.std() == pytest.approx(scale, rel=0.03)
    again = random_blocks(kind, n_blocks, np.random.default_rng(6), scale)
    np.testing.assert_array_equal(blocks, again)
    assert (random_blocks(kind, n_blocks, np.random.default_rng(7), scale) != blocks).any()


@pytest.mark.parametrize("kind", RANDOM_TYPES)
def test_values_take_many_sizes_of_both_signs(kind: Q) -> None:
    """Of 4,096 values at least 19 differ: MXFP4 has fifteen at each of two scales, of which eleven are the same."""
    block = GGML_QUANT_SIZES[kind][0]
    values = dequantize(random_blocks(kind, 4096 // block, np.random.default_rng(8), 1.0).reshape(1, -1), kind)
    assert len(np.unique(values)) >= 19
    assert min((values > 0).mean(), (values < 0).mean()) > (1 / 5 if kind in TERNARY else 1 / 3)


def test_random_blocks_of_other_types() -> None:
    with pytest.raises(InputError) as caught:
        random_blocks(Q.Q1_0, 1, np.random.default_rng(0), 1.0)
    assert str(caught.value) == (
        "type Q1_0 has no random generator, expected one of F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, "
        "Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4, NVFP4, IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, TQ1_0, "
        "TQ2_0; use one of them"
    )
