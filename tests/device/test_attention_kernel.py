"""Fused attention over the latent cache, in all its cuts, against its oracle."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from helpers import hold

from harness.oracles.attention import attention_spec, far_case, latent_case
from model import kernels
from model.attention_shape import AttentionShape
from model.layout import CACHE_TYPES, pairs_a_word
from model.presets import PRESETS
from vkbackend.device import Device
from vkbackend.kernel import Kernel

# Latent and rope widths: whole words a lane on subgroups of 8; neither a whole number on any subgroup; whole parts of
# the 64 numbers, or blocks of 32, that a GPU's lane scores at a time.
WIDTHS = {"64 + 8": (64, 8), "44 + 12": (44, 12), "112 + 16": (112, 16)}
# A row a lane, and a row over the lanes with arrays in a CPU's memory: both forms run on any device.
FORMS: tuple[dict[str, str], ...] = ({}, {"ARRAYS_IN_MEMORY": "1"})
HEADS = 6


def attend(
    device: Device,
    widths: tuple[int, int],
    heads_per_group: int,
    splits: int,
    n_past: int,
    tokens: int,
    kernel: Kernel = kernels.ATTENTION_LATENT,
    edges: tuple[int, ...] = (),
    forms: Sequence[dict[str, str]] = FORMS,
) -> None:
    """Hold both forms of the kernel (and the one that joins splits) against the oracle."""
    spec = attention_spec(device.subgroup_size, *widths, heads_per_group, splits, kernels.cache_kind(kernel))
    for form, exact in product(forms, (False, True)):
        rng = np.random.default_rng(n_past + tokens)
        made, shape = kernel.variant(**form), {"heads": HEADS, "n_past": n_past, "tokens": tokens}
        hold(device, latent_case(device.info, rng, made, spec, **shape, edges=edges, exact=exact))


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("n_past", [0, 1, 6, 7, 8, 39, 200])
def test_one_token_split_over_the_cache(device: Device, widths: str, n_past: int) -> None:
    """More splits than tiles leaves some with nothing; a cache of one row leaves all but one so."""
    attend(device, WIDTHS[widths], heads_per_group=2, splits=5, n_past=n_past, tokens=1)


@pytest.mark.parametrize("heads_per_group", [1, 3, 6])
@pytest.mark.parametrize(("n_past", "tokens"), [(0, 1), (0, 9), (7, 3), (33, 8)])
def test_chunk_is_causal(device: Device, heads_per_group: int, n_past: int, tokens: int) -> None:
    attend(device, WIDTHS["44 + 12"], heads_per_group, splits=1, n_past=n_past, tokens=tokens)


@pytest.mark.parametrize(("splits", "n_past", "tokens"), [(5, 0, 1), (5, 50, 1), (1, 0, 5), (1, 21, 5)])
def test_values_from_their_own_copy(device: Device, splits: int, n_past: int, tokens: int) -> None:
    """The copy holds other numbers here, to see that it is the one that is read."""
    attend(device, WIDTHS["44 + 12"], 2, splits, n_past, tokens, kernels.ATTENTION_LATENT_V)


@pytest.mark.parametrize("kernel", [kernels.ATTENTION_LATENT, kernels.ATTENTION_LATENT_V], ids=["one copy", "two"])
@pytest.mark.parametrize(("splits", "tokens", "edges"), [(1, 5, ()), (5, 1, ()), (2, 1, (0, 7, 20, 34))])
def test_cache_of_f32(device: Device, splits: int, tokens: int, edges: tuple[int, ...], kernel: Kernel) -> None:
    made = kernels.for_cache(kernel, "f32")
    made = kernels.for_shard(made, kernels.SHARD_SLOTS_PUSH) if edges else made
    attend(device, WIDTHS["44 + 12"], 2, splits, 24, tokens, made, edges)


@pytest.mark.parametrize("widths", ["64 + 8", "112 + 16"])
@pytest.mark.parametrize("cache", ["q8_0", "q4_0"])
@pytest.mark.parametrize("kernel", [kernels.ATTENTION_LATENT, kernels.ATTENTION_LATENT_V], ids=["one copy", "two"])
def test_cache_of_blocks(device: Device, kernel: Kernel, cache: str, widths: str) -> None:
    attend(device, WIDTHS[widths], 2, 1, 21, 5, kernels.for_cache(kernel, cache))


# Rows of whole blocks and not, of an even and an odd number of them; heads in pairs, one alone and one over; every cut.
PACKED = {
    "splits": ("q8_0", kernels.ATTENTION_PACKED, (64, 8), (3, 5, 50, 1)),
    "one row": ("q4_0", kernels.ATTENTION_PACKED, (40, 12), (1, 5, 0, 1)),
    "a chunk": ("q4_0", kernels.ATTENTION_PACKED, (112, 16), (2, 1, 3, 9)),
    "a chunk's own values": ("q8_0", kernels.ATTENTION_PACKED_V, (112, 16), (6, 1, 3, 9)),
    "own values": ("q4_0", kernels.ATTENTION_PACKED_V, (64, 8), (2, 2, 37, 1)),
    "shards": ("q8_0", kernels.ATTENTION_PACKED, (136, 2), (2, 2, 24, 1, (0, 7, 20, 34))),
    "a chunk in shards": ("q4_0", kernels.ATTENTION_PACKED_V, (40, 12), (2, 1, 21, 5, (0, 7, 8, 20, 35))),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_arithmetic(device: Device, name: str) -> None:
    """The unrolled form, which takes lavapipe seconds to compile, of two of them."""
    cache, kernel, widths, (heads, splits, n_past, tokens, *edges) = PACKED[name]
    if not set(kernel.needs) <= set(device.info.features):
        pytest.skip("the device has no packed arithmetic")
    made = kernels.for_cache(kernel, cache)
    made = kernels.for_shard(made, kernels.SHARD_SLOTS_PUSH) if edges else made
    forms = FORMS if name in ("one row", "own values") else FORMS[1:]
    attend(device, widths, heads, splits, n_past, tokens, made, *edges, forms=forms)


@pytest.mark.parametrize("kernel", [kernels.ATTENTION_LATENT, kernels.ATTENTION_LATENT_V], ids=["one copy", "two"])
@pytest.mark.parametrize(("splits", "n_past", "tokens"), [(1, 0, 1), (5, 50, 1), (1, 3, 9), (1, 0, 5), (1, 21, 5)])
def test_cache_in_shards(device: Device, splits: int, n_past: int, tokens: int, kernel: Kernel) -> None:
    """Also shards that end within a chunk, and those that a token does not see yet."""
    end = n_past + tokens + 9
    edges = (0, 7, 8, 20, end) if end > 20 else (0, 1, 4, end)
    sharded = kernels.for_shard(kernel, kernels.SHARD_SLOTS_PUSH)
    attend(device, WIDTHS["44 + 12"], 2, splits, n_past, tokens, sharded, edges)


def test_scores_far_apart_and_far_from_zero(device: Device) -> None:
    spec = attention_spec(device.subgroup_size, *WIDTHS["64 + 8"], 6, 1)
    hold(device, far_case(device.info, kernels.ATTENTION_LATENT, spec))
    spec = attention_spec(device.subgroup_size, *WIDTHS["64 + 8"], 6, 1, CACHE_TYPES["q8_0"])
    if set(kernels.ATTENTION_PACKED.needs) <= set(device.info.features):
        packed = kernels.for_device(kernels.for_cache(kernels.ATTENTION_PACKED, "q8_0"), device.info.kind)
        hold(device, far_case(device.info, packed, spec))


@pytest.mark.parametrize("cache", ["f16", "f32", "q8_0", "q4_0"])
def test_cut_fits_the_device_and_divides_the_heads(device: Device, cache: str) -> None:
    config, kind = PRESETS["glm-4.7-flash"], CACHE_TYPES[cache]
    shape = AttentionShape.choose(device, config, kind, 1)
    assert shape.latent_pairs % pairs_a_word(kind) == shape.rope_pairs % pairs_a_word(kind) == 0
    assert config.n_head % shape.heads == 0
    assert shape.latent_pairs * device.subgroup_size * 2 >= config.kv_lora
    assert shape.rope_pairs * device.subgroup_size * 2 >= config.qk_rope
    assert shape.splits >= 1
