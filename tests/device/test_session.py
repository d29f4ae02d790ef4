"""A session's life: what it allocates and gives back, goes back over, repeats, and refuses by full text."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from helpers import limited
from small_models import SmallModel

from model import budget, engine
from model.cache import Cache
from model.device_weights import predicted_bytes
from model.engine import Model, Session
from model.layout import PATHS, cache_bytes, get_path, pairs_a_word
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.errors import DeviceError, InputError
from vkbackend.memory import Room
from vkbackend.pace import Pace

ROUNDING = 4096  # bytes by which a driver rounds an allocation up at most


@pytest.fixture(scope="module", params=PATHS)
def on_each_path(request: pytest.FixtureRequest, small_models: dict[str, SmallModel]) -> Iterator[Session]:
    """A session of 64 positions on each path over the embedded model, kept for this file's tests."""
    session = Session(small_models["embedded"].model, PATHS[request.param], 64, chunk=8)
    yield session
    session.close()


@pytest.fixture
def opened(on_each_path: Session) -> Session:
    """That session at position 0."""
    on_each_path.rewind(0)
    return on_each_path


def step(session: Session, token: int) -> np.ndarray:
    """One decoded token's logits."""
    session.decode(token)
    return session.last_logits()


def test_replay_equals_the_first_run(opened: Session) -> None:
    """Bit for bit: a token at a position, and a chunk, again and again."""
    tokens = [5, 900, 33, 7, 1200, 2, 64, 11, 300, 41, 17]
    first_chunk = opened.prompt(tokens)
    assert first_chunk is not None
    first = step(opened, 77)
    for _ in range(3):
        opened.rewind(len(tokens))
        np.testing.assert_array_equal(step(opened, 77), first)
        opened.rewind(0)
        again = opened.prompt(tokens)
        assert again is not None
        np.testing.assert_array_equal(again, first_chunk)


def test_rewind_forgets_what_came_later(opened: Session, embedded: SmallModel) -> None:
    """After going back, into a word that two positions share, all is as if the later tokens had never been."""
    start, later, other = [5, 900, 33, 7, 1200], [100] * 30, [2, 3, 5, 7, 11, 13, 17, 19, 23]
    opened.prompt(start, "none")
    opened.prompt(later, "none")
    opened.rewind(len(start))
    found = opened.prompt(other, "all")
    fresh = Session(embedded.model, opened.path, 64, chunk=8)
    fresh.prompt(start, "none")
    expected = fresh.prompt(other, "all")
    fresh.close()
    assert found is not None and expected is not None
    np.testing.assert_array_equal(found, expected)
    assert opened.n_past == len(start) + len(other)


def test_sessions_of_one_model_do_not_meet(embedded: SmallModel) -> None:
    """All paths decode in turns over the same weights as they do alone."""
    tokens = [5, 900, 33, 7, 1200, 2]
    alone = {}
    for name, path in PATHS.items():
        session = Session(embedded.model, path, 32)
        alone[name] = np.stack([step(session, token) for token in tokens])
        session.close()
    together = {name: Session(embedded.model, path, 32) for name, path in PATHS.items()}
    for i, token in enumerate(tokens):
        for name, session in together.items():
            np.testing.assert_array_equal(step(session, token), alone[name][i])
    for session in together.values():
        session.close()


def refused(session: Session, expected: str, *prompts: list[int]) -> None:
    """Each prompt is refused with exactly ``expected``, and neither position nor results change."""
    session.rewind(0)
    session.prompt([5, 900, 33])
    before = session.last_logits()
    for tokens in prompts:
        with pytest.raises(InputError) as caught:
            session.prompt(tokens, "all")
        assert str(caught.value) == expected
        assert session.n_past == 3
        np.testing.assert_array_equal(session.last_logits(), before)
    after = step(session, 7)
    session.rewind(3)
    np.testing.assert_array_equal(step(session, 7), after)


def test_token_outside_the_vocabulary(opened: Session) -> None:
    n_vocab = opened.model.config.n_vocab
    for token in (-1, n_vocab, 2**32):
        message = f"token id {token}; expected 0 to {n_vocab - 1}: the model has no other"
        # Far enough behind good tokens that chunks before it would have run.
        refused(opened, message, [token], [1] * 20 + [token])
        with pytest.raises(InputError, match="token id"):
            opened.decode(token)


