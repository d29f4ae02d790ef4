"""Small good files to mutate: every variant of the family, both versions, one key of every type, models in parts.

Tensor data is a hole of zeros, so that a file is its header and a size.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from gguf import GGUFValueType as V

from harness.synth_tokenizer import tokenizer_keys
from model.config import ModelConfig
from model.gguf_shards import part_name
from model.gguf_write import config_keys
from model.tensors import expected_tensors
from tests.null.gguf_bytes import Raw, Row, Value, number, numbers, string, strings, u16, u32
from tests.null.random_model import CONFIGS

N_VOCAB = 40


@dataclass
class Part:
    """One file: ``raw`` without data, ``nbytes`` of data after it. ``link`` names the file it is a link to instead."""

    name: str
    raw: Raw
    nbytes: int
    link: str | None = None
    patches: list[tuple[float, bytes, int]] = field(default_factory=list)  # where (0 to 1), bytes put, bytes replaced
    cut: float | None = None  # share of the file that is kept

    def copy(self) -> Part:
        raw = copy(self.raw)
        raw.keys, raw.tensors, raw.more = dict(raw.keys), list(raw.tensors), list(raw.more)
        return replace(self, raw=raw, patches=list(self.patches))

    def write(self, folder: Path) -> None:
        path = folder / self.name
        if self.link is not None:
            path.symlink_to(self.link)
            return
        head = bytearray(self.raw.build())
        for place, put, replaced in self.patches:
            at = int(place * len(head))
            head[at : at + replaced] = put
        size = len(head) + self.nbytes
        if self.cut is not None:
            size = int(self.cut * size)
        with path.open("wb") as stream:
            stream.write(head[:size])
            stream.truncate(size)


def value(item: Any) -> Value:
    """A metadata value of the type that a converter gives it."""
    if isinstance(item, bool):
        return number(V.BOOL, item)
    if isinstance(item, int):
        return u32(item)
    if isinstance(item, float):
        return number(V.FLOAT32, item)
    if isinstance(item, str):
        return string(item)
    if item and isinstance(item[0], str):
        return strings(item)
    return numbers(V.FLOAT32 if isinstance(item[0], float) else V.INT32, item)


def model(config: ModelConfig, kinds: Mapping[str, Q] | None = None, align: int = 32, version: int = 3) -> Part:
    """A whole model with a tokenizer; ``kinds`` gives tensors (by the end of their name) another type than F32."""
    keys: dict[str, Any] = {"general.architecture": config.arch, "general.name": config.name, **config_keys(config)}
    keys |= tokenizer_keys(config.n_vocab)
    raw = Raw({key: value(item) for key, item in keys.items()}, version=version, alignment=align)
    if align != 32:
        raw.keys["general.alignment"] = u32(align)
    offset = 0
    for name, shape in expected_tensors(config).items():
        kind = next((k for end, k in (kinds or {}).items() if name.endswith(end)), Q.F32)
        block, n_bytes = GGML_QUANT_SIZES[kind]
        raw.tensors.append(Row(name.encode(), shape[::-1], kind, offset))
        offset += -(-(prod(shape) // block * n_bytes) // align) * align
    return Part("m.gguf", raw, offset)


def parts(whole: Part, counts: tuple[int, ...]) -> list[Part]:
    """``whole`` over several files, the last of which takes what ``counts`` leaves."""
    rows, found = list(whole.raw.tensors), []
    counts = (*counts, len(rows) - sum(counts))
    for index, count in enumerate(counts):
        taken, rows = rows[:count], rows[count:]
        end = rows[0].offset if rows else whole.nbytes
        base = taken[0].offset if taken else end
        raw = Raw(dict(whole.raw.keys) if index == 0 else {})
        raw.keys |= {"split.no": u16(index), "split.count": u16(len(counts))}
        raw.keys["split.tensors.count"] = number(V.INT32, len(whole.raw.tensors))
        raw.tensors = [row._replace(offset=row.offset - base) for row in taken]
        found.append(Part(part_name("m", index, len(counts)), raw, end - base))
    return found


def every_type() -> Part:
    """Keys of every type, as arrays too, and one tensor of every type."""
    keys: dict[str | bytes, Value] = {"general.architecture": string("other")}
    for kind in V:
        if kind not in (V.STRING, V.ARRAY):
            keys[f"n.{kind.name}"] = number(kind, 1)
            keys[f"a.{kind.name}"] = numbers(kind, [0, 1, 1])
    keys |= {"text": string("na\u00efve"), "words": strings(["", "a", "b c"])}
    raw, offset = Raw(keys), 0
    for kind, (block, n_bytes) in GGML_QUANT_SIZES.items():
        raw.tensors.append(Row(f"t.{kind.name}".encode(), (block, 2, 3), kind, offset))
        offset += -(-6 * n_bytes // 32) * 32
    return Part("m.gguf", raw, offset)


def seeds() -> list[list[Part]]:
    """Good models, each a list of its files, the one to open first."""
    small = {name: _small(config) for name, config in CONFIGS.items()}
    mixed = {"ffn_gate_exps.weight": Q.Q8_0, "attn_k_b.weight": Q.Q5_0, "output.weight": Q.F16}
    even, more = small["glm"], mixed | {"attn_v_b.weight": Q.Q4_0}
    found = [[model(config)] for config in small.values()]
    whole_bytes = replace(even, n_vocab=265)  # every byte has a token
    found += [
        [model(whole_bytes, mixed)],
        [model(even, more, align=64)],
        [model(even, mixed, version=2)],
        [every_type()],
    ]
    vocabulary = model(even)
    vocabulary.raw.tensors, vocabulary.nbytes = [], 0
    found.append([vocabulary])
    pieces = vocabulary.copy()
    pieces.raw.keys |= {f"tokenizer.ggml.{key}": value(item) for key, item in _pieces().items()}
    found.append([pieces])
    whole = model(even, mixed)
    return [*found, parts(whole, (3,)), parts(whole, (0, 7, 5)), parts(whole, (1, 1, 1))]


def _small(config: ModelConfig) -> ModelConfig:
    """Of sizes that the forward pass can run, with few tensors."""
    sizes = {
        "n_embd": 64,
        "q_lora": 32 if config.q_lora else 0,
        "kv_lora": 64,
        "qk_nope": 32,
        "qk_rope": 32,
        "v_head": 32,
    }
    sizes |= {"n_ff": 96, "n_ff_exp": 32, "n_vocab": N_VOCAB, "n_layer": 2, "n_dense": min(config.n_dense, 1)}
    return replace(config, **sizes)


def _pieces() -> dict[str, Any]:
    """A SentencePiece vocabulary."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "a",
        "b",
        "\u2581",
        "ab",
        "\u2581a",
        "\u2581ab",
    ]
    return {
        "model": "llama",
        "tokens": tokens,
        "token_type": [2, 3, 3, *[6] * 256, *[1] * 6],
        "scores": [0.0] * 259 + [-1.0, -1.0, -2.0, -0.5, -0.25, -0.125],
        "add_space_prefix": True,
    }
