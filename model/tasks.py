"""The scored task: held-out text with associative recall, at any context length.

A document is one prompt of exactly `n_ctx` tokens:

    [gMASK]<sop> text ... \\n# KEY value text ... \\n# KEY value text ... \\n? KEY value \\n? KEY value ...

Facts (`# KEY value`) lie spread over the whole text, questions (`? KEY value`) stand at its end with their answers in
place (teacher forcing), so one pass over the prompt scores both: the logits at `text_positions` give perplexity on
held-out text, the argmax at `answer_positions` recall. Keys and values are single tokens. The keys of a document are
distinct, so each question has one answer, and guessing among the document's values is right once in `n_facts` (1.6 % at
the default 64). Training used the same `compose`, on the training text.
"""

import lzma
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from model.data import HELDOUT_TEXT
from vkbackend.errors import InputError

PREFIX = "[gMASK]<sop>"
MAX_FACTS = 64
CONTEXT_PER_FACT = 16  # tokens of context that one fact needs at least: short contexts carry fewer facts
DEFAULT_QUESTIONS = 32
MIN_CONTEXT = 64
LINE_TOKENS = 4  # newline, mark, key, value
SNAP = 24  # a fact moves forward by up to this many tokens to start at a line's end

# 16 x 16 made-up words; the embedded tokenizer holds each one as a single token.
KEYS = [
    onset + rime
    for onset in "BDFGHJKLMNPRSTVZ"
    for rime in ["AB", "AD", "AK", "AM", "EB", "EG", "EL", "EN", "IK", "IP", "IX", "OD", "OM", "OV", "UL", "UN"]
]
N_VALUES = 256


class TextTokenizer(Protocol):
    """What this module needs of a tokenizer: `encode` must recognise special tokens and add none of its own."""

    def encode(self, text: str) -> list[int]:
        """Token ids of text."""
        ...


@dataclass(frozen=True)
class Document:
    """One prompt and where to score it. Position i is scored by logits[i] against tokens[i + 1]."""

    tokens: np.ndarray  # int32 [n_ctx]
    text_positions: np.ndarray  # int32 [n]: the next token continues the text
    answer_positions: np.ndarray  # int32 [n_questions]: the next token is a question's answer
    answer_distances: np.ndarray  # int32 [n_questions]: tokens from the fact's value back from the answer
    n_facts: int

    @property
    def answers(self) -> np.ndarray:
        """int32 [n_questions]: the right token for each question."""
        return self.tokens[self.answer_positions + 1]


@dataclass(frozen=True)
class Pieces:
    """Token ids that documents are put together from."""

    prefix: list[int]
    newline: int
    fact_mark: int
    question_mark: int
    keys: np.ndarray  # int32 [n_keys]
    values: np.ndarray  # int32 [n_values]

    @classmethod
    def of(cls, tokenizer: TextTokenizer) -> "Pieces":
        """Raises InputError when the tokenizer does not hold the marks and enough keys and values as single tokens."""
        newline, fact_mark, question_mark = (single_token(tokenizer, text) for text in ("\n", "#", "?"))
        keys = [key for key in (single_token(tokenizer, " " + word) for word in KEYS) if key is not None]
        frequent = Counter(re.findall(r"(?<= )[a-z]{4,8}\b", heldout_text())).most_common()
        values = [value for value in (single_token(tokenizer, " " + word) for word, _ in frequent) if value is not None]
        if newline is None or fact_mark is None or question_mark is None or min(len(keys), len(values)) < MAX_FACTS:
            raise InputError(
                f"recall task: the tokenizer holds {len(keys)} of {len(KEYS)} keys and {len(values)} values as single "
                f"tokens, expected at least {MAX_FACTS} of each; use the embedded model or one with its tokenizer"
            )
        chosen = np.array(values[:N_VALUES], np.int32)
        return cls(tokenizer.encode(PREFIX), newline, fact_mark, question_mark, np.array(keys, np.int32), chosen)


def single_token(tokenizer: TextTokenizer, text: str) -> int | None:
    """The id of text when it is one token, else None."""
    ids = tokenizer.encode(text)
    return ids[0] if len(ids) == 1 else None


def heldout_text() -> str:
    """The text that perplexity is scored on; no block of it was trained on (model/data/MODEL_CARD.md)."""
    return lzma.decompress(HELDOUT_TEXT.read_bytes()).decode("utf-8")