def test_empty_prompt(opened: Session) -> None:
    refused(opened, "an empty prompt; expected at least one token: give some text", [])


def test_more_than_the_context_holds(opened: Session) -> None:
    message = "65 tokens; expected at most 64, the session's context: ask for a longer context"
    refused(opened, message, [1] * 62)
    opened.rewind(0)
    opened.prompt([1] * 64, "none")
    with pytest.raises(InputError) as caught:
        opened.decode(1)
    assert str(caught.value) == message
    assert opened.n_past == 64


@pytest.mark.parametrize("target", [-1, 4])
def test_rewind_to_what_was_never_run(opened: Session, target: int) -> None:
    opened.prompt([5, 900, 33], "none")
    with pytest.raises(InputError) as caught:
        opened.rewind(target)
    assert str(caught.value) == f"rewind to {target}; expected 0 to 3, the positions in the cache: choose one"
    assert opened.n_past == 3


@pytest.mark.parametrize(
    ("n_ctx", "chunk", "expected"),
    [
        (0, None, "context 0; expected at least 1: choose a longer one"),
        (64, 0, "chunk 0; expected at least 1: choose a larger one"),
    ],
)
def test_lengths_that_are_none(embedded: SmallModel, n_ctx: int, chunk: int | None, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        Session(embedded.model, PATHS["mla"], n_ctx, chunk)
    assert str(caught.value) == expected


def test_cache_type_without_a_kernel(embedded: SmallModel) -> None:
    with pytest.raises(InputError) as caught:
        Session(embedded.model, replace(PATHS["mla"], cache_type="q5_1"), 64)
    assert str(caught.value) == (
        "cache type 'q5_1' has no kernel, expected one of f16, f32, q8_0, q4_0; choose one with --cache"
    )


@pytest.mark.parametrize("cache_type", ["f16", "f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("path", PATHS)
def test_cache_is_as_large_as_the_formula_says(small: SmallModel, path: str, cache_type: str) -> None:
    of_type = replace(PATHS[path], cache_type=cache_type)
    if (path == "mha" and cache_type[0] == "q") or small.config.kv_lora % (2 * pairs_a_word(of_type.kind)):
        pytest.skip(f"{path} has no {cache_type} cache at these widths")
    for n_ctx, allocated in ((32, 32), (96, 96), (33, 64), (1, 32)):
        session = Session(small.model, get_path(path, cache_type), n_ctx, chunk=4)
        formula = cache_bytes(small.config, PATHS[path].layout, cache_type, allocated)
        parts = sum(len(layer.parts()) for layer in session._cache.layers)
        assert formula <= session.cache_bytes <= formula + parts * ROUNDING
        session.close()


@pytest.mark.parametrize("path", PATHS)
def test_close_gives_every_buffer_back(embedded: SmallModel, device: Device, path: str) -> None:
    """As counted where Vulkan allocates; and what a session says of itself is what was counted."""
    embedded.model.weights.need_fallback()  # made for the first session that wants it, and kept
    before = device.companion.live_bytes()
    session = Session(embedded.model, PATHS[path], 32, chunk=4)
    assert device.companion.live_bytes() == before + session.cache_bytes + session.scratch_bytes
    session.prompt([5, 900, 33], "all")
    session.close()
    assert device.companion.live_bytes() == before


@pytest.mark.parametrize("part", ["Cache", "Scratch", "Forward"])
def test_a_session_that_fails_halfway_gives_all_back(
    embedded: SmallModel, device: Device, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail(*_: object) -> None:
        raise DeviceError("no more")

    before = device.companion.live_bytes()
    monkeypatch.setattr(engine, part, fail)
    with pytest.raises(DeviceError, match="no more"):
        Session(embedded.model, PATHS["mla-v"], 32, chunk=4)
    assert device.companion.live_bytes() == before


@pytest.mark.parametrize("index", [0, 1, 7, 40])
def test_buffers_made_before_one_fails_are_given_back(
    embedded: SmallModel, device: Device, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    """Whichever of a model's or a cache's buffers it is."""
    before, made = device.companion.live_bytes(), 0
    create = Buffer.__init__

    def fail(self: Buffer, *args: Any, **kwargs: Any) -> None:
        nonlocal made
        if made == index:
            raise DeviceError("no more")
        made += 1
        create(self, *args, **kwargs)

    monkeypatch.setattr(Buffer, "__init__", fail)
    with pytest.raises(DeviceError, match="no more"):
        Model.load(embedded.gguf, device)
    assert made == index and device.companion.live_bytes() == before
    for path in PATHS.values():
        made = 0
        with pytest.raises(DeviceError, match="no more"):
            Cache(device, replace(embedded.config, n_layer=41), path, 32)
        assert device.companion.live_bytes() == before


def test_closing_a_session_keeps_the_weights(opened: Session, embedded: SmallModel) -> None:
    before = step(opened, 5)
    Session(embedded.model, PATHS["mha"], 32, chunk=4).close()
    opened.rewind(0)
    np.testing.assert_array_equal(step(opened, 5), before)


def test_sessions_leave_no_memory_behind(embedded: SmallModel, device: Device) -> None:
    """On unified memory a cache is host memory: ten of 30 MB, one after the other, must not add up."""
    if not device.info.unified:
        pytest.skip(f"{device.info.name} has memory of its own, which the process's size does not show")
    path, n_ctx, process = PATHS["mha"], 4096, psutil.Process()
    sizes = []
    for _ in range(11):
        session = Session(embedded.model, path, n_ctx, chunk=1)
        session.decode(5)
        sizes.append(process.memory_info().rss)
        one = session.cache_bytes
        session.close()
    assert one > 30_000_000
    assert sizes[-1] - sizes[0] < 3 * one


@pytest.mark.parametrize("path", PATHS)
def test_context_beyond_memory_is_refused_before_it_is_allocated(
    embedded: SmallModel, device: Device, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The message's own largest context fits, and one position more does not."""
    layout = PATHS[path].layout
    session = Session(embedded.model, PATHS[path], 320, chunk=4)
    scratch = sum(buffer.nbytes for buffer in session._scratch.buffers.values())
    session.close()
    free = scratch + cache_bytes(embedded.config, layout, "f16", 320) + 5
    monkeypatch.setattr(budget, "room", lambda device: Room(free, "of it", "a larger one"))
    Session(embedded.model, PATHS[path], 320, chunk=4).close()
    monkeypatch.setattr(engine, "Cache", lambda *_: pytest.fail("allocated before the check"))
    rows = cache_bytes(embedded.config, layout, "f16", 352)  # one position more takes a whole unit of 32
    more = 4 * embedded.config.n_head * 4 * 32 if path == "mha" else 0  # scores
    other = "" if path == "mla" else " or --path mla"
    with pytest.raises(DeviceError) as caught:
        Session(embedded.model, PATHS[path], 321, chunk=4)
    assert str(caught.value) == (
        f"context 321 on path {path} needs {rows + scratch + more} bytes ({rows} of cache, {scratch + more} of "
        f"activations); {device.info.name} has {free} left of it, {rows + scratch + more - free} short: "
        f"use a context of at most 320{other} or a larger one"
    )
    monkeypatch.setattr(budget, "room", lambda device: Room(0, "of it"))
    with pytest.raises(DeviceError, match="no context fits: use a smaller quantisation"):
        Session(embedded.model, PATHS[path], 64)


def test_a_model_and_its_session_are_refused_before_the_weights_are_read(
    embedded: SmallModel, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, needed = PATHS["mha"], predicted_bytes(embedded.config, embedded.gguf)
    monkeypatch.setattr(engine, "DeviceWeights", lambda *_: pytest.fail("allocated before the check"))
    monkeypatch.setattr(budget, "room", lambda device: Room(needed + 10_000_000, "of it"))
    with pytest.raises(DeviceError) as caught:
        Model.load(embedded.gguf, device, path, 4096)
    c = embedded.config
    weights = needed + 2 * c.n_layer * c.n_head * c.qk_nope * c.kv_lora  # k_b turned over, F16 as in the file
    assert f"{cache_bytes(c, path.layout, 'f16', 4096)} of cache, " in str(caught.value)
    assert f" of activations, {weights} of weights); " in str(caught.value)


def test_weights_beyond_memory_are_refused_before_they_are_allocated(
    small: SmallModel, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The predicted bytes are those of the buffers that a load then makes, but for what a driver rounds up."""
    loaded = Model.load(small.gguf, device)
    needed = predicted_bytes(small.config, small.gguf)
    buffers = len(loaded.weights._vectors) + sum(len(w.shards) for w in loaded.weights._matrices.values())
    assert needed <= loaded.weight_bytes <= needed + buffers * ROUNDING
    loaded.close()
    monkeypatch.setattr(budget, "room", lambda device: Room(needed, "of it"))
    Model.load(small.gguf, device).close()
    monkeypatch.setattr(budget, "room", lambda device: Room(needed - 1, "of it"))
    monkeypatch.setattr(engine, "DeviceWeights", lambda *_: pytest.fail("allocated before the check"))
    with pytest.raises(DeviceError) as caught:
        Model.load(small.gguf, device)
    assert str(caught.value) == (
        f"{small.gguf.path}: weights of {needed} bytes; {device.info.name} has {needed - 1} left of it, "
        "1 short, so that no context fits: use a smaller quantisation"
    )


@pytest.mark.parametrize("path", ["mha"])
def test_context_beyond_one_binding_is_refused_before_it_is_allocated(
    embedded: SmallModel, device: Device, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The refusal's own largest context opens, and one position more does not."""
    limit = 40_000
    narrow = limited(device, limit)
    most = budget.binding_context(embedded.config, PATHS[path], limit)
    assert most > 0 and most % 32 == 0
    a_position = 4 * 20  # one token's scores
    assert most * a_position <= limit - 128 < (most + 32) * a_position
    model = SimpleNamespace(config=embedded.config, device=narrow, weights=embedded.model.weights)
    monkeypatch.setattr(engine, "Cache", lambda *_: pytest.fail("allocated before the check"))
    with pytest.raises(DeviceError) as caught:
        Session(model, PATHS[path], most + 1, chunk=1)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"context {most + 1} on path {path} takes more than the {limit} bytes that {device.info.name} binds at most: "
        f"use a context of at most {most}"
    )


@pytest.mark.parametrize("name", ["awkward", "lite", "grouped"])
def test_a_token_that_failed_midway_misleads_no_later_one(
    small_models: dict[str, SmallModel], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A submission fails where some of a router's workgroups have run, and counted themselves."""
    small = small_models[name]
    device, session = small.model.device, small.session("mla", 8)
    session.rewind(0)
    expected = step(session, 5)
    session.rewind(0)
    run, arrivals = device.run, session._scratch["arrivals"]

    def failing(sequence: object, what: str) -> float:
        seconds = run(sequence, what)
        if arrivals.download(np.uint32, 1)[0] != 0:
            raise DeviceError("no more")
        return seconds

    before, device.pace = device.pace, Pace()  # which runs every launch in pieces
    try:
        with monkeypatch.context() as patch:
            patch.setattr(device, "run", failing)
            with pytest.raises(DeviceError, match="no more"):
                session.decode(5)
        assert session.n_past == 0 and arrivals.download(np.uint32, 1)[0] != 0
        for _ in range(2):
            np.testing.assert_array_equal(step(session, 5), expected)
            session.rewind(0)
        assert arrivals.download(np.uint32, 1)[0] == 0
    finally:
        device.pace = before


def test_logits_that_are_not_finite_are_an_error(embedded: SmallModel, device: Device) -> None:
    """One line wherever logits leave the device, in place of a token id that never was."""
    model = embedded.model
    norm = model.weights.vector("output_norm")
    good = norm.download(np.uint32)
    session = Session(model, PATHS["mla"], 32, chunk=4)
    try:
        norm.upload(np.full(model.config.n_embd, np.nan, np.float32))
        for position, run in (
            (1, lambda: session.prompt([1, 2])),
            (2, lambda: session.prompt([3, 4, 5], "all")),
            (0, lambda: session.decode(1)),
        ):
            if position == 0:
                session.rewind(0)
            with pytest.raises(DeviceError) as caught:
                run()
            assert str(caught.value) == (
                f"{model.gguf.path}: logits after position {position} are not finite on {device.info.name}; expected "
                "numbers: check the file's hash, then its types, or choose another --device"
            )
    finally:
        norm.upload(good)
        session.close()
