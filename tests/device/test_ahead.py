"""Several tokens decoded before the host reads them: the same as one by one, wherever it stops, ends or fails."""

from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
import pytest
from small_models import SmallModel

from model.engine import Session
from model.generate import continuation
from model.layout import PATHS
from model.scratch import AHEAD
from vkbackend.device import Device, open_device
from vkbackend.errors import DeviceError, DeviceLostError, InputError
from vkbackend.pace import Pace

N_CTX = 61  # no multiple of what is decoded at once


def one_by_one(session: Session, token: int, count: int) -> list[int]:
    """Greedy tokens after ``token`` at ``n_past``, which is then as before."""
    began, found = session.n_past, [token]
    while len(found) <= count:
        found.append(session.decode(found[-1]))
    session.rewind(began)
    return found[1:]


def ahead(session: Session, token: int, count: int) -> list[list[int]]:
    """The same by as many as go at once."""
    found: list[list[int]] = []
    while (left := count - sum(map(len, found))) > 0:
        found.append(session.decode_ahead(found[-1][-1] if found else token, left))
    return found


@pytest.fixture(params=["mla", "mla-v", "mha"])
def session(unhurried: None, request: pytest.FixtureRequest, small: SmallModel) -> Iterator[Session]:
    """Behind a prompt of five tokens; its device has seen how fast it is."""
    opened = Session(small.model, PATHS[request.param], N_CTX, chunk=4)
    opened.prompt(small.prompt[:5], "none")
    for _ in range(3):
        opened.decode(small.prompt[5])
        opened.rewind(5)
    yield opened
    opened.close()


def test_tokens_are_those_of_one_by_one(session: Session, small: SmallModel) -> None:
    """Any number of them, from any position, and all up to the context's end."""
    last = small.prompt[5]
    expected = one_by_one(session, last, N_CTX - 5)
    for count in (1, 2, 3, AHEAD - 1, AHEAD, AHEAD + 1, 3 * AHEAD + 5, N_CTX - 5):
        session.rewind(5)
        found = ahead(session, last, count)
        assert [*chain(*found)] == expected[:count]
        assert session.n_past == 5 + count
    assert max(map(len, found)) == AHEAD
    with pytest.raises(InputError) as caught:
        session.decode_ahead(expected[-1])
    assert str(caught.value) == (
        f"{N_CTX + 1} tokens; expected at most {N_CTX}, the session's context: ask for a longer context"
    )
    assert session.n_past == N_CTX
    session.rewind(N_CTX - 3)
    assert [session.decode_ahead(expected[-4]), session.decode_ahead(expected[-2])] == [expected[-3:-1], expected[-1:]]


def test_what_was_decoded_too_far_leaves_nothing_behind(session: Session, small: SmallModel) -> None:
    """Tokens taken back, other ones run in their place: the same logits as if the former had never been."""
    last, others = small.prompt[5], small.prompt[6:9]
    expected = one_by_one(session, last, 3 * AHEAD)
    for token in (last, *expected[:3]):
        session.decode(token)
    session.prompt(others, "none")
    clean = session.prompt([4], "last")
    session.rewind(5)
    for _ in range(2):
        ahead(session, last, 2 * AHEAD)
        session.rewind(9)
        session.prompt(others, "none")
        np.testing.assert_array_equal(session.prompt([4], "last"), clean)
        session.rewind(5)


def test_a_continuation_stops_anywhere_and_goes_on(session: Session, small: SmallModel) -> None:
    last = small.prompt[5]
    expected = one_by_one(session, last, 40)
    for first, second in ((1, 7), (2, 20), (AHEAD, AHEAD), (AHEAD + 2, 1), (17, 13)):
        session.rewind(5)
        tokens = continuation(session, [last], None)
        found = list(islice(tokens, first))
        tokens.close()  # type: ignore[attr-defined]
        assert session.n_past == 5 + first
        more = continuation(session, [found[-1]], None)
        assert found + list(islice(more, second)) == expected[: first + second]
        more.close()  # type: ignore[attr-defined]
        assert session.n_past == 5 + first + second


def test_a_continuation_ends_with_the_context(session: Session, small: SmallModel) -> None:
    expected = one_by_one(session, small.prompt[5], N_CTX - 5)
    found: list[int] = []
    with pytest.raises(InputError, match=f"expected at most {N_CTX}, the session's context"):
        found.extend(continuation(session, [small.prompt[5]], None))
    # What ``extend`` took before the error is in the list, as it would be printed.
    assert found == expected


@pytest.mark.parametrize("bad", range(5, 5 + AHEAD + 2))
def test_a_logit_that_is_no_number_fails_at_its_token(embedded: SmallModel, device: Device, bad: int) -> None:
    """The rotation of one position is made NaN: tokens before it come, and the error is of it."""
    session = Session(embedded.model, PATHS["mla"], N_CTX, chunk=4)
    prompt = embedded.prompt[:6]
    tables = session._scratch["rope_tables"]
    good = tables.download(np.uint32)
    try:
        session.prompt(prompt[:5], "none")
        expected = one_by_one(session, prompt[5], bad - 5 + 3)
        pairs = embedded.config.qk_rope
        broken = good.copy()
        row = (session._scratch.n_high + bad) * pairs
        broken[row : row + pairs] = np.float32(np.nan).view(np.uint32)
        tables.upload(broken)
        found: list[int] = []
        with pytest.raises(DeviceError) as caught:
            found.extend(continuation(session, [prompt[5]], None))
        assert str(caught.value).startswith(f"{embedded.gguf.path}: logits after position {bad} are not finite on ")
        assert found == expected[: bad - 5]
        tables.upload(good)
        session.rewind(5)
        assert [*chain(*ahead(session, prompt[5], len(expected)))] == expected
    finally:
        tables.upload(good)
        session.close()


def test_a_lost_device_keeps_the_tokens_before(embedded: SmallModel, unhurried: None) -> None:
    fresh = open_device()
    lost = SmallModel("embedded", embedded.gguf, fresh)
    session = Session(lost.model, PATHS["mla"], N_CTX, chunk=4)
    expected = one_by_one(session, 5, 12)
    tokens = continuation(session, [5], None)
    found = [next(tokens) for _ in range(1 + AHEAD)]
    fresh.companion.lose()
    with pytest.raises(DeviceLostError, match="was lost at program decode"):
        next(tokens)
    assert found == expected[: 1 + AHEAD] and session.n_past == 1 + AHEAD
    session.close()
    lost.model.close()
    fresh.close()


def test_a_slow_device_decodes_one_at_a_time(embedded: SmallModel) -> None:
    """A token that takes more than half of what a submission may: several would run too long."""
    device = embedded.model.device
    before, device.pace = device.pace, Pace()
    session = Session(embedded.model, PATHS["mla"], N_CTX, chunk=4)
    try:
        expected = one_by_one(session, 5, 4)
        groups = sum(np.prod(launch.grid) for launch in session._forward.decode.launches)
        device.companion.slow_down(0.06 / groups)
        device.pace = Pace()
        found = ahead(session, 5, 4)
        assert [*chain(*found)] == expected and [len(each) for each in found] == [1] * 4
    finally:
        device.companion.slow_down(0)
        device.pace = before
        session.close()
