"""A small byte-pair vocabulary trained here, as the GGUF keys that a file would have."""

import json
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from model.pretokenizers import PRETOKENIZERS
from model.tokenizer import Tokenizer as OurTokenizer

TEXT = [
    "The quick brown fox jumps over the lazy dog. It's 1234567 o'clock; we'll see.\n\n  Then   more\ttext, and more.",
    "def f(x):\n    return x + 1  # na\u00efve caf\u00e9 \u4f60\u597d\u4e16\u754c \U0001f600\r\n",
] * 4
SPECIAL = ["<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<think>", "<|user|>!"]
TYPES = [3, 3, 3, 3, 4, 3]  # control, and one user-defined
BYTE_LEVEL = sorted(name for name, kind in PRETOKENIZERS.items() if not kind.spaces)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}\n"
    "<|{{ m.role }}|>\n{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@cache
def engine_of(pre: str) -> Tokenizer:
    """The library's own tokenizer, a vocabulary of 400 trained with the pre-tokenizer ``pre``."""
    engine = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in PRETOKENIZERS[pre].patterns]
    engine.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    engine.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return engine


@cache
def trained(pre: str) -> dict[str, Any]:
    """The same as GGUF keys, with special tokens and a template."""
    model = json.loads(engine_of(pre).to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [" ".join(m) for m in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens + SPECIAL,
        "tokenizer.ggml.token_type": [1] * len(tokens) + TYPES,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
        "tokenizer.ggml.eot_token_id": len(tokens) + 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def make(pre: str = "gpt-2", **changed: Any) -> OurTokenizer:
    kv = {**trained(pre), **{f"tokenizer.{k}": v for k, v in changed.items()}}
    return OurTokenizer({k: v for k, v in kv.items() if v is not None}, "m.gguf")


@cache
def plain(pre: str) -> OurTokenizer:
    return make(pre)
