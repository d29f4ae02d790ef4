"""Norm, rope, cache writes, softmax, gating and the greedy choice, each by itself against its oracle."""

import numpy as np
import pytest
from helpers import hold

from harness.oracles import ORACLES
from harness.oracles.activations import LOGITS, argmax_case, norm_case, silu_case
from harness.oracles.attention import combine_case, softmax_case
from harness.oracles.caches import latent_case, per_head_case, rope_case
from harness.oracles.case import Target
from model import kernels
from vkbackend import health, peaks, staging
from vkbackend.device import Device
from vkbackend.kernel import Kernel

CACHES = {
    "latent": kernels.LATENT_CACHE,
    "redundant values": kernels.LATENT_CACHE_V,
    "per head": kernels.LATENT_EXPAND,
}


@pytest.mark.parametrize(
    ("width", "held"), [*((width, 0) for width in (4, 44, 52, 256, 1028)), (4, 1), (4, 2), (52, 2), (52, 5), (256, 8)]
)
@pytest.mark.parametrize("last", [False, True])
def test_rms_norm(device: Device, width: int, held: int, last: bool) -> None:
    """By loops, and with at least as many vec4s a lane as a subgroup of 8 needs."""
    kernel = kernels.RMS_NORM.variant(LAST_TOKEN="1") if last else kernels.RMS_NORM
    target = Target(kernel, {"HELD": held}, device.info)
    hold(device, norm_case(target, np.random.default_rng(width), width, 3, 5))


@pytest.mark.parametrize("rope", [2, 12, 64])
@pytest.mark.parametrize("n_past", [0, 250, 202_747])
@pytest.mark.parametrize("in_place", [False, True])
def test_rope_query(device: Device, rope: int, n_past: int, in_place: bool) -> None:
    hold(device, rope_case(device.info, np.random.default_rng(rope), rope, n_past, in_place))


@pytest.mark.parametrize("latent", [44, 64])
@pytest.mark.parametrize("cache_type", ["f16", "f32"])
@pytest.mark.parametrize("variant", CACHES)
def test_latent_cache(device: Device, latent: int, variant: str, cache_type: str) -> None:
    kernel, rng = kernels.for_cache(CACHES[variant], cache_type), np.random.default_rng(latent)
    hold(device, latent_case(device.info, rng, kernel, latent=latent, rope=12, n_past=7, tokens=3))


@pytest.mark.parametrize("variant", ["latent", "redundant values"])
def test_latent_cache_in_shards(device: Device, variant: str) -> None:
    """Tokens before, on both sides of and behind an edge."""
    kernel, rng = kernels.for_shard(CACHES[variant], kernels.SHARD_PUSH), np.random.default_rng(5)
    edges = (0, 7, 9, 16)
    hold(device, latent_case(device.info, rng, kernel, latent=44, rope=12, n_past=6, tokens=4, edges=edges))


@pytest.mark.parametrize("cache_type", ["f16", "f32"])
@pytest.mark.parametrize(("n_past", "tokens"), [(0, 1), (3, 1), (4, 1), (3, 4), (2, 5)])
def test_cache_per_head_keeps_its_neighbours(device: Device, n_past: int, tokens: int, cache_type: str) -> None:
    kernel = kernels.for_cache(kernels.CACHE_PER_HEAD, cache_type)
    hold(device, per_head_case(device.info, np.random.default_rng(n_past), kernel, n_past, tokens))


@pytest.mark.parametrize(("n_past", "tokens"), [(0, 1), (0, 5), (29, 1), (31, 1), (30, 5), (90, 6)])
def test_softmax_causal(device: Device, n_past: int, tokens: int) -> None:
    hold(device, softmax_case(device.info, np.random.default_rng(n_past), n_past, tokens))


@pytest.mark.parametrize(("latent", "splits"), [(4, 1), (44, 5), (512, 4)])
def test_attention_combine(device: Device, latent: int, splits: int) -> None:
    hold(device, combine_case(device.info, np.random.default_rng(latent), 6, latent, splits))


@pytest.mark.parametrize("width", [4, 36, 100])
def test_silu_mul(device: Device, width: int) -> None:
    hold(device, silu_case(device.info, np.random.default_rng(width), width, 2, 3))


@pytest.mark.parametrize("case", LOGITS)
def test_argmax_takes_the_lowest_id_among_equals(device: Device, case: str) -> None:
    hold(device, argmax_case(device.info, case, LOGITS[case]))


# Of the backend itself, with small constants.
OF_THE_BACKEND: dict[str, tuple[Kernel, dict[str, int]]] = {
    "copy": (staging.COPY, {"EACH": 4}),
    "zero": (staging.ZERO, {"EACH": 4}),
    "read": (peaks.READ, {"LOADS": 8}),
    "arithmetic": (peaks.ARITHMETIC, {"ROUNDS": 64}),
    "probe": (health.PROBE, {}),
}


@pytest.mark.parametrize("name", OF_THE_BACKEND)
def test_kernels_of_the_backend(device: Device, name: str) -> None:
    kernel, spec = OF_THE_BACKEND[name]
    target = Target(kernel, spec, device.info)
    for case in ORACLES[kernel.file](target, np.random.default_rng(1)):
        hold(device, case)
