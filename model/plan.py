"""What a GGUF's tensors become on the device: kept, split where two are stored as one, or turned over.

The forward pass knows one form of the model; a file's older or fused forms end here. Letters: H heads, R kv_lora,
N qk_nope.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from model.config import ModelConfig
from model.gguf_file import GGUFFile, TensorInfo, dequantize, drop_pages
from model.tensors import expected_tensors
from model.weight_writes import Stacks
from model.weights import device_bytes

Q = GGMLQuantizationType
TURNED = "blk.{}.attn_k_b_transposed"  # k_b as [H, N, R], by which the MHA fallback expands keys
# Tensors that are one on the device where their types agree: both products of attention's normed input by rows, and the
# shared experts as more experts behind the routed ones.
JOINED = "attn_q_a + attn_kv_a_mqa"
EXPERTS = "ffn_{0}_exps + ffn_{0}_shexp"
# Types whose numbers can be moved as they are; any other is turned over as f32, which keeps its values exactly.
_WORDS = {Q.F32: np.uint32, Q.F16: np.uint16, Q.BF16: np.uint16}


@dataclass(frozen=True)
class Planned:
    """A tensor of the forward pass under its GGUF name without the suffix, and where its bytes come from.

    ``data()`` gives them as ``weights.stack_upload`` wants them; what has one dimension is a vector, kept as f32.
    """

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    data: Callable[[], NDArray[np.uint8] | Stacks]

    def flat(self) -> NDArray[np.uint8]:
        """Its bytes, of one tensor that is a whole one in the file."""
        data = self.data()
        assert isinstance(data, np.ndarray)
        return data.reshape(-1)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return 4 * self.shape[0] if len(self.shape) == 1 else device_bytes(self.kind, self.shape)


def planned(config: ModelConfig, gguf: GGUFFile) -> Iterator[Planned]:
    """Everything that each path needs, in the file's order, what is joined where the last of its tensors stands."""
    parts = {part.name: part for part in _separate(config, gguf)}
    joined: dict[str, list[Planned]] = {}  # by the names of those that they take the place of
    for layer in range(config.n_layer):
        for made in (_joined_products(parts, layer), _joined_experts(config, parts, layer)):
            joined |= made
    for name, part in parts.items():
        yield from joined.get(name, [part])


def _separate(config: ModelConfig, gguf: GGUFFile) -> Iterator[Planned]:
    """Every tensor by itself."""
    for tensor, shape in expected_tensors(config).items():
        info, name = gguf.tensors[tensor], tensor.rsplit(".", 1)[0]
        if len(shape) == 1:
            yield Planned(name, Q.F32, shape, partial(_as_f32, info))
        elif name.endswith(".attn_kv_b"):
            keys, values = _halves(info, config.n_head, config.qk_nope, config.v_head)
            stem = name.removesuffix("kv_b")
            yield _turned(f"{stem}k_b", keys)
            yield _as_stored(f"{stem}v_b", values)
        elif name.endswith(".ffn_gate_up_exps"):
            gate, up = _halves(info, config.n_expert, config.n_ff_exp, config.n_ff_exp)
            yield _as_stored(name.replace("gate_up", "gate"), gate)
            yield _as_stored(name.replace("gate_up", "up"), up)
        else:
            yield Planned(name, info.type, shape, partial(_bytes, info))
    if not config.expert_bias:  # zeros stand in for it
        for layer in range(config.n_dense, config.n_layer):
            zeros = np.zeros(4 * config.n_expert, np.uint8)
            yield Planned(f"blk.{layer}.exp_probs_b", Q.F32, (config.n_expert,), zeros.view)


def planned_fallback(config: ModelConfig, gguf: GGUFFile) -> Iterator[Planned]:
    """What the MHA fallback needs besides: each layer's k_b as [H, N, R], ``TURNED``.

    Files with split tensors store [H, R, N], whose rows are what absorption reads; joint ones have these rows.
    """
    for layer in range(config.n_layer):
        name = TURNED.format(layer)
        if config.split_kv_b:
            info = gguf.tensors[f"blk.{layer}.attn_k_b.weight"]
            yield _turned(name, _Part(info, (config.n_head, config.kv_lora, config.qk_nope), slice(None)))
        else:
            info = gguf.tensors[f"blk.{layer}.attn_kv_b.weight"]
            yield _as_stored(name, _halves(info, config.n_head, config.qk_nope, config.v_head)[0])


