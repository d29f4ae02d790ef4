"""Where buffers live: the discrete policy, forced on any device, gives the same bits through bounded staging."""

from collections.abc import Iterator

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from helpers import FORMATS, discrete, limited
from small_models import SmallModel

import vkbackend.staging
from harness.oracles.linear import random_tensor
from model import kernels
from model.attention_shape import AttentionShape
from model.engine import Model, Session
from model.layout import PATHS
from model.norm import norm_held
from model.weights import stack_upload
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.memory import Use
from vkbackend.staging import STAGING_BYTES, Staging

WORDS = 5000


@pytest.fixture
def card(device: Device) -> Iterator[Device]:
    """The device as if it had memory of its own."""
    other = discrete(device)
    yield other
    other.memory.close()


@pytest.fixture
def narrow(card: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """With a staging buffer of 1000 bytes, so that small buffers take many pieces."""
    monkeypatch.setattr(vkbackend.staging.Staging.__init__, "__defaults__", (1000,))
    return card


def test_only_what_the_host_touches_is_mapped(device: Device, card: Device) -> None:
    mapped = {use for use in Use if card.memory.mapped(use)}
    assert mapped == {Use.PARAMETERS, Use.RESULTS, Use.STAGING}
    if device.info.unified:
        assert all(device.memory.mapped(use) for use in Use)


def test_contents_pass_through_the_staging_buffer_in_pieces(narrow: Device) -> None:
    data = np.random.default_rng(1).integers(0, 2**32, WORDS, dtype=np.uint32)
    buffer = Buffer(narrow, 4 * WORDS, "b", initial=data)
    assert not buffer.mapped and narrow.memory.staging.nbytes == 1000
    np.testing.assert_array_equal(buffer.download(np.uint32), data)
    np.testing.assert_array_equal(buffer.download(np.uint16, 777), data.view(np.uint16)[:777])
    buffer.free()


@pytest.mark.parametrize(("offset", "count"), [(10, 2), (1, 1), (3, 2500), (0, 3), (4 * WORDS - 3, 3), (8, 4)])
def test_words_that_an_upload_covers_in_part_keep_the_rest(narrow: Device, offset: int, count: int) -> None:
    expected = np.random.default_rng(2).integers(0, 256, 4 * WORDS, dtype=np.uint8)
    buffer = Buffer(narrow, 4 * WORDS, "b", initial=expected.view(np.uint32))
    part = np.arange(count, dtype=np.uint32).astype(np.uint8)
    buffer.upload(part, offset)
    expected[offset : offset + count] = part
    np.testing.assert_array_equal(buffer.download(np.uint8), expected)
    buffer.free()


def test_device_local_buffers_are_zeroed(card: Device) -> None:
    for _ in range(3):  # so that memory is used again
        buffer = Buffer(card, 4 * WORDS, "b")
        assert not buffer.download(np.uint32).any()
        buffer.upload(np.full(WORDS, 2**32 - 1, np.uint32))
        buffer.free()


def test_more_words_than_one_grid_covers(card: Device) -> None:
    small = limited(card, card.info.max_storage_buffer_range)
    small.info = type(card.info)(**{**vars(card.info), "max_workgroup_count": (3, 1, 1)})
    staging = Staging(small, 4 * WORDS)
    data = np.arange(WORDS, dtype=np.uint32)
    buffer = Buffer(card, 4 * WORDS, "b")
    with staging.window(buffer, 0, 4 * WORDS) as target:
        target.view(np.uint32)[:] = data
    np.testing.assert_array_equal(buffer.download(np.uint32), data)
    staging.zero(buffer)
    assert not buffer.download(np.uint32).any()
    buffer.free()
    staging.free()


def test_a_window_beyond_the_buffer_or_a_piece_is_refused(narrow: Device) -> None:
    buffer = Buffer(narrow, 4 * WORDS, "b")
    for offset, nbytes in ((0, 501), (4 * WORDS - 4, 8), (-4, 4)):
        with pytest.raises(ValueError) as caught, buffer.window(offset, nbytes):
            pytest.fail("opened")
        assert str(caught.value) == (
            f"bytes {offset} to {offset + nbytes} of buffer b; expected at most 500 of its {4 * WORDS}"
        )
    with pytest.raises(ValueError) as caught:
        buffer.words()
    assert str(caught.value) == "buffer b is not mapped; expected a mapped one: use window or download"
    buffer.free()


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_weights_are_the_same_words_in_either_memory(device: Device, narrow: Device, kind: Q) -> None:
    """In whole and in pieces, of an odd number of blocks."""
    block = GGML_QUANT_SIZES[kind][0]
    shape = (3, 5, -(-96 // block) * block)
    data, _ = random_tensor(np.random.default_rng(3), kind, shape)
    found = []
    for where in (device, narrow):
        weight = stack_upload(where, "w", kind, shape, data)
        found.append(weight.shards[0].buffer.download(np.uint32))
        weight.free()
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("path", PATHS)
def test_models_give_the_same_bits_in_memory_of_the_devices_own(
    small: SmallModel, card: Device, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same kernels: norms and attention of the forms that GPUs take sum in another order."""
    held, choose, for_device = norm_held, AttentionShape.choose, kernels.for_device
    monkeypatch.setattr(AttentionShape, "choose", lambda device, *rest: choose(small.device, *rest))
    monkeypatch.setattr(kernels, "for_device", lambda kernel, kind: for_device(kernel, small.device.info.kind))
    monkeypatch.setattr("model.norm.norm_held", lambda width, lanes, kind: held(width, lanes, small.device.info.kind))
    expected = small.logits(path, 7)
    model = Model.load(small.gguf, card)
    session = Session(model, PATHS[path], 128, chunk=7)
    found = session.prompt(small.prompt, "all")
    assert found is not None
    np.testing.assert_array_equal(found, expected)
    whole = small.session(path, 7)
    whole.prompt(small.prompt, "none")
    assert session.decode(5) == whole.decode(5)
    np.testing.assert_array_equal(session.last_logits(), whole.last_logits())
    mapped = {name for name, buffer in session._scratch.buffers.items() if buffer.mapped}
    assert mapped == {"params", "tokens", "top", "logits"}
    session.close()
    model.close()


def test_weights_leave_no_copy_behind_but_the_staging_buffer(embedded: SmallModel, card: Device) -> None:
    """Counted where Vulkan allocates: nothing is held twice, and closing gives all back."""
    before = card.companion.live_bytes()
    model = Model.load(embedded.gguf, card)
    staging = card.companion.live_bytes() - before - model.weight_bytes
    assert STAGING_BYTES <= staging < STAGING_BYTES + 4096
    model.close()
    card.memory.close()
    assert card.companion.live_bytes() == before
