"""Damage that knows the format: a case is a good model with a few of its fields, lengths, types or bytes changed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from gguf import GGUFValueType as V

from tests.fuzz.seeds import N_VOCAB, Part, seeds
from tests.null.gguf_bytes import FORMATS, Row, Value, number, numbers, string, strings

NUMBERS = (0, 1, 2, 3, 4, 7, 8, 12, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 257, 512, 513, 1000, 4096, 65535, 65536)
NUMBERS += (100_000, 2**17, 2**20, 2**23, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**48, 2**53, 2**61, 2**62)
NUMBERS += (2**63 - 1, 2**63, 2**64 - 64, 2**64 - 8, 2**64 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 3e38, -3e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (b"", b" ", b"a", b"a b", b"\0", b"\x1b[31m", b"[/bold]", b"{{ 1", b"%s%n", b"x" * 1000, b"a" * 64, b"a" * 65)
TEXTS += (b"\xff\xfe", b"\xed\xa0\x80", "\U0001f600".encode(), "\u0120".encode(), b"<|endoftext|>", b"none", b"yarn")
TEXTS += (b"linear", b"gpt2", b"llama", b"bert", b"default", b"deepseek2", b"deepseek-llm", b"kimi-k2", b"glm4")
TEXTS += (
    b"<0x0A>",
    b"<0xZZ>",
    b"<0x+1>",
    b"xxxxxx",
    b"</s>",
    b"<s>",
    b"gemma4",
    b"<|end|>",
    b"<|return|>",
    b"<|call|>",
    b" \n",
)
# Keys that no seed has, but that a reader may look at.
KEYS = ("general.alignment", "general.file_type", "split.no", "split.count", "split.tensors.count")
KEYS += tuple(
    f"deepseek2.{key}"
    for key in (
        "attention.temperature_scale",
        "attention.key_length_mla",
        "attention.value_length_mla",
        "attention.q_lora_rank",
        "vocab_size",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_log_multiplier",
        "nextn_predict_layers",
        "expert_gating_func",
        "expert_group_count",
    )
)
KEYS += tuple(
    f"tokenizer.ggml.{key}"
    for key in (
        "scores",
        "eot_token_id",
        "eom_token_id",
        "unknown_token_id",
        "add_eos_token",
        "add_space_prefix",
        "remove_extra_whitespaces",
        "precompiled_charsmap",
        "token_type_count",
    )
)
NAMES = ("blk.0.attn_kv_b.weight", "blk.0.attn_q.weight", "blk.99.attn_norm.weight", "blk.0.exp_probs_b.bias")
NAMES += (
    "blk.2.nextn.eh_proj.weight",
    "blk.0.ffn_gate_up_exps.weight",
    "output.weight",
    "rope_freqs.weight",
    "blk.x.y",
)

_SEEDS = seeds()
_KEYS = sorted({str(key) for case in _SEEDS for part in case for key in part.raw.keys} | set(KEYS))
_ROWS = [row for case in _SEEDS for part in case for row in part.raw.tensors]


def case(seed: int, index: int) -> list[Part]:
    """The files of case ``index``, the one to open first; the same for the same numbers."""
    random = Random(f"{seed}:{index}")
    parts = [part.copy() for part in random.choice(_SEEDS)]
    for _ in range(random.choices((0, 1, 2, 3, 5), (1, 40, 25, 15, 10))[0]):
        random.choice(_MUTATIONS)(random, parts)
    return parts


def _number(random: Random, bits: int = 64) -> int:
    if random.random() < 0.2:
        return random.getrandbits(bits)
    return (random.choice(NUMBERS) + random.choice((0, 0, 0, -1, 1))) % 2**bits


def _text(random: Random) -> bytes:
    if random.random() < 0.7:
        return random.choice(TEXTS)
    return random.randbytes(random.randrange(20))


def _scalar(random: Random, kind: V) -> Value:
    if kind == V.STRING:
        return string(_text(random))
    if kind in (V.FLOAT32, V.FLOAT64):
        value = random.choice(FLOATS) if random.random() < 0.8 else random.uniform(-1e6, 1e6)
        return number(kind, value if kind == V.FLOAT32 else value * random.choice((1, 1e-260, 1e260)))
    size = struct.calcsize(FORMATS[kind])
    return kind, _number(random, 8 * size).to_bytes(size, "little")


_KINDS = [kind for kind in V if kind != V.ARRAY]


def _any_value(random: Random) -> Value:
    if random.random() < 0.7:
        return _scalar(random, random.choice(_KINDS))
    count = random.choice((0, 1, 2, 5, 100, N_VOCAB, N_VOCAB))
    if random.random() < 0.5:
        return strings([_text(random) for _ in range(count)])
    kind = random.choice((V.INT32, V.INT32, V.FLOAT32, V.BOOL, V.UINT8, V.INT64, V.FLOAT64))
    return numbers(kind, [random.choice((0, 1, 2, 3, 4, 5, 6, 7, 127)) for _ in range(count)])


def _pick(random: Random, part: Part) -> str | bytes:
    """A key of the part, the small ones as likely as the large."""
    return random.choice(list(part.raw.keys)) if part.raw.keys else random.choice(_KEYS)


def _set_counts(random: Random, parts: list[Part]) -> None:
    raw = random.choice(parts).raw
    which = random.randrange(3)
    if which == 0:
        raw.version = random.choice((_number(random, 32), 0, 1, 2, 3, 4, 2**24, 2**25, 3 * 2**24))
    elif which == 1:
        raw.n_keys = max(0, len(raw.keys) + random.choice((-1, 1))) if random.random() < 0.5 else _number(random)
    else:
        raw.n_tensors = max(0, len(raw.tensors) + random.choice((-1, 1))) if random.random() < 0.5 else _number(random)


def _set_scalar(random: Random, parts: list[Part]) -> None:
    raw = random.choice(parts).raw
    scalars = [key for key, (kind, _) in raw.keys.items() if kind != V.ARRAY]
    if scalars:
        key = random.choice(scalars)
        raw.keys[key] = _scalar(random, V(raw.keys[key][0])) if raw.keys[key][0] in _KINDS else _any_value(random)


def _replace_value(random: Random, parts: list[Part]) -> None:
    part = random.choice(parts)
    part.raw.keys[_pick(random, part)] = _any_value(random)


def _retype_value(random: Random, parts: list[Part]) -> None:
    """Another type number before the same bytes."""
    part = random.choice(parts)
    key = _pick(random, part)
    if key in part.raw.keys:
        part.raw.keys[key] = (random.choice((*range(14), _number(random, 32))), part.raw.keys[key][1])


def _drop_key(random: Random, parts: list[Part]) -> None:
    part = random.choice(parts)
    part.raw.keys.pop(_pick(random, part), None)


def _add_key(random: Random, parts: list[Part]) -> None:
    random.choice(parts).raw.more.append((random.choice(_KEYS), _any_value(random)))


def _rename_key(random: Random, parts: list[Part]) -> None:
    part = random.choice(parts)
    name = random.choice((_text(random), random.choice(_KEYS), b"k" * 65535, b"k" * 65536))
    found = part.raw.keys.pop(_pick(random, part), None)
    part.raw.more.append((name, found or _any_value(random)))


def _change_array(random: Random, parts: list[Part]) -> None:
    """Its count or item type alone, its length with its count, or single entries."""
    raw = random.choice(parts).raw
    arrays = [key for key, (kind, payload) in raw.keys.items() if kind == V.ARRAY and len(payload) >= 12]
    if not arrays:
        return
    key = random.choice(arrays)
    payload = raw.keys[key][1]
    item, count = struct.unpack_from("<IQ", payload)
    which = random.randrange(5)
    if which == 0:
        claimed = count + random.choice((-1, 1)) if random.random() < 0.5 else _number(random)
        raw.keys[key] = (V.ARRAY, struct.pack("<IQ", item, claimed % 2**64) + payload[12:])
    elif which == 1:
        other = random.choice((*range(14), _number(random, 32)))
        raw.keys[key] = (V.ARRAY, struct.pack("<IQ", other, count) + payload[12:])
    elif item == V.STRING:
        raw.keys[key] = strings(_change_list(random, _entries(payload), _text))
    elif item in (V.INT32, V.UINT32) and len(payload) == 12 + 4 * count:
        entries = [payload[i : i + 4] for i in range(12, len(payload), 4)]
        entries = _change_list(random, entries, lambda r: _number(r, 32).to_bytes(4, "little"))
        raw.keys[key] = (V.ARRAY, struct.pack("<IQ", item, len(entries)) + b"".join(entries))


def _entries(payload: bytes) -> list[bytes]:
    entries, pos = [], 12
    while pos + 8 <= len(payload):
        (length,) = struct.unpack_from("<Q", payload, pos)
        entries.append(payload[pos + 8 : pos + 8 + length])
        pos += 8 + length
    return entries


def _change_list(random: Random, entries: list[bytes], new: Callable[[Random], bytes]) -> list[bytes]:
    which = random.randrange(5)
    if which == 0 or not entries:
        entries.insert(random.randint(0, len(entries)), new(random))
    elif which == 1:
        del entries[random.randrange(len(entries)) :]
    elif which == 2:
        entries[random.randrange(len(entries))] = new(random)
    elif which == 3:
        entries[random.randrange(len(entries))] = random.choice(entries)
    else:
        entries.pop(random.randrange(len(entries)))
    return entries


def _change_row(random: Random, parts: list[Part]) -> None:
    raw = random.choice(parts).raw
    if not raw.tensors:
        return
    at = random.randrange(len(raw.tensors))
    row = raw.tensors[at]
    which = random.randrange(6)
    if which == 0:
        ne = list(row.ne)
        if ne:
            ne[random.randrange(len(ne))] = _number(random)
        row = row._replace(ne=tuple(ne))
    elif which == 1:
        ne = row.ne[: random.randrange(3)] + tuple(_number(random) for _ in range(random.randrange(5)))
        row = row._replace(ne=ne)
    elif which == 2:
        row = row._replace(kind=random.randrange(45) if random.random() < 0.8 else _number(random, 32))
    elif which == 3:
        offset = random.choice(raw.tensors).offset if random.random() < 0.3 else _number(random)
        row = row._replace(offset=offset)
    elif which == 4:
        row = row._replace(name=random.choice((_text(random), random.choice(raw.tensors).name)))
    else:
        row = row._replace(name=random.choice((*NAMES, random.choice(_ROWS).name.decode())).encode())
    raw.tensors[at] = row


def _change_table(random: Random, parts: list[Part]) -> None:
    raw = random.choice(parts).raw
    which = random.randrange(4)
    if which == 0 or not raw.tensors:
        raw.tensors.append(random.choice(_ROWS))
    elif which == 1:
        raw.tensors.pop(random.randrange(len(raw.tensors)))
    elif which == 2:
        raw.tensors.append(random.choice(raw.tensors))
    else:
        name = random.choice(NAMES).encode()
        raw.tensors.append(Row(name, random.choice(_ROWS).ne, 0, random.choice(raw.tensors).offset))


def _patch(random: Random, parts: list[Part]) -> None:
    """Bytes anywhere in the header: flipped, overwritten, inserted, taken out, or copied from another file."""
    part = random.choice(parts)
    place, which = random.random(), random.randrange(6)
    if random.random() < 0.2:
        place *= 0.01  # the first fields
    if which == 0:
        put, replaced = random.randbytes(1), 1
    elif which == 1:
        put, replaced = _number(random).to_bytes(8, "little"), 8
    elif which == 2:
        put, replaced = _number(random, 32).to_bytes(4, "little"), 4
    elif which == 3:
        put, replaced = random.randbytes(random.randrange(64)), 0
    elif which == 4:
        put, replaced = b"", random.choice((1, 2, 4, 8, 100))
    else:
        other = random.choice(random.choice(_SEEDS)).raw.build()
        start = random.randrange(len(other))
        put = other[start : start + random.choice((8, 100, 1000))]
        replaced = random.choice((0, len(put)))
    part.patches.append((place, put, replaced))


def _cut(random: Random, parts: list[Part]) -> None:
    part = random.choice(parts)
    if random.random() < 0.3:
        part.nbytes = max(0, part.nbytes + random.choice((-32, -1, 1, 32)))
    elif random.random() < 0.7:
        part.cut = random.choice((0.0, random.random(), random.random()))
    else:
        part.cut = random.random() * len(part.raw.build()) / (len(part.raw.build()) + part.nbytes + 1)


def _grow(random: Random, parts: list[Part]) -> None:
    """A last value as long as no vocabulary is, in a hole of zeros that the file is given. Rarely, as it is slow."""
    if random.random() < 0.95:
        return
    part = random.choice(parts)
    count = random.choice((2**20, 2**21, 2**22, 2**24, 2**26, 2**27, 2**40)) + random.choice((-1, 0, 1))
    kind = random.choice((V.STRING, V.STRING, V.INT8, V.INT64, V.BOOL))
    head = struct.pack("<Q", count) if kind == V.STRING else struct.pack("<IQ", kind, count)
    part.raw.more.append((random.choice(_KEYS), (V.STRING if kind == V.STRING else V.ARRAY, head)))
    part.nbytes += random.choice((2**20, 2**24, 2**28, 2**41))
    if random.random() < 0.7:
        part.raw.n_tensors, part.raw.tensors = 0, []


def _change_files(random: Random, parts: list[Part]) -> None:
    """Parts missing, swapped, renamed, or links to one another; a single file is given a part's keys and name."""
    if len(parts) == 1:
        parts[0].name = random.choice(("m-00001-of-00001.gguf", "m-00002-of-00002.gguf", "m-00001-of-00002.gguf"))
        for key in ("split.no", "split.count", "split.tensors.count"):
            parts[0].raw.keys[key] = (V.UINT16, struct.pack("<H", random.randrange(4)))
        return
    a, b = random.randrange(len(parts)), random.randrange(len(parts))
    which = random.randrange(5)
    if which == 0:
        parts.append(parts.pop(a))  # another part is opened
    elif which == 1 and a:
        parts.pop(a)
    elif which == 2:
        parts[a].name, parts[b].name = parts[b].name, parts[a].name
    elif which == 3 and a:
        parts[a].link = random.choice((parts[b].name, ".", "/dev/null", "nowhere"))
    else:
        parts[a].name = random.choice(("m.gguf", "m-00001-of-00002.gguf", "-00001-of-00002.gguf"))


# Weighted by repetition: what leads deep into the readers more often than what the first check refuses.
_MUTATIONS = (
    *(_set_scalar,) * 6,
    *(_replace_value,) * 3,
    *(_change_array,) * 5,
    *(_change_row,) * 4,
    *(_patch,) * 3,
    *(_change_files,) * 2,
    *(_drop_key,) * 2,
    *(_add_key,) * 3,
    _set_counts,
    _retype_value,
    _rename_key,
    _change_table,
    _cut,
    _grow,
)
