"""SentencePiece vocabularies with scores (``tokenizer.ggml.model`` "llama"): the best-scored neighbours merge first.

The rules are those of llama.cpp's llm_tokenizer_spm: any two neighbours whose union is a token may merge, the highest
score first, of equal scores the leftmost; what is no token in the end is written as its bytes. The ``tokenizers``
library cannot do this: its merges have distinct ranks, so it would decide equal scores by token and not by place.
"""

import heapq
import math
import re

from model.byte_pairs import SPACE, byte_token
from model.vocabulary import Vocabulary
from vkbackend.errors import InputError

_CACHED_WORDS = 1 << 16
_LONGEST_CACHED = 64  # characters: longer words hardly come twice


class SentencePieces:
    """Text -> ids of one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Raises InputError on a score that is NaN."""
        self._ids = vocabulary.ids
        self._where = vocabulary.where
        self._scores = {text: vocabulary.scores[i] for text, i in vocabulary.ids.items()}
        if any(map(math.isnan, vocabulary.scores)):
            raise InputError(
                f"{vocabulary.where}: key tokenizer.ggml.scores has NaN, expected numbers; convert the model again"
            )
        # No merge crosses the place before a space if no token has that pair of characters: words are independent.
        inside = {pair[0] for pair in re.findall(f"(?s:.){SPACE}", "\0".join(vocabulary.tokens))}
        kept = "".join(map(re.escape, sorted(inside | {SPACE})))
        self._word_starts = re.compile(f"(?s)(?<=[^{kept}])(?={SPACE})")
        self._cache: dict[str, list[int]] = {}
        self.unknown_bytes: frozenset[int] = frozenset()  # none is left out: ``encode`` refuses what it cannot write

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, in which special tokens are plain characters."""
        ids: list[int] = []
        for word in self._word_starts.split(text.replace(" ", SPACE)):
            known = self._cache.get(word)
            if known is None:
                known = self._merged(word)
                if len(word) <= _LONGEST_CACHED and len(self._cache) < _CACHED_WORDS:
                    self._cache[word] = known
            ids += known
        return ids

    def token_bytes(self, text: str) -> bytes:
        """The bytes of a normal token's text."""
        return text.replace(SPACE, " ").encode()

    def _merged(self, word: str) -> list[int]:
        if word in self._ids and len(word) == 1:
            return [self._ids[word]]
        parts = list(word)  # a part that was merged into its left neighbour becomes ""
        before = list(range(-1, len(parts) - 1))
        after = [*range(1, len(parts)), -1]
        scores = self._scores
        queue: list[tuple[float, int, int, str]] = []  # (-score, left, right, union): the smallest is the next to merge
        for i in range(len(parts) - 1):
            union = parts[i] + parts[i + 1]
            if union in scores:
                queue.append((-scores[union], i, i + 1, union))
        heapq.heapify(queue)
        while queue:
            _, left, right, union = heapq.heappop(queue)
            if not parts[left] or not parts[right] or len(parts[left]) + len(parts[right]) != len(union):
                continue  # one of them has merged since
            parts[left], parts[right] = union, ""
            follower = after[right]
            after[left] = follower
            if follower >= 0:
                before[follower] = left
            for i, j in ((before[left], left), (left, follower)):
                if i >= 0 and j >= 0 and (union := parts[i] + parts[j]) in scores:
                    heapq.heappush(queue, (-scores[union], i, j, union))
        return [token for part in parts if part for token in self._tokens_of(part)]

    def _tokens_of(self, part: str) -> list[int]:
        token = self._ids.get(part)
        if token is not None:
            return [token]
        found = [(byte, self._byte(byte)) for byte in part.encode()]
        for byte, token in found:
            if token is None:
                raise InputError(
                    f"{self._where}: key tokenizer.ggml.tokens has no token for byte 0x{byte:02x}, which the text "
                    "needs; convert the model again with its whole vocabulary"
                )
        return [token for _, token in found if token is not None]

    def _byte(self, byte: int) -> int | None:
        token = self._ids.get(byte_token(byte))
        return self._ids.get(chr(byte)) if token is None and byte < 0x80 else token
