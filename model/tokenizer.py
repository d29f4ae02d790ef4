"""Byte-level BPE from a GGUF's ``tokenizer.*`` keys: text to token ids and back, byte for byte.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer. Merging runs in the ``tokenizers`` library;
tokens are kept as the GPT-2 encoder writes bytes (one printable character a byte), control tokens as plain text.
"""

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from model.chat_template import render
from model.gguf_file import GGUFFile
from model.pretokenizers import PRETOKENIZERS
from vkbackend.errors import InputError


class TokenType(IntEnum):
    """Values of ``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_PLAIN_TEXT = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
# Control tokens that end a turn in files whose keys name only one of them.
# What a file whose text cannot be read is good for all the same.
WITHOUT_TEXT = "use another GGUF, or `latentvk logits` and `bench`, which take token ids"
_END_NAMES = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|observation|>", "<\uff5cend\u2581of\u2581sentence\uff5c>")


def _byte_characters() -> dict[int, str]:
    """GPT-2's bytes-to-characters: printable Latin-1 stands for itself, the other bytes for U+0100 onward, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


BYTE_CHARACTERS = _byte_characters()
_CHARACTER_BYTES = {c: bytes([b]) for b, c in BYTE_CHARACTERS.items()}


class Tokenizer:
    """A model's vocabulary. ``bos``, ``eos`` are ids or None; ``eog`` every id that ends a generation."""

    def __init__(self, kv: Mapping[str, Any], where: str) -> None:
        """``kv`` holds the GGUF keys, ``where`` names their origin in errors.

        Raises InputError on a missing key, another kind of tokenizer, an unknown pre-tokenizer, inconsistent lists.
        """
        self.where = where
        self._kv = kv
        kind = self._require("tokenizer.ggml.model")
        if kind != "gpt2":
            raise InputError(
                f"{where}: key tokenizer.ggml.model is {kind!r}, expected 'gpt2' (byte-level BPE); {WITHOUT_TEXT}"
            )
        self.tokens: list[str] = list(self._require("tokenizer.ggml.tokens"))
        types = kv.get("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(self.tokens)
        if len(types) != len(self.tokens):
            raise InputError(
                f"{where}: key tokenizer.ggml.token_type has {len(types)} entries, expected {len(self.tokens)}, "
                "one for each token; convert the model again"
            )
        self._plain = {i: t for i, t in enumerate(types) if t in _PLAIN_TEXT}
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        self._engine = self._build_engine()
        self._unknown_bytes = frozenset(b for b, c in BYTE_CHARACTERS.items() if c not in self._ids)
        self._special = self._matcher(_PLAIN_TEXT)
        self._user_defined = self._matcher((TokenType.USER_DEFINED,))
        self.bos = self._id_key("bos")
        self.eos = self._id_key("eos")
        self.add_bos = bool(kv.get("tokenizer.ggml.add_bos_token", False)) and self.bos is not None
        self.eog = frozenset(self._end_ids())

    @classmethod
    def from_gguf(cls, gguf_file: GGUFFile) -> "Tokenizer":
        """Raises InputError as the constructor does."""
        return cls(gguf_file.kv, str(gguf_file.path))

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str, add_bos: bool | None = None, parse_special: bool = True) -> list[int]:
        """Token ids of ``text``.

        ``add_bos`` None follows the file. ``parse_special`` False treats the spelling of a control token in the text as
        plain characters (for text that is not trusted); user-defined tokens are always recognised. Raises InputError on
        text that is not Unicode or holds a byte the vocabulary lacks.
        """
        self._check_bytes(text)
        add_bos = self.add_bos if add_bos is None else add_bos
        if add_bos and self.bos is None:
            raise InputError(
                f"{self.where}: key tokenizer.ggml.bos_token_id is missing, expected a token id; "
                "encode without a first token"
            )
        ids: list[int] = [self.bos] if add_bos and self.bos is not None else []
        matcher = self._special if parse_special else self._user_defined
        start = 0
        for match in matcher.finditer(text) if matcher else ():
            ids += self._merge(text[start : match.start()])
            ids.append(self._ids[match.group()])
            start = match.end()
        return ids + self._merge(text[start:])

    def token_bytes(self, token: int, skip_control: bool = False) -> bytes:
        """The bytes that one token stands for; b"" for a control token if ``skip_control``. InputError on a bad id."""
        if not 0 <= token < len(self.tokens):
            raise InputError(
                f"{self.where}: token {token} is outside the vocabulary; give ids from 0 to {len(self.tokens) - 1}"
            )
        text = self.tokens[token]
        kind = self._plain.get(token)
        if kind is None:
            return b"".join(_CHARACTER_BYTES.get(c) or c.encode() for c in text)
        return b"" if skip_control and kind != TokenType.USER_DEFINED else text.encode()

    def decode(self, tokens: Iterable[int], skip_control: bool = False) -> str:
        """The text of ``tokens``; bytes that form no character become U+FFFD."""
        return b"".join(self.token_bytes(t, skip_control) for t in tokens).decode("utf-8", errors="replace")

    def stream(self, skip_control: bool = True) -> "StreamDecoder":
        """A decoder for tokens that arrive one by one."""
        return StreamDecoder(self, skip_control)

    @property
    def chat_template(self) -> str | None:
        """The file's Jinja source, or None."""
        return self._kv.get("tokenizer.chat_template")

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text of a conversation; encode it with ``parse_special=True``.

        ``variables`` go to the template as they are (``tools``, ``enable_thinking``, ...). Raises InputError when the
        file has no template or the template refuses the messages.
        """
        if self.chat_template is None:
            raise InputError(
                f"{self.where}: key tokenizer.chat_template is missing, expected a template; "
                "generate from plain text instead"
            )
        named = {
            "bos_token": "" if self.bos is None else self.tokens[self.bos],
            "eos_token": "" if self.eos is None else self.tokens[self.eos],
            "add_generation_prompt": add_generation_prompt,
        }
        return render(self.chat_template, messages, self.where, **(named | variables))

    def _require(self, key: str) -> Any:
        if key not in self._kv:
            raise InputError(
                f"{self.where}: key {key} is missing, expected a byte-level BPE vocabulary; "
                "convert the model again with its tokenizer"
            )
        return self._kv[key]

    def _build_engine(self) -> Engine:
        merges = []
        for index, merge in enumerate(self._require("tokenizer.ggml.merges")):
            # A space within a token is written as a printable character, so the only space divides the pair.
            left, _, right = merge.partition(" ")
            if left not in self._ids or right not in self._ids or left + right not in self._ids:
                raise InputError(
                    f"{self.where}: key tokenizer.ggml.merges entry {index} is {merge!r}, expected two tokens of "
                    "the vocabulary "
                    "whose union is one too; convert the model again"
                )
            merges.append((left, right))
        engine = Engine(models.BPE(vocab=self._ids, merges=merges))
        splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in self._patterns()]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        engine.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
        return engine

    def _patterns(self) -> tuple[str, ...]:
        name = self._kv.get("tokenizer.ggml.pre", "default")
        if name not in PRETOKENIZERS:
            known = ", ".join(sorted(PRETOKENIZERS))
            raise InputError(
                f"{self.where}: key tokenizer.ggml.pre is {name!r}, expected one of {known}; {WITHOUT_TEXT}"
            )
        return PRETOKENIZERS[name]

    def _matcher(self, types: Sequence[TokenType]) -> re.Pattern[str] | None:
        """Finds tokens of ``types`` in text, the longest where several start at one place."""
        texts = {self.tokens[i] for i, t in self._plain.items() if t in types} - {""}
        return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None

    def _id_key(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = self._kv.get(key)
        if value is not None and not 0 <= value < len(self.tokens):
            raise InputError(
                f"{self.where}: key {key} is {value}, expected an id from 0 to {len(self.tokens) - 1}; "
                "convert the model again"
            )
        return value

    def _end_ids(self) -> Iterable[int]:
        for name in ("eos", "eot", "eom"):
            token = self._id_key(name)
            if token is not None:
                yield token
        for text in _END_NAMES:
            token = self._ids.get(text)
            if token is not None and self._plain.get(token) == TokenType.CONTROL:
                yield token

    def _check_bytes(self, text: str) -> None:
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text has {text[error.start]!a} at character {error.start}, half of a surrogate pair; "
                "give valid Unicode"
            ) from None
        missing = self._unknown_bytes.intersection(data) if self._unknown_bytes else None
        if missing:
            raise InputError(
                f"{self.where}: key tokenizer.ggml.tokens has no token for byte 0x{min(missing):02x}, which the "
                "text needs; "
                "convert the model again with its whole vocabulary"
            )

    def _merge(self, text: str) -> list[int]:
        return self._engine.encode(text, add_special_tokens=False).ids if text else []


class StreamDecoder:
    """Text of tokens that arrive one by one: a character is held back until its last byte is there."""

    def __init__(self, tokenizer: Tokenizer, skip_control: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_control = skip_control
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """The characters that ``token`` completes, perhaps none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token, self._skip_control))

    def finish(self) -> str:
        """What an unfinished character leaves: "" or U+FFFD."""
        return self._decoder.decode(b"", final=True)
