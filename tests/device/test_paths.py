"""Whole models on the device: every path against the reference, against the other paths, and however it is cut."""

import numpy as np
import pytest
from small_models import SmallModel

from model import prompt_expansion
from model.engine import Session
from model.layout import PATHS, get_path, pairs_a_word
from vkbackend.errors import InputError


def test_prompts_route_safely(small: SmallModel) -> None:
    """f32 moves a selection score by about 1e-5: below that margin a device may rightly choose another expert."""
    assert small.reference.routing_margins(small.prompt).min() > 2e-4


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_logits_equal_the_references(small: SmallModel, path: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every position: one token at a time, in chunks of which the last is not full, in one that is half empty.

    Absorbed: test_prompt_expansion.py holds expanded chunks to a reference that rounds keys and values as they do.
    """
    monkeypatch.setattr(prompt_expansion, "_EXPANDING", 2.0**40)
    found = small.logits(path, chunk)
    expected, tolerance = small.exact(PATHS[path])
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert tolerance < 0.01 * np.abs(expected).max()  # or the comparison would say little
    assert np.abs(found - expected).max() <= tolerance
    ordered = np.sort(expected, axis=1)
    certain = ordered[:, -1] - ordered[:, -2] > 2 * tolerance
    assert certain.mean() > 0.5
    np.testing.assert_array_equal(found.argmax(axis=1)[certain], expected.argmax(axis=1)[certain])


@pytest.mark.parametrize("path", PATHS)
def test_decoding_equals_prompting(small: SmallModel, path: str) -> None:
    """A token run by ``decode`` has the logits it has in a prompt, and ``decode`` returns their greatest."""
    _, tolerance = small.exact(PATHS[path])
    prompted = small.logits(path, 7)
    opened = small.session(path, 7)
    opened.prompt(small.prompt[:5], "none")
    for position, token in enumerate(small.prompt[5:17], start=5):
        following = opened.decode(token)
        found = opened.last_logits()
        assert np.abs(found - prompted[position]).max() <= tolerance
        assert following == found.argmax()
    assert opened.n_past == 17


@pytest.mark.parametrize("path", PATHS)
def test_last_logits_are_the_last_of_all(small: SmallModel, path: str) -> None:
    """Only the head differs: norm and output matrix of one token, against those of a chunk."""
    every = small.logits(path, 7)
    opened = small.session(path, 7)
    last = opened.prompt(small.prompt)
    assert last is not None
    np.testing.assert_array_equal(opened.last_logits(), last)
    # Sums of n_embd products in two orders, on logits that are such sums.
    assert np.abs(last - every[-1]).max() <= 2.0**-24 * small.config.n_embd * np.abs(every[-1]).max()


@pytest.mark.parametrize("path", PATHS)
def test_an_f32_cache_leaves_only_the_rounding_of_f32(small: SmallModel, path: str) -> None:
    """Prompted and decoded. The oracle in f32 sums in one more order of its own, none better than another."""
    expected, rounding = small.exact_f32
    found = small.logits(path, 7, "f32")
    assert np.abs(found - expected).max() <= 4 * rounding
    opened = small.session(path, 7, "f32")
    opened.prompt(small.prompt[:-1], "none")
    opened.decode(small.prompt[-1])
    assert np.abs(opened.last_logits() - expected[-1]).max() <= 4 * rounding
    # Far below what rounding the cache to f16 does: the type is no mere name.
    assert 20 * rounding < small.exact(PATHS[path])[1]


@pytest.mark.parametrize("cache", ["q8_0", "q4_0"])
@pytest.mark.parametrize("path", ["mla", "mla-v"])
def test_a_quantised_cache_rounds_as_ggmls_blocks_do(small: SmallModel, path: str, cache: str) -> None:
    """Prompted in chunks that are not full, and decoded. The copy of V has blocks of its own, the row's end another."""
    made = get_path(path, cache)
    if small.config.kv_lora % (2 * pairs_a_word(made.kind)):
        with pytest.raises(InputError, match=f"kv_lora_rank {small.config.kv_lora}, expected a multiple of 8"):
            small.session(path, 7, cache)
        return
    expected, tolerance = small.exact(made)
    found = small.logits(path, 7, cache)
    assert np.abs(found - expected).max() <= tolerance
    if small.config.kv_lora % 32:
        # f32 puts a few numbers on the neighbouring step, the other path's blocks a whole block of every row.
        other, _ = small.exact(get_path({"mla": "mla-v", "mla-v": "mla"}[path], cache))
        assert np.square(found - expected).mean() < np.square(found - other).mean() / 4
    # Far more than f16 rounds, and no more than the type does: q8_0 keeps 7 bits of a block's largest, q4_0 three.
    rounding = np.abs(found - small.exact_f32[0]).max()
    assert small.exact(PATHS[path])[1] < rounding < 3 * tolerance
    opened = small.session(path, 7, cache)
    opened.prompt(small.prompt[:-1], "none")
    opened.decode(small.prompt[-1])
    assert np.abs(opened.last_logits() - found[-1]).max() <= tolerance


def greedy(opened: Session, prompt: list[int], count: int) -> tuple[list[int], float]:
    """``count`` greedy tokens, and the smallest lead that one of them had over the second best."""
    first = opened.prompt(prompt)
    assert first is not None
    tokens, leads = [int(first.argmax())], []
    while True:
        best = np.sort(opened.last_logits())[-2:]
        leads.append(float(best[1] - best[0]))
        if len(tokens) == count:
            return tokens, min(leads)
        tokens.append(opened.decode(tokens[-1]))


def test_paths_generate_the_same_tokens(embedded: SmallModel) -> None:
    """64 greedy tokens, token for token, on every path, each with another chunk, and by the reference.

    Paths round different numbers to f16, which moves logits by some hundredths: where a token leads by less they may
    rightly differ. Of held-out prompts the first is taken whose continuation leads by 0.1 throughout, else the one
    that leads by most.
    """
    count, choices = 64, []
    for prompt in embedded.draws(8, 40):
        tokens, lead = greedy(embedded.session("mla", 64), prompt, count)
        choices.append((lead, prompt, tokens))
        if lead > 0.1:
            break
    _, prompt, expected = max(choices)
    for path, chunk in (("mla", 1), ("mla-v", 7), ("mha", 64)):
        assert greedy(embedded.session(path, chunk), prompt, count)[0] == expected, path
    assert embedded.reference.generate(prompt, count, cache_type=np.float16) == expected


def test_long_context_crosses_splits_and_tables(embedded: SmallModel) -> None:
    """Over 600 positions: past the rope tables' first coarse row, all splits of the cache busy. mla against mha."""
    tokens = embedded.draws(1, 600)[0]
    found = []
    for path in ("mla", "mha"):
        opened = Session(embedded.model, PATHS[path], 640)
        opened.prompt(tokens, "none")
        tail = []
        for token in tokens[:8]:
            opened.decode(token)
            tail.append(opened.last_logits())
        found.append(np.stack(tail))
        opened.close()
    # Some of 600 tokens sit on a routing tie, so only the bulk is compared, in units of the logits' own spread.
    difference = np.abs(found[0] - found[1])
    assert np.median(difference) < 0.01 * np.std(found[0])
