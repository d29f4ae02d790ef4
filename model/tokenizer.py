"""Text to token ids and back, from a GGUF's ``tokenizer.*`` keys; ids are llama.cpp's.

Special tokens are cut out of the text first; what lies between is split and merged by ``byte_pairs`` or
``sentence_pieces``, whichever the file's vocabulary is made for.
"""

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from model.byte_pairs import BytePairs
from model.chat_template import render
from model.gguf_file import GGUFFile
from model.pretokenizers import PRETOKENIZERS, PreTokenizer
from model.sentence_pieces import SentencePieces
from model.vocabulary import BPE_MODELS, HIDDEN, MARKED, SPM_MODEL, WITHOUT_TEXT, Keys, Kind, read_vocabulary
from vkbackend.errors import InputError, quoted

_BPE_DEFAULT_EOS = 11  # llama.cpp's, where the file names none; Falcon's
_SPM_DEFAULTS = (1, 2)  # bos, eos
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_WHITE = " \t\n\v\f\r"  # what C calls white space


class Tokenizer:
    """A model's vocabulary. ``bos``, ``eos`` are ids or None; ``eog`` every id that ends a generation."""

    def __init__(self, kv: Mapping[str, Any], where: str) -> None:
        """``kv`` holds the GGUF keys, ``where`` names their origin in errors.

        Raises InputError on a missing key, another kind of tokenizer, an unknown pre-tokenizer, inconsistent lists.
        """
        self.where = where
        self._kv = kv
        keys = Keys(kv, where)
        kind = keys.require("model")
        self._pieces: BytePairs | SentencePieces
        always_bos = False
        if kind in BPE_MODELS:
            pre = _pre_tokenizer(keys, kind)
            merges_needed = pre is not PRETOKENIZERS["kimi-k2"]
            merges = keys.strings("merges") if merges_needed or "tokenizer.ggml.merges" in kv else []
            # gemma4 alone has no ids to fall back to.
            bos, eos = (None, None) if kind == "gemma4" else (pre.bos, _BPE_DEFAULT_EOS)
            self._vocabulary = read_vocabulary(keys, bos, eos, pre.add_bos)
            self._pieces = BytePairs(self._vocabulary, merges, pre)
            self._space_prefix, always_bos = False, pre.gemma4
        elif kind == SPM_MODEL:
            self._vocabulary = read_vocabulary(keys, *_SPM_DEFAULTS, add_bos=True)
            self._pieces = SentencePieces(self._vocabulary)
            self._space_prefix = keys.flag("add_space_prefix", True)
        else:
            raise InputError(
                f"{where}: key tokenizer.ggml.model is {quoted(kind)}, expected one of {', '.join(BPE_MODELS)} "
                f"(byte-pair encoding) and {SPM_MODEL} (SentencePiece with scores); {WITHOUT_TEXT}"
            )
        self.tokens = self._vocabulary.tokens
        self.bos = self._vocabulary.bos
        self.eos = self._vocabulary.eos
        self.eog = self._vocabulary.eog
        self.add_bos = self._vocabulary.add_bos or (always_bos and self.bos is not None)
        self.add_eos = self._vocabulary.add_eos
        self.unknown_bytes = self._pieces.unknown_bytes

    @classmethod
    def from_gguf(cls, gguf_file: GGUFFile) -> "Tokenizer":
        """Raises InputError as the constructor does."""
        return cls(gguf_file.kv, str(gguf_file.path))

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(
        self, text: str, add_bos: bool | None = None, parse_special: bool = True, add_eos: bool = False
    ) -> list[int]:
        """Token ids of ``text``.

        ``add_bos`` None follows the file. ``add_eos`` True ends with the end-of-text token if the file asks for one.
        ``parse_special`` False treats the spelling of a control token in the text as plain characters (for text that
        is not trusted); user-defined tokens are always recognised. A byte-pair vocabulary leaves out the bytes that it
        has no token for, as llama.cpp does: ``left_out`` tells them. Raises InputError on text that is not Unicode,
        and on a byte that a SentencePiece vocabulary lacks.
        """
        _check_unicode(text)
        add_bos = self.add_bos if add_bos is None else add_bos
        if add_bos and self.bos is None:
            raise InputError(
                f"{self.where}: key tokenizer.ggml.bos_token_id is missing, expected a token id; "
                "encode without a first token"
            )
        ids: list[int] = [self.bos] if add_bos and self.bos is not None else []
        after_special = True
        for part in self._parts(text, parse_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._pieces.encode(" " + part if self._space_prefix and after_special else part)
            after_special = isinstance(part, int)
        return [*ids, self.eos] if add_eos and self.add_eos and self.eos is not None else ids

    def left_out(self, text: str) -> frozenset[int]:
        """Bytes of ``text`` that the vocabulary has no token for."""
        return self.unknown_bytes.intersection(text.encode("utf-8", "replace")) if self.unknown_bytes else frozenset()

    def token_bytes(self, token: int, skip_control: bool = False) -> bytes:
        """The bytes that one token stands for; b"" for a control token if ``skip_control``. InputError on a bad id."""
        if not 0 <= token < len(self.tokens):
            raise InputError(
                f"{self.where}: token {token} is outside the vocabulary; give ids from 0 to {len(self.tokens) - 1}"
            )
        text, kind = self.tokens[token], self._vocabulary.kinds[token]
        if kind & MARKED:
            return b"" if skip_control and kind & HIDDEN else text.encode()
        if kind & Kind.NORMAL:
            return self._pieces.token_bytes(text)
        if kind & Kind.BYTE and _BYTE.fullmatch(text):
            return bytes([int(text[3:5], 16)])
        return b""  # unused

    def decode(self, tokens: Iterable[int], skip_control: bool = False) -> str:
        """The text of ``tokens``; bytes that form no character become U+FFFD.

        The space that ``encode`` puts before a SentencePiece text, and after each special token in it, is taken off.
        Spaces before punctuation stay: llama.cpp's llama_detokenize removes them for some vocabularies, and so loses
        text; what it prints while generating keeps them.
        """
        stream = self.stream(skip_control, begins=True)
        return "".join(map(stream.add, tokens)) + stream.finish()

    def stream(self, skip_control: bool = True, begins: bool = False) -> "StreamDecoder":
        """A decoder for tokens that arrive one by one; ``begins`` where they are a text from its beginning on."""
        return StreamDecoder(self, skip_control, begins and self._space_prefix)

    def control_token(self, text: str) -> int | None:
        """The id of the control token that is spelt ``text``, None where that is no control token."""
        token = self._vocabulary.ids.get(text)
        return token if token is not None and self._vocabulary.kinds[token] & Kind.CONTROL else None

    def is_special(self, token: int) -> bool:
        """Whether ``token`` is cut out of the text as a whole: control, unknown and user-defined tokens."""
        return bool(self._vocabulary.kinds[token] & MARKED)

    def chat_template(self, name: str = "") -> str | None:
        """The file's Jinja source, or None; ``name`` asks for one of several, as "tool_use"."""
        key = f"tokenizer.chat_template{'.' if name else ''}{name}"
        found = self._kv.get(key)
        if not isinstance(found, str | None):
            raise InputError(f"{self.where}: key {key} is no text, expected a Jinja template; convert the model again")
        return found

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text of a conversation; encode it with ``parse_special=True``.

        ``template`` replaces the file's; of the file's own, the one for tools is taken where there are ``tools``.
        ``variables`` go to the template as they are (``tools``, ``enable_thinking``, ...). Raises InputError when there
        is no template or it refuses the messages.
        """
        if template is None and variables.get("tools"):
            template = self.chat_template("tool_use")
        template = self.chat_template() if template is None else template
        if template is None:
            raise InputError(
                f"{self.where}: key tokenizer.chat_template is missing, expected a template; "
                "generate from plain text instead, or give one with --chat-template"
            )
        named = {
            "bos_token": "" if self.bos is None else self.tokens[self.bos],
            "eos_token": "" if self.eos is None else self.tokens[self.eos],
            "add_generation_prompt": add_generation_prompt,
        }
        return render(template, messages, self.where, **(named | variables))

    def _parts(self, text: str, parse_special: bool) -> list[str | int]:
        """``text`` with the special tokens in it as ids: each is looked for in what the longer ones left."""
        parts: list[str | int] = [text] if text else []
        for token in self._vocabulary.marked:
            if self.tokens[token] in text and (parse_special or not self._vocabulary.kinds[token] & HIDDEN):
                parts = [
                    piece for part in parts for piece in ([part] if isinstance(part, int) else self._cut(part, token))
                ]
        return parts

    def _cut(self, text: str, token: int) -> list[str | int]:
        spelling = self.tokens[token]
        parts: list[str | int] = []
        start = 0
        while (found := text.find(spelling, start)) >= 0:
            left = text[start:found]
            left = left.rstrip(_WHITE) if token in self._vocabulary.strip_before else left
            parts += [left, token] if left else [token]
            start = found + len(spelling)
            if token in self._vocabulary.strip_after:
                start = len(text) - len(text[start:].lstrip(_WHITE))
        return [*parts, text[start:]] if start < len(text) else parts


class StreamDecoder:
    """Text of tokens that arrive one by one: a character is held back until its last byte is there."""

    def __init__(self, tokenizer: Tokenizer, skip_control: bool, drop_spaces: bool) -> None:
        """``drop_spaces``: the first token, and each that follows a special one, loses the space it begins with."""
        self._tokenizer = tokenizer
        self._skip_control = skip_control
        self._drop_spaces = drop_spaces
        self._drop_next = drop_spaces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """The characters that ``token`` completes, perhaps none."""
        data = self._tokenizer.token_bytes(token, self._skip_control)
        special = self._tokenizer.is_special(token)
        if self._drop_next and not special:
            data = data.removeprefix(b" ")
        self._drop_next = self._drop_spaces and special
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What an unfinished character leaves: "" or U+FFFD."""
        return self._decoder.decode(b"", final=True)


def _pre_tokenizer(keys: Keys, kind: str) -> PreTokenizer:
    name = "gemma4" if kind == "gemma4" else keys.kv.get("tokenizer.ggml.pre") or "default"
    if not isinstance(name, str) or name not in PRETOKENIZERS:
        known = ", ".join(sorted(PRETOKENIZERS))
        raise InputError(
            f"{keys.where}: key tokenizer.ggml.pre is {quoted(name)}, expected one of {known}; {WITHOUT_TEXT}"
        )
    return PRETOKENIZERS[name]


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"text has {text[error.start]!a} at character {error.start}, half of a surrogate pair; give valid Unicode"
        ) from None
