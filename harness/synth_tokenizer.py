"""A small valid vocabulary for synthetic models: byte-level BPE of any size, in the keys that llama.cpp reads.

Ids: the 256 bytes, then tokens of two bytes, of three and so on, each with the merge that makes it, and the control
tokens last, as GLM's vocabulary has them. Text encodes and decodes without loss; what the tokens mean is nobody's
claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from gguf import TokenType

from model.byte_pairs import BYTE_CHARACTERS
from vkbackend.errors import InputError

CONTROL_TOKENS = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
SMALLEST = len(CONTROL_TOKENS) + 2  # one byte and its pair: readers want at least one merge
CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def tokenizer_keys(n_vocab: int) -> dict[str, Any]:
    """All ``tokenizer.*`` keys for exactly ``n_vocab`` tokens; below 264 some bytes have no token.

    Raises InputError when not even the control tokens and one merge fit.
    """
    if n_vocab < SMALLEST:
        raise InputError(f"n_vocab is {n_vocab}, expected at least {SMALLEST}; raise --vocab")
    n_plain = n_vocab - len(CONTROL_TOKENS)
    characters = [BYTE_CHARACTERS[byte] for byte in sorted(range(256), key=_usefulness)]
    n_merged = max(1, n_plain - len(characters))
    merged = list(islice(_merged(characters), n_merged))
    tokens = characters[: n_plain - n_merged] + [left + right for left, right in merged]
    types = [int(TokenType.NORMAL)] * len(tokens) + [int(TokenType.CONTROL)] * len(CONTROL_TOKENS)
    ids = {name: len(tokens) + i for i, name in enumerate(CONTROL_TOKENS)}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "glm4",
        "tokenizer.ggml.tokens": [*tokens, *CONTROL_TOKENS],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merged],
        "tokenizer.ggml.eos_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.bos_token_id": ids["[gMASK]"],
        "tokenizer.ggml.padding_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _usefulness(byte: int) -> tuple[bool, bool, int]:
    """Letters and space before other printable bytes, those before the rest: a small vocabulary still writes words."""
    character = chr(byte)
    return not (character.isascii() and (character.isalpha() or character == " ")), not 0x20 <= byte < 0x7F, byte


def _merged(characters: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs whose union is a new token: every known token of the longest length so far, followed by every byte."""
    longest = characters
    while True:
        grown = []
        for left in longest:
            for right in characters:
                yield left, right
                grown.append(left + right)
        longest = grown
