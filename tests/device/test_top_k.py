"""The likeliest tokens found on the device: the same as the host finds among all logits, and the same draws."""

from collections.abc import Iterator

import numpy as np
import pytest
from helpers import hold
from small_models import SmallModel

from harness.oracles import top_k
from harness.oracles.case import Target
from model import kernels
from model.engine import Model, Session
from model.generate import continuation
from model.layout import PATHS
from model.sampling import Sampler, SamplingParams
from model.top_k import MOST_K
from vkbackend.device import Device


@pytest.fixture
def session(embedded: SmallModel, device: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """One whose device finds the likeliest, though its vocabulary is short."""
    monkeypatch.setattr("model.top_k.LEAST_TOKENS_CPU", 0)
    model = Model.load(embedded.gguf, device)
    made = Session(model, PATHS["mla"], 96, chunk=16)
    yield made
    made.close()
    model.close()


def test_a_bound_and_all_that_reach_it(device: Device) -> None:
    for per_lane in (1, 3, 17):
        target = Target(kernels.TOP_K_BOUND, {"PER_LANE": per_lane}, device.info)
        for case in top_k.cases(target, np.random.default_rng(per_lane)):
            hold(device, case)


def test_the_likeliest_are_among_the_candidates(
    session: Session, embedded: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.prompt(embedded.prompt, "last")
    logits = session.last_logits()[: embedded.config.n_tokens]
    for k in (1, 2, 7, 40, MOST_K):
        found = session.candidates(k)
        assert found is not None
        ids, values = found
        np.testing.assert_array_equal(values, logits[ids])
        assert (np.diff(ids) > 0).all()
        assert set(np.argsort(-logits, kind="stable")[:k].tolist()) <= set(ids.tolist())
        assert len(ids) < len(logits) or k == MOST_K
    assert session.candidates(0) is None and session.candidates(MOST_K + 1) is None
    monkeypatch.setattr("model.top_k.LEAST_TOKENS_CPU", embedded.config.n_tokens + 1)
    assert (session.candidates(7) is None) == (session.model.device.info.kind == "cpu")


@pytest.mark.parametrize("top_k", [1, 3, 40, MOST_K + 1])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.7}, {"min_p": 0.2, "temperature": 2.5}], ids=str)
def test_draws_are_those_among_all_logits(
    session: Session, embedded: SmallModel, top_k: int, filters: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(**{"temperature": 0.9, "top_k": top_k, "seed": 11, **filters})  # type: ignore[arg-type]

    def text() -> list[int]:
        session.rewind(0)
        tokens = continuation(session, embedded.prompt, Sampler(params, embedded.config.n_tokens))
        return [next(tokens) for _ in range(20)]

    found = text()
    monkeypatch.setattr(Session, "candidates", lambda self, k: None)
    assert text() == found


def test_more_equals_than_the_list_holds_are_left_to_the_host(
    session: Session, embedded: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All the same but for one; and the next token's candidates are whole again."""
    session.prompt(embedded.prompt, "last")
    monkeypatch.setattr("model.top_k.TOP_LIST", embedded.config.n_tokens - 1)
    flat = np.full(embedded.config.n_vocab, -1.5, np.float32)
    session._scratch["logits"].upload(flat)
    assert session.candidates(5) is None
    flat[9] = 3.0
    session._scratch["logits"].upload(flat)
    found = session.candidates(1)
    assert found is not None and found[0].tolist() == [9] and found[1].tolist() == [3.0]
