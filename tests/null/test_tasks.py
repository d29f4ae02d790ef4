"""The scored task: exact length, positions that mean what they say, the same document everywhere."""

import numpy as np
import pytest

from model import tasks
from model.data import EMBEDDED_MODEL
from model.gguf_file import GGUFFile
from model.tokenizer import Tokenizer
from vkbackend.errors import InputError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile.open(EMBEDDED_MODEL))


@pytest.mark.parametrize("n_ctx", [64, 65, 255, 1024, 4097, 16384, 60_000])
def test_document_has_exactly_the_asked_length_and_count_of_questions(tokenizer: Tokenizer, n_ctx: int) -> None:
    document = tasks.build_document(tokenizer, n_ctx, seed=3)
    assert document.tokens.shape == (n_ctx,)
    assert document.n_facts == min(64, n_ctx // 16)
    assert len(document.answer_positions) == min(32, n_ctx // 16)
    assert document.text_positions.max() < document.answer_positions.min()


@pytest.mark.parametrize("seed", range(5))
def test_every_question_repeats_one_fact_at_the_stated_distance(tokenizer: Tokenizer, seed: int) -> None:
    document = tasks.build_document(tokenizer, 777, seed)
    fact_mark, question_mark = tokenizer.encode("#") + tokenizer.encode("?")
    tokens = document.tokens
    for position, distance, answer in zip(
        document.answer_positions, document.answer_distances, document.answers, strict=True
    ):
        value_at = position + 1 - distance
        assert tokens[position - 1] == question_mark
        assert tokens[value_at - 2] == fact_mark
        assert tokens[value_at - 1] == tokens[position]
        assert tokens[value_at] == answer == tokens[position + 1]
        assert np.count_nonzero((tokens[1:] == tokens[position]) & (tokens[:-1] == fact_mark)) == 1


def test_facts_are_spread_over_the_whole_context(tokenizer: Tokenizer) -> None:
    """With 64 facts, one drawn in each 64th of the text, every sixteenth of 8,192 tokens holds some."""
    document = tasks.build_document(tokenizer, 8192, seed=0, n_questions=64)
    value_at = document.answer_positions + 1 - document.answer_distances
    counts = np.histogram(value_at, bins=16, range=(0, 8192 - 4 * 64))[0]
    assert counts.sum() == 64
    assert counts.min() >= 2


def test_text_positions_spell_the_heldout_text(tokenizer: Tokenizer) -> None:
    document = tasks.build_document(tokenizer, 2048, seed=1)
    heldout = tasks.heldout_text()
    gaps = np.flatnonzero(np.diff(document.text_positions) > 1)
    stretch = document.tokens[document.text_positions[0] : document.text_positions[gaps[0]] + 1]
    assert tokenizer.decode(stretch.tolist()) in heldout
    assert len(document.text_positions) > 0.6 * 2048


def test_a_document_depends_on_its_arguments_alone(tokenizer: Tokenizer) -> None:
    first, again = (tasks.build_document(tokenizer, 512, seed=7) for _ in range(2))
    other = tasks.build_document(tokenizer, 512, seed=8)
    assert np.array_equal(first.tokens, again.tokens)
    assert np.array_equal(first.answer_positions, again.answer_positions)
    assert not np.array_equal(first.tokens, other.tokens)


def test_scores_by_hand(tokenizer: Tokenizer) -> None:
    """Logits that put probability p on the right token score a perplexity of 1/p."""
    document = tasks.build_document(tokenizer, 128, seed=0)
    logits = np.zeros((128, len(tokenizer)), np.float32)
    logits[np.arange(127), document.tokens[1:]] = np.log(3.0)
    expected = (3 + len(tokenizer) - 1) / 3
    assert tasks.score_perplexity(document, logits) == pytest.approx(expected, rel=1e-5)
    assert tasks.score_recall(document, document.answers) == 100.0
    wrong = document.answers.copy()
    wrong[0] += 1
    assert tasks.score_recall(document, wrong) == pytest.approx(100 * (1 - 1 / len(wrong)))


def test_a_context_too_short_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError) as caught:
        tasks.build_document(tokenizer, 63, seed=0)
    assert str(caught.value) == ("recall task: context of 63 tokens, expected at least 64; ask for a longer context")


def test_a_tokenizer_without_the_keys_is_an_error() -> None:
    class Letters:
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

    with pytest.raises(InputError) as caught:
        tasks.build_document(Letters(), 256, seed=0)
    assert str(caught.value) == (
        "recall task: the tokenizer holds 0 of 256 keys and 0 values as single tokens, expected at least 64 of each; "
        "use the embedded model or one with its tokenizer"
    )