def compose(
    pieces: Pieces, text: np.ndarray, n_ctx: int, n_facts: int, n_questions: int, rng: np.random.Generator
) -> Document:
    """A document of n_ctx tokens over the start of `text` (int32, at least n_ctx long); n_facts <= number of keys.

    Questions beyond n_facts ask again about facts already asked (training does that; build_document does not).
    """
    keys = rng.choice(pieces.keys, n_facts, replace=False)
    values = rng.choice(pieces.values, n_facts, replace=True)
    rounds = -(-n_questions // max(n_facts, 1))
    asked = np.array([rng.permutation(n_facts) for _ in range(rounds)], np.int64).reshape(-1)[:n_questions]

    n_text = n_ctx - len(pieces.prefix) - LINE_TOKENS * (n_facts + n_questions)
    cuts = ((np.arange(n_facts) + rng.random(n_facts)) * n_text / max(n_facts, 1)).astype(int)
    line_ends = np.flatnonzero(text[:n_text] == pieces.newline)
    following = np.append(line_ends, n_text)[np.searchsorted(line_ends, cuts)]
    cuts = np.where(following - cuts <= SNAP, following, cuts)

    tokens = list(pieces.prefix)
    is_text = [False] * len(tokens)
    value_at = np.zeros(n_facts, np.int64)
    done = 0
    for fact, cut in enumerate(cuts):
        tokens += [*text[done:cut], pieces.newline, pieces.fact_mark, keys[fact], values[fact]]
        is_text += [True] * (cut - done) + [False] * LINE_TOKENS
        value_at[fact] = len(tokens) - 1
        done = cut
    tokens += list(text[done:n_text])
    is_text += [True] * (n_text - done)
    for fact in asked:
        tokens += [pieces.newline, pieces.question_mark, keys[fact], values[fact]]
        is_text += [False] * LINE_TOKENS

    text_next = np.array(is_text)
    answer_at = n_ctx - LINE_TOKENS * np.arange(n_questions, 0, -1) + LINE_TOKENS - 2
    return Document(
        tokens=np.array(tokens, np.int32),
        text_positions=np.flatnonzero(text_next[1:] & text_next[:-1]).astype(np.int32),
        answer_positions=answer_at.astype(np.int32),
        answer_distances=(answer_at + 1 - value_at[asked]).astype(np.int32),
        n_facts=n_facts,
    )


def default_facts(n_ctx: int) -> int:
    """Facts in a document of n_ctx tokens: one per 16 tokens up to 64, the same at every length from 1,024."""
    return min(MAX_FACTS, n_ctx // CONTEXT_PER_FACT)


def build_document(tokenizer: TextTokenizer, n_ctx: int, seed: int, n_questions: int = DEFAULT_QUESTIONS) -> Document:
    """The scored document of n_ctx tokens for a seed; the same arguments give the same tokens on every machine.

    The text is a stretch of the held-out text that starts at a place drawn by the seed and runs on from the beginning
    when it reaches the end; up to about 52,000 tokens no part of it occurs twice. A short context holds fewer facts,
    and then fewer than n_questions are asked.

    Raises InputError for a context under 64 tokens or a tokenizer without the task's single-token keys.
    """
    if n_ctx < MIN_CONTEXT:
        raise InputError(
            f"recall task: context of {n_ctx} tokens, expected at least {MIN_CONTEXT}; ask for a longer context"
        )
    pieces = Pieces.of(tokenizer)
    heldout = np.array(tokenizer.encode(heldout_text()), np.int32)
    rng = np.random.default_rng([seed, 0])
    start = int(rng.integers(len(heldout)))
    text = np.resize(np.roll(heldout, -start), max(n_ctx, len(heldout)))
    n_facts = default_facts(n_ctx)
    return compose(pieces, text, n_ctx, n_facts, min(n_questions, n_facts), rng)


def score_recall(document: Document, predicted: Sequence[int] | np.ndarray) -> float:
    """Recall in percent from the argmax token at each of document.answer_positions."""
    return 100.0 * float(np.mean(np.asarray(predicted) == document.answers))


def score_perplexity(document: Document, logits: np.ndarray) -> float:
    """exp of the mean negative log-likelihood over document.text_positions; logits float [n_ctx or more, n_vocab]."""
    rows = logits[document.text_positions].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    nll = np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), document.tokens[document.text_positions + 1]]
    return float(np.exp(nll.mean()))


def divergences(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of the distributions of ``logits`` from those of ``reference``, in nats: float64 [n]
    for two arrays float [n, n_vocab]; the sum over tokens of p log(p / q) with p of the reference."""
    found = np.empty(len(logits))
    for index, (before, after) in enumerate(zip(reference, logits, strict=True)):  # row by row: vocabularies are large
        log_p, log_q = _log_softmax(before), _log_softmax(after)
        found[index] = np.sum(np.exp(log_p) * (log_p - log_q))
    return found


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - np.log(np.exp(shifted).sum())
