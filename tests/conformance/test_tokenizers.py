"""Token ids against llama.cpp's, on random vocabularies and, where they are at hand, on published ones.

LATENTVK_VOCABULARIES names a folder of vocabulary files, such as llama.cpp's ``models`` with its ggml-vocab-*.gguf and
their .inp and .out; LATENTVK_TEXTS the texts compared on each (default 200).
"""

import os
import random
import struct
from pathlib import Path

import pytest
from gguf import GGUFWriter
from llama_vocab import TheirVocabulary, random_text

from model.byte_pairs import BYTE_CHARACTERS
from model.gguf_file import GGUFFile
from model.pretokenizers import PRETOKENIZERS
from model.tokenizer import Tokenizer
from model.vocabulary import BPE_MODELS, SPM_MODEL
from vkbackend.errors import InputError

FOLDER = os.environ.get("LATENTVK_VOCABULARIES", "")
TEXTS = int(os.environ.get("LATENTVK_TEXTS", "200"))
FILES = sorted(Path(FOLDER).glob("*.gguf")) if FOLDER else []
needs_files = pytest.mark.skipif(not FILES, reason="LATENTVK_VOCABULARIES names no folder of vocabulary files")


def opened(path: Path) -> Tokenizer:
    gguf = GGUFFile.open(path)
    if gguf.kv.get("tokenizer.ggml.model") not in (*BPE_MODELS, SPM_MODEL):
        pytest.skip(f"{path.name} has a tokenizer of another kind")
    return Tokenizer.from_gguf(gguf)


def differences(path: Path, count: int, seed: int) -> list[str]:
    """Texts of ``count`` whose ids are not llama.cpp's, in any of the ways to ask."""
    ours, theirs, draw = opened(path), TheirVocabulary(path), random.Random(seed)
    special = [ours.tokens[i] for i in range(len(ours)) if ours.is_special(i)]
    found = []
    for _ in range(count):
        text, add, parse = random_text(draw, ours.tokens, special), draw.random() < 0.5, draw.random() < 0.6
        try:
            ids = ours.encode(text, add_bos=None if add else False, parse_special=parse, add_eos=add)
        except InputError:  # a byte without a token in a SentencePiece vocabulary: llama.cpp ends the process
            continue
        if ids != theirs.encode(text, add, parse):
            found.append(ascii(text))
    theirs.close()
    return found


@needs_files
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_vocabularies(path: Path) -> None:
    assert differences(path, TEXTS, 1) == []


@needs_files
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_cases_published_with_a_vocabulary(path: Path) -> None:
    texts, ids = path.with_name(f"{path.name}.inp"), path.with_name(f"{path.name}.out")
    if not texts.exists():
        pytest.skip(f"{path.name} has no cases")
    tokenizer = opened(path)
    cases = texts.read_bytes().decode().removesuffix("\n__ggml_vocab_test__\n").split("\n__ggml_vocab_test__\n")
    rows = ids.read_text().splitlines()
    assert len(cases) == len(rows) > 40
    for text, row in zip(cases, rows, strict=True):
        assert tokenizer.encode(text, add_bos=False, parse_special=False) == [int(i) for i in row.split()], repr(text)


@needs_files
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_pieces_and_ends_of_published_vocabularies(path: Path) -> None:
    ours, theirs = opened(path), TheirVocabulary(path)
    assert theirs.ends(len(ours)) == ours.eog
    for token in range(len(ours)):
        for special in (True, False):
            piece = theirs.token_bytes(token, special)
            # Where a token holds characters that stand for no byte, llama.cpp writes a note in its place.
            assert piece == ours.token_bytes(token, skip_control=not special) or piece.startswith(b"[UNK_BYTE_")
    theirs.close()


def renamed(path: Path, name: str, out: Path) -> Path:
    """The vocabulary with another ``tokenizer.ggml.pre``: what follows it may move, as there are no tensors."""
    data, key = path.read_bytes(), b"tokenizer.ggml.pre"
    start = data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4
    (length,) = struct.unpack_from("<Q", data, start)
    out.write_bytes(data[:start] + struct.pack("<Q", len(name)) + name.encode() + data[start + 8 + length :])
    return out


@needs_files
@pytest.mark.parametrize("name", [name for name, kind in PRETOKENIZERS.items() if not kind.spaces])
def test_every_pre_tokenizer(name: str, tmp_path: Path) -> None:
    base = Path(FOLDER) / "ggml-vocab-gpt-2.gguf"
    if not base.exists():
        pytest.skip(f"{base} is not there")
    assert differences(renamed(base, name, tmp_path / "m.gguf"), max(20, TEXTS // 4), 2) == []


# No two that can overlap have one length: which is cut out first then depends on how llama.cpp's compiler sorts.
SPECIAL = [
    *("<s>", "</s>", "<unk>", "<|user|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<PRE>", "[PAD]", "<EOT>"),
    *("<|message|>", "<|tool_response>", "<|endoftext|>", "<mask>", "ab", "aba", "Xaba", "<|", "\u4e16"),
]


def random_vocabulary(draw: random.Random, path: Path) -> None:
    """A small vocabulary of any supported kind: merges and scores with ties, special tokens within each other."""
    model, phi = draw.choice((*BPE_MODELS, SPM_MODEL)), draw.random() < 0.2
    letters = [*"abcX<|>'s12\n\u4e16", " " if model == "gpt2" else "\u2581"]
    if model == "gpt2":
        letters = sorted({BYTE_CHARACTERS[byte] for letter in letters for byte in letter.encode()})
        singles = dict.fromkeys(letters, 1) | {c: 1 for c in BYTE_CHARACTERS.values() if draw.random() < 0.97}
    else:
        singles = {f"<0x{byte:02X}>": 6 for byte in range(256)} | dict.fromkeys(letters, 1)
    tokens = {
        text: draw.choice((3, 3, 4, 4, 1, 2, 5)) for text in draw.sample(SPECIAL, draw.randrange(2, len(SPECIAL)))
    }
    tokens |= {"<unk>": 2, "<s>": 3, "</s>": 3, "<|endoftext|>": 3} | singles
    merges, parts = [], list(letters)
    for _ in range(draw.randrange(5, 80)):
        left, right = draw.choice(parts), draw.choice(parts)
        if len(left + right) <= 8:
            tokens.setdefault(left + right, 1)
            merges += [f"{left} {right}"] * draw.choice((1, 1, 1, 2))
            parts.append(left + right)
    writer = GGUFWriter(path, "llama")
    for add in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{add}")(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_name("Phi-3 mini" if phi else "random")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(
        draw.choice(("gpt-2", "glm4", "llama-bpe", "default", "deepseek-v3", "kimi-k2", "jina-v2-de"))
    )
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(tokens.values()))
    writer.add_token_scores([-float(draw.randrange(12)) for _ in tokens])
    if model != SPM_MODEL:
        writer.add_token_merges(merges or [f"{parts[0]} {parts[0]}"])
    writer.add_bos_token_id(draw.randrange(len(tokens)))
    writer.add_eos_token_id(draw.randrange(len(tokens)))
    for flag in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if draw.random() < 0.5:
            getattr(writer, f"add_{flag}")(draw.random() < 0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize("seed", range(40))
def test_random_vocabularies(seed: int, tmp_path: Path) -> None:
    draw, path = random.Random(seed), tmp_path / "m.gguf"
    random_vocabulary(draw, path)
    assert differences(path, max(20, TEXTS // 4), seed) == []
    ours, theirs = Tokenizer.from_gguf(GGUFFile.open(path)), TheirVocabulary(path)
    assert theirs.ends(len(ours)) == ours.eog
    theirs.close()
