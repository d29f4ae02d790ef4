"""Byte-pair encoding of a text without special tokens, run by the ``tokenizers`` library.

Vocabularies write bytes as GPT-2's encoder does, one printable character a byte, or (``PreTokenizer.spaces``) hold
UTF-8 with U+2581 for a space and <0xXX> tokens for bytes that no other token has.
"""

import re
from collections.abc import Iterable
from functools import cache

from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from model.pretokenizers import PreTokenizer
from model.vocabulary import Vocabulary

SPACE = "\u2581"
_LINES = re.compile(r"[^\n]+|\n+")


def _byte_characters() -> dict[int, str]:
    """GPT-2's bytes-to-characters: printable Latin-1 stands for itself, the other bytes for U+0100 onward, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


BYTE_CHARACTERS = _byte_characters()
CHARACTER_BYTES = {c: bytes([b]) for b, c in BYTE_CHARACTERS.items()}


def byte_token(byte: int) -> str:
    """The text of a token that stands for one byte, as SentencePiece spells it."""
    return f"<0x{byte:02X}>"


@cache
def _words(pre: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    """The library's splitter; its patterns take up to a tenth of a second to compile."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, to_bytes])


class BytePairs:
    """Text -> ids of one vocabulary. ``unknown_bytes``: those that no token has; ``encode`` leaves them out."""

    def __init__(self, vocabulary: Vocabulary, merges: Iterable[str], pre: PreTokenizer) -> None:
        self._ids = vocabulary.ids
        self._pre = pre
        pairs: dict[tuple[str, str], None] = {}  # the first of equal merges gives the rank
        for merge in merges:
            # From the second character on: a token that is one space would be written as itself.
            cut = merge.find(" ", 1)
            if 0 < cut < len(merge) - 1:
                pairs[merge[:cut], merge[cut + 1 :]] = None
        self._extra = self._beyond_vocabulary(pairs)
        extra_ids = {text: len(self._ids) + i for i, text in enumerate(self._extra)}
        self._engine = Engine(
            models.BPE(
                vocab=self._ids | extra_ids,
                merges=list(pairs),
                byte_fallback=pre.spaces,
                ignore_merges=pre.ignore_merges,
            )
        )
        if not pre.spaces:
            self._engine.pre_tokenizer = _words(pre)
        spelled = byte_token if pre.spaces else BYTE_CHARACTERS.__getitem__
        self.unknown_bytes = frozenset(b for b in range(256) if spelled(b) not in self._ids)

    def _beyond_vocabulary(self, pairs: Iterable[tuple[str, str]]) -> dict[str, list[int]]:
        """What merging can give that is no token, and the ids that it falls apart into: its ASCII characters' alone."""
        texts = set() if self._pre.spaces else set(BYTE_CHARACTERS.values())
        texts.update(text for left, right in pairs for text in (left, right, left + right))
        return {
            text: [self._ids[c] for c in text if c.isascii() and c in self._ids]
            for text in sorted(texts - self._ids.keys())
        }

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, in which special tokens are plain characters."""
        if not self._pre.spaces:
            return self._merged(text)
        ids: list[int] = []
        for line in _LINES.findall(text.replace(" ", SPACE)):
            known = self._ids.get(line) if self._pre.newlines and line[0] == "\n" else None
            ids += self._merged(line) if known is None else [known]
        return ids

    def _merged(self, text: str) -> list[int]:
        ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        if not self._extra or max(ids, default=0) < len(self._ids):
            return ids
        apart = list(self._extra.values())
        n = len(self._ids)
        return [token for i in ids for token in ([i] if i < n else apart[i - n])]

    def token_bytes(self, text: str) -> bytes:
        """The bytes of a normal token's text."""
        if self._pre.spaces:
            return text.replace(SPACE, " ").encode()
        return b"".join(CHARACTER_BYTES.get(c) or c.encode() for c in text)
