"""Products by integer dot products: what their inputs' 8 bits cost, and the forms that the device would not take."""

from dataclasses import replace

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers import fetch, hold, params, upload

from harness.oracles.inputs import EightBits, largest_error, quantize
from harness.oracles.linear import product_case, random_tensor, routed_case
from model import kernels
from model.block_formats import SMALL_INTEGERS
from model.layout import UNIT
from model.linear import View, linear
from model.quantized_inputs import quantized_words
from model.tiling import Tiling
from model.weights import stack_upload
from vkbackend.device import Device
from vkbackend.program import Program
from vkbackend.tuning import Entry

ROWS, COLUMNS, TOKENS = 96, 1024, 24


@pytest.fixture(autouse=True)
def capable(device: Device) -> None:
    if not set(kernels.MATMUL_DOT.needs) <= set(device.info.features):
        pytest.skip("the device has no integer dot products")


def tiling(device: Device, rows: int, tokens: int) -> Tiling:
    return Tiling.of(Entry(kernels.MATMUL_DOT.file, {"ROWS": rows, "TOKENS": tokens}), device.subgroup_size)


@pytest.mark.parametrize("kind", SMALL_INTEGERS, ids=lambda kind: kind.name)
def test_no_result_is_further_than_half_a_step_of_every_input(device: Device, kind: Q) -> None:
    """From the product with the inputs themselves: at most the weights times half a step each, besides rounding. The
    errors' squares are a step's square over 12 on average, of normal inputs 2.9e-5 of the outputs' squares."""
    rng = np.random.default_rng(12)
    data, values = random_tensor(rng, kind, (ROWS, COLUMNS))
    weight = stack_upload(device, "w", kind, (ROWS, COLUMNS), data)
    x = rng.standard_normal((TOKENS, COLUMNS)).astype(np.float32)
    workspace = upload(device, np.zeros(quantized_words(x.size), np.uint32))
    inputs, y, counts = (
        upload(device, x),
        upload(device, np.zeros((TOKENS, ROWS), np.float32)),
        params(device, 0, TOKENS),
    )
    program = Program(device, "test", workspace)
    tile = tiling(device, 2, 8)
    linear(program, weight, View(inputs, token=COLUMNS), View(y, token=ROWS), tokens=TOKENS, params=counts, tiling=tile)
    program.run()
    found = fetch(y, TOKENS, ROWS).astype(np.float64)
    for made in (program, weight, workspace, inputs, y, counts):
        made.free()
    exact = x.astype(np.float64) @ values.T.astype(np.float64)
    steps = np.abs(x.reshape(TOKENS, -1, UNIT)).max(axis=-1).repeat(UNIT, axis=-1) / 127
    bound = (steps / 2) @ np.abs(values).T + largest_error(values, x)[:, None]
    assert (np.abs(found - exact) <= bound).all()
    normalised = ((found - exact) ** 2).sum() / (exact**2).sum()
    expected = (steps**2 / 12).mean() / (x.astype(np.float64) ** 2).mean()
    assert normalised == pytest.approx(expected, rel=0.25)  # 2304 results: a mean of squares is off by 3% at 1 sigma
    assert normalised == pytest.approx(((quantize(x) - x) @ values.T).var() / exact.var(), rel=0.05)


@pytest.mark.parametrize("kind", SMALL_INTEGERS, ids=lambda kind: kind.name)
def test_inputs_from_a_storage_buffer(device: Device, kind: Q) -> None:
    """As GPUs read them: weights not interleaved, nothing as texels; several tiles, chunks that are not full."""
    info, rng = replace(device.info, max_texels=0), np.random.default_rng(13)
    for rows, tokens in ((2, 8), (1, 3)):
        tile = tiling(device, rows, tokens)
        case = product_case(info, rng, kind, (40, 512), tile, capacity=11, n_tokens=9, inputs=EightBits())
        assert case.launches[-1].kernel.texels == ()
        hold(device, case)
    routed = (info, rng, kind, (7, 24, 256), tiling(device, 2, 8))
    for shared in (True, False):
        hold(device, routed_case(*routed, capacity=9, n_tokens=7, used=3, shared_input=shared, inputs=EightBits()))


@pytest.mark.parametrize("kind", [Q.F16, Q.Q5_1, Q.Q4_K, Q.Q6_K, Q.IQ2_XS], ids=lambda kind: kind.name)
def test_f32_inputs_from_a_storage_buffer(device: Device, kind: Q) -> None:
    """The same of the product with inputs as they are."""
    info, rng = replace(device.info, max_texels=0), np.random.default_rng(14)
    hold(device, product_case(info, rng, kind, (40, 512), None, capacity=11, n_tokens=9))
    hold(device, routed_case(info, rng, kind, (7, 24, 256), None, capacity=9, n_tokens=7, used=3, shared_input=True))
