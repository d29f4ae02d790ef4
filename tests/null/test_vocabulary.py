"""What a vocabulary's keys and names come to: kinds, tokens that end a generation, defaults of families."""

from typing import Any

import pytest

from model.tokenizer import Tokenizer
from model.vocabulary import Keys, Kind, read_vocabulary
from vkbackend.errors import InputError


def read(tokens: list[str], types: list[int] | None = None, **keys: Any) -> Any:
    kv = {"tokenizer.ggml.tokens": tokens} | {f"tokenizer.ggml.{k}": v for k, v in keys.items()}
    kv |= {} if types is None else {"tokenizer.ggml.token_type": types}
    return read_vocabulary(Keys(kv, "m.gguf"), None, None, False)


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        # as the families' files name them: GLM, DeepSeek, Kimi, Llama 3, Gemma, ChatML
        (["a", "<|endoftext|>", "<|user|>", "<|observation|>"], {1, 3}),
        (["a", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cUser\uff5c>"], {1}),
        (["[BOS]", "[EOS]", "<|im_end|>", "[EOT]", "[PAD]", "<|im_user|>"], {1, 2, 3, 4}),
        (["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"], {0, 1, 2}),
        (["<end_of_turn>", "<eos>", "a"], {0, 1}),
        (
            ["<|im_start|>", "<|im_end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>"],
            {1, 2, 3, 4},
        ),
        # gpt-oss: a message's end goes on
        (["<|return|>", "<|call|>", "<|end|>"], {0, 1}),
        (["<|end|>", "a"], {0}),
        (["</s>", "<|tool_response>"], {1}),
    ],
)
def test_what_ends_a_generation_by_name(tokens: list[str], ends: set[int]) -> None:
    assert read(tokens, [3] * len(tokens)).eog == ends


def test_what_ends_a_generation_by_key() -> None:
    tokens = [*"abcd"]
    assert read(tokens, eos_token_id=1, eot_token_id=2, eom_token_id=0).eog == {0, 1, 2}
    assert read(tokens).eog == set()
    assert read(["<fim_pad>", "a"], fim_pad_token_id=1).eog == {1}, "the key is believed, not the name"


def test_names_make_control_tokens_of_plain_ones() -> None:
    vocabulary = read(["<|im_end|>", "<PRE>", "<|message|>", "x", "<|observation|>"], [1, 1, 3, 5, 1])
    assert vocabulary.kinds == [
        Kind.NORMAL | Kind.CONTROL,
        Kind.NORMAL | Kind.CONTROL,
        Kind.USER_DEFINED,
        Kind.UNUSED,
        Kind.NORMAL,
    ]
    assert vocabulary.marked == (2, 0, 1)


def test_the_longest_special_token_is_cut_out_first_wherever_it_stands() -> None:
    tokens = ["xabc", "ax", "a", "x", "b", "c"]
    tokenizer = Tokenizer(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [4, 4, 1, 1, 1, 1],
            "tokenizer.ggml.merges": [],
        },
        "m.gguf",
    )
    # From the left "ax" comes first, but the longer one has the x.
    assert tokenizer.encode("axabc") == [2, 0]
    assert tokenizer.encode("axax") == [1, 1]


def test_defaults_of_families() -> None:
    def tokenizer(pre: str) -> Tokenizer:
        keys = {"model": "gpt2", "pre": pre, "tokens": [*"abcdefghijklmnop"], "merges": []}
        return Tokenizer({f"tokenizer.ggml.{k}": v for k, v in keys.items()}, "m.gguf")

    for pre in ("llama-bpe", "tekken", "chameleon"):
        assert tokenizer(pre).add_bos, pre
    for pre in ("glm4", "chatglm-bpe"):
        assert tokenizer(pre).bos is None, pre
    assert (tokenizer("deepseek-v3").bos, tokenizer("deepseek-v3").add_bos) == (11, False)
    assert Tokenizer(
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "kimi-k2", "tokenizer.ggml.tokens": ["a"]}, "m"
    )


def test_words_that_are_tokens_stand_for_themselves_where_merges_are_ignored() -> None:
    keys = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": []}
    assert Tokenizer(keys | {"tokenizer.ggml.pre": "glm4"}, "m").encode("ab") == [2]
    assert Tokenizer(keys | {"tokenizer.ggml.pre": "chatglm-bpe"}, "m").encode("ab") == [0, 1]


def test_gemma_4_merges_utf_8_and_keeps_runs_of_line_feeds() -> None:
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581", "a", "\n", "\n\n", "\u2581a", "\u4e16"]
    keys = {"model": "gemma4", "tokens": tokens, "merges": ["\u2581 a"], "token_type": [6] * 256 + [1] * 6}
    keys |= {"bos_token_id": 257, "add_bos_token": False}
    tokenizer = Tokenizer({f"tokenizer.ggml.{k}": v for k, v in keys.items()}, "m.gguf")
    text = " a\n\na\n\u4e16\u4e17"
    ids = tokenizer.encode(text)
    assert ids == [257, 260, 259, 257, 258, 261, 0xE4, 0xB8, 0x97]
    assert tokenizer.decode(ids[1:]) == text


def test_gemma_4_without_all_bytes_refuses_what_it_cannot_write() -> None:
    keys = {"model": "gemma4", "tokens": ["a", "\u2581", "<0x0A>", "\u2581a"], "merges": ["\u2581 a"]}
    tokenizer = Tokenizer({f"tokenizer.ggml.{k}": v for k, v in keys.items()}, "m.gguf")
    assert tokenizer.encode("a a") == [0, 3]
    with pytest.raises(InputError) as error:
        tokenizer.encode("a\u4e16")
    assert str(error.value) == (
        "m.gguf: key tokenizer.ggml.tokens has no token for '\\u4e16' and not one for each byte, expected either; "
        "convert the model again with its whole vocabulary"
    )


def test_unused_tokens_and_bytes_have_their_texts() -> None:
    tokens, types = ["a", "[PAD]", "<0x0A>", "<|x|>"], [1, 5, 6, 3]
    keys = {"model": "gpt2", "tokens": tokens, "token_type": types, "merges": []}
    tokenizer = Tokenizer({f"tokenizer.ggml.{k}": v for k, v in keys.items()}, "m.gguf")
    assert [tokenizer.token_bytes(i) for i in range(4)] == [b"a", b"[PAD]", b"\n", b"<|x|>"]
    assert [tokenizer.token_bytes(i, skip_control=True) for i in range(4)] == [b"a", b"", b"\n", b""]
