"""llama.cpp's own tokenizer through llama-cpp-python's C bindings, and texts to compare on."""

import ctypes
import random
from pathlib import Path

import pytest

llama_cpp = pytest.importorskip("llama_cpp")
lib = llama_cpp.llama_cpp

_quiet = lib.llama_log_callback(lambda *_: None)
lib.llama_log_set(_quiet, ctypes.c_void_p(0))
lib.llama_backend_init()


class TheirVocabulary:
    """A file's vocabulary as llama.cpp has it. Raises ValueError where it refuses the file."""

    def __init__(self, path: Path) -> None:
        params = lib.llama_model_default_params()
        params.vocab_only = True
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ValueError(path)
        self._vocab = lib.llama_model_get_vocab(self._model)

    def encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode()
        room = 4 * len(data) + 64
        ids = (ctypes.c_int32 * room)()
        count = lib.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
        assert count >= 0
        return list(ids[:count])

    def token_bytes(self, token: int, special: bool) -> bytes:
        piece = ctypes.create_string_buffer(4096)
        count = lib.llama_token_to_piece(self._vocab, token, piece, 4096, 0, special)
        return piece.raw[:count]

    def ends(self, count: int) -> set[int]:
        return {token for token in range(count) if lib.llama_vocab_is_eog(self._vocab, token)}

    def close(self) -> None:
        lib.llama_model_free(self._model)


SPACES = " \t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u2003\u2028\u3000\u200b\ufeff"
ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    "0123456789\u0663\u096a\u17e5\u0be7\xb2\xbc\u2167\u2460\uff10\U0001d7d8\u3289\u96f6",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\xa7\xbf\u2026\u2014\u201c\u201d\u2018\u2019\u20ac\xac\xa8^\xb4\xb7\xd7",
    "\xe9\xfc\xdf\xf1\xc5\u03bc\u03bb\u03cc\u03c2\u043f\u0440\u0438\u05e9\u05dc\u0645\u0631\u0928\u092e\u0e44\u0e17\u10e5"
    "\u0561\u0531\u12a0\u13e3\u13b3\u01c5\u01c8\u02b0\xaa\u017f\u212a\u0130\u0131\ufb01",
    "\u4f60\u597d\u4e16\u754c\u7684\u4e00\u3072\u3089\u30ab\u30bf\ud55c\uad6d\u9fa5\u3400\U00020000\uf900\u3005\u3002\uff0c\u3001\uff01\u300c",
    "\u0301\u0300\u0903\u093c\u0e31\u064b\u05b0\u20d0\u3099\ufe0f\u1ab0",
    SPACES,
)
WHOLE = (
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f44d\U0001f3fd",
    "1\ufe0f\u20e3",
    *("'s", "'S", "'re", "'LL", "'\u017f", "it's", "'", "\r\n", " \n", "\n\n", "\u2581", "\0", "  ", " the", "Hello"),
    *(" http://example.com/a?b=c", "camelCase", "3.14159", "def f(x):\n    return", "<|", "|>"),
)


def random_text(draw: random.Random, tokens: list[str], special: list[str]) -> str:
    """Any planes of Unicode, runs, words, and the vocabulary's own tokens whole and cut."""
    parts = []
    for _ in range(draw.randrange(14)):
        kind = draw.randrange(12)
        if kind < 5:
            alphabet = draw.choice(ALPHABETS)
            parts.append("".join(draw.choice(alphabet) for _ in range(draw.randrange(1, 9))))
        elif kind == 5:
            parts.append(draw.choice(draw.choice(ALPHABETS)) * draw.choice((2, 3, 9, 30)))
        elif kind < 8:
            parts.append(draw.choice(WHOLE))
        elif kind == 8:
            planes = [
                (0, 0x80),
                (0x80, 0x800),
                (0x800, 0xD800),
                (0xE000, 0x10000),
                (0x10000, 0x20000),
                (0x20000, 0x110000),
            ]
            parts.append("".join(chr(draw.randrange(*draw.choice(planes))) for _ in range(draw.randrange(1, 5))))
        elif kind == 9:
            parts.append(draw.choice(tokens).replace("\u2581", " "))
        elif special:
            text = draw.choice(special)
            parts.append(text if kind == 10 else text[: draw.randrange(len(text) + 1)])
    return "".join(parts)
