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
from vkbackend.errors import InputError, quoted

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
        """Raises InputError on a merge that is not of two tokens into a third."""
        self._ids = vocabulary.ids
        self._where = vocabulary.where
        self._pre = pre
        spelled = byte_token if pre.spaces else BYTE_CHARACTERS.__getitem__
        missing = {b: spelled(b) for b in range(256) if spelled(b) not in self._ids}
        self._all_bytes = not missing
        self.unknown_bytes = frozenset() if pre.spaces else frozenset(missing)
        # Bytes without a token take part all the same: what stands on both sides of one must not merge.
        extra = {} if pre.spaces else {text: len(self._ids) + i for i, text in enumerate(missing.values())}
        self._engine = Engine(
            models.BPE(
                vocab=self._ids | extra,
                merges=self._pairs(merges),
                byte_fallback=pre.spaces and self._all_bytes,
                ignore_merges=pre.ignore_merges,
            )
        )
        if not pre.spaces:
            self._engine.pre_tokenizer = _words(pre)

    def _pairs(self, merges: Iterable[str]) -> list[tuple[str, str]]:
        ids = self._ids
        pairs: dict[tuple[str, str], None] = {}  # the first of equal merges gives the rank
        for index, merge in enumerate(merges):
            # From the second character on: a token may begin with a space where spaces are not respelled.
            cut = merge.find(" ", 1)
            left, right = merge[:cut], merge[cut + 1 :]
            if cut < 0 or left not in ids or right not in ids or left + right not in ids:
                raise InputError(
                    f"{self._where}: key tokenizer.ggml.merges entry {index} is {quoted(merge)}, expected two tokens "
                    "of the vocabulary whose union is one too; convert the model again"
                )
            pairs[left, right] = None
        return list(pairs)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, in which special tokens are plain characters.

        Raises InputError where neither a character nor its bytes have tokens, in a vocabulary that respells spaces.
        """
        if not self._pre.spaces:
            ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
            return [i for i in ids if i < len(self._ids)] if self.unknown_bytes else ids
        ids = []
        for line in _LINES.findall(text.replace(" ", SPACE)):
            known = self._ids.get(line) if self._pre.gemma4 and line[0] == "\n" else None
            ids += self._spaced(line) if known is None else [known]
        return ids

    def _spaced(self, line: str) -> list[int]:
        if not self._all_bytes:
            for character in set(line) - self._ids.keys():
                raise InputError(
                    f"{self._where}: key tokenizer.ggml.tokens has no token for {character!a} and not one for each "
                    "byte, expected either; convert the model again with its whole vocabulary"
                )
        ids: list[int] = self._engine.encode(line, add_special_tokens=False).ids
        return ids

    def token_bytes(self, text: str) -> bytes:
        """The bytes of a normal token's text."""
        if self._pre.spaces:
            return text.replace(SPACE, " ").encode()
        return b"".join(CHARACTER_BYTES.get(c) or c.encode() for c in text)
