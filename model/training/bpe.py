"""The embedded tokenizer: byte-level BPE with GPT-2's splitting rule, trained on the corpus and the recall task's keys.

python -m model.training.bpe --text run/train.txt --out run/tokenizer.json
"""

import argparse
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from model.tasks import KEYS

N_VOCAB = 2048
SPECIALS = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
KEY_REPEATS = 400  # often enough that every key earns a merge of its own


def train_tokenizer(text: str) -> Tokenizer:
    """A tokenizer of N_VOCAB tokens: specials first, then the 256 bytes, then merges in order of rank."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=[AddedToken(token, special=True) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    keys = (" " + " ".join(KEYS) for _ in range(KEY_REPEATS))
    tokenizer.train_from_iterator([*text.splitlines(keepends=True), *keys], trainer)
    return tokenizer


class TrainingTokenizer:
    """The file of `main` behind the interface that model.tasks asks for."""

    def __init__(self, path: Path) -> None:
        self.inner = Tokenizer.from_file(str(path))

    def encode(self, text: str) -> list[int]:
        """Token ids; specials are recognised, none is added."""
        return self.inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Text of ids, specials included."""
        return self.inner.decode(ids, skip_special_tokens=False)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")
    train_tokenizer(text).save(str(arguments.out))
    tokenizer = TrainingTokenizer(arguments.out)
    whole = sum(len(tokenizer.encode(" " + key)) == 1 for key in KEYS)
    sample = text[:500_000]
    per_token = len(sample) / len(tokenizer.encode(sample))
    print(
        f"{tokenizer.inner.get_vocab_size()} tokens, {whole}/{len(KEYS)} keys whole, {per_token:.2f} characters a token"
    )


if __name__ == "__main__":
    main()