@dataclass(frozen=True)
class _Part:
    """Some rows of each matrix of a stack [matrices, rows, columns] that one tensor holds."""

    info: TensorInfo
    stack: tuple[int, int, int]
    rows: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        matrices, rows, columns = self.stack
        return matrices, len(range(rows)[self.rows]), columns

    def data(self) -> NDArray[np.uint8]:
        """The part's bytes, a view: [matrices, rows, bytes of a row]."""
        matrices, rows, _ = self.stack
        return self.info.data.reshape(matrices, rows, -1)[:, self.rows]

    def turned(self) -> NDArray[np.uint8]:
        """The part with rows and columns exchanged, flat, as ``_turned`` types it."""
        words = _WORDS.get(self.info.type)
        numbers = dequantize(self.info) if words is None else self.info.data.view(words)
        part = numbers.reshape(self.stack)[:, self.rows]
        return np.ascontiguousarray(part.transpose(0, 2, 1)).reshape(-1).view(np.uint8)


def _joined_products(parts: Mapping[str, Planned], layer: int) -> dict[str, list[Planned]]:
    """kv_a's rows behind q_a's, in a copy: they need not lie together in the file."""
    first, last = (f"blk.{layer}.{name}" for name in JOINED.split(" + "))
    if first not in parts or parts[first].kind != parts[last].kind:
        return {}
    one, other = parts[first], parts[last]
    shape = (one.shape[0] + other.shape[0], one.shape[1])

    def data() -> NDArray[np.uint8]:
        halves = [one.flat(), other.flat()]
        joined = np.concatenate(halves)
        for half in halves:
            drop_pages(half)
        return joined

    return {first: [], last: [Planned(f"blk.{layer}.{JOINED}", one.kind, shape, data)]}


def _joined_experts(config: ModelConfig, parts: Mapping[str, Planned], layer: int) -> dict[str, list[Planned]]:
    """The shared experts' three matrices cut into experts as wide as the routed ones, behind these: gate and up by
    rows, down by columns. All three or none, so that an expert's number means the same in each."""
    shared, pairs = config.n_expert_shared, {}
    for name in ("gate", "up", "down"):
        routed, beside = (parts.get(f"blk.{layer}.{part}") for part in EXPERTS.format(name).split(" + "))
        if routed is None or beside is None or routed.kind != beside.kind:
            return {}
        pairs[name] = routed, beside
    joined: dict[str, list[Planned]] = {}
    for name, (routed, beside) in pairs.items():
        shape = (config.n_expert + shared, *routed.shape[1:])
        data = partial(_with_shared, routed, beside, name == "down")
        joined[routed.name] = []
        joined[beside.name] = [Planned(f"blk.{layer}.{EXPERTS.format(name)}", routed.kind, shape, data)]
    return joined


def _with_shared(routed: Planned, beside: Planned, by_columns: bool) -> Stacks:
    """The routed experts, and the shared tensor in parts as large as one of them."""
    experts, rows, _ = routed.shape
    one = routed.data()
    assert isinstance(one, np.ndarray)  # of one tensor
    stack = one.reshape(experts, rows, -1, copy=False)
    width = stack.shape[-1]
    flat = beside.flat()
    if not by_columns:
        return [stack, flat.reshape(-1, rows, width)]
    parts = np.ascontiguousarray(flat.reshape(rows, -1, width).swapaxes(0, 1))
    drop_pages(flat)
    return [stack, parts]


def _as_f32(info: TensorInfo) -> NDArray[np.uint8]:
    return dequantize(info).astype(np.float32, copy=False).reshape(-1).view(np.uint8)


def _bytes(info: TensorInfo) -> NDArray[np.uint8]:
    return info.data


def _halves(info: TensorInfo, matrices: int, first: int, second: int) -> tuple[_Part, _Part]:
    """The two tensors that lie one after the other in each matrix of a stack: its ``first`` rows, then ``second``."""
    stack = (matrices, first + second, prod(info.shape) // (matrices * (first + second)))
    return _Part(info, stack, slice(first)), _Part(info, stack, slice(first, None))


def _as_stored(name: str, part: _Part) -> Planned:
    return Planned(name, part.info.type, part.shape, part.data)


def _turned(name: str, part: _Part) -> Planned:
    matrices, rows, columns = part.shape
    kind = part.info.type if part.info.type in _WORDS else Q.F32
    return Planned(name, kind, (matrices, columns, rows), part.turned)
