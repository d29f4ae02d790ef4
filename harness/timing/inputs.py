"""Buffers for a launch at its true shape, filled with what its kernel may meet, in several copies.

Sizes come from the planned launch; weights are laid out by the code that loads a model's. A copy has its own of what
the kernel only reads; what it writes is shared, so that one launch waits for the other as in a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from harness.timing.job import BenchJob
from harness.timing.work import experts_of, routing, slots_of
from model.kernels import CHUNK_PRODUCTS, cache_kind, weight_kind
from model.layout import UNIT
from model.random_blocks import random_blocks
from model.weights import stack_upload
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.memory import Use

Buffers = dict[str, Buffer]
Array = NDArray[np.generic]
_TILE = 2**20  # random numbers, or bytes of random weights; what follows repeats them
_MATRICES = frozenset({"weights", "up"})  # bindings in the kernel's format, where it has one
_NOT_FLOATS = frozenset({"cache", "values", "k_cache", "v_cache"})  # f16 unless the cache is f32


class Inputs:
    """A job's buffers on a device; ``copy`` makes one more set of inputs, ``free`` gives all back."""

    def __init__(self, device: Device, job: BenchJob) -> None:
        self._device, self._job = device, job
        self._rng = np.random.default_rng(0)
        self._stack = ExitStack()
        self._copies = 0
        self._weights: Buffers = {}
        self._stored: NDArray[np.uint8] | None = None
        self.written: Buffers = {}

    def copy(self) -> Buffers:
        """A buffer for each binding. What the kernel reads differs from copy to copy; a table of which it takes a few
        rows or matrices serves several, which take others.

        Raises:
            OutOfMemoryError: an allocation failed.
        """
        made: Buffers = {}
        for name, access in self._job.bindings.items():
            if access != "r":
                if name not in self.written:
                    self.written[name] = self._upload(name, self._values(name))
                made[name] = self.written[name]
            elif name in _MATRICES and self._stored_formats():
                made[name] = self._matrices(name)
            else:
                made[name] = self._upload(name, self._values(name))
        self._copies += 1
        return made

    def free(self) -> None:
        """Give the memory back."""
        self._stack.close()

    def _values(self, name: str) -> Array:
        return _SPECIAL.get((self._job.kernel.file, name), _SPECIAL.get(("", name), _floats))(self, name)

    def _words(self, name: str) -> int:
        return self._job.nbytes[name] // 4

    def _upload(self, name: str, values: Array) -> Buffer:
        """``values`` repeated to the buffer's size."""
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
        words = self._words(name)
        if data.size != words:
            data = np.resize(data, words)
        return self._hold(Buffer(self._device, 4 * words, name, use=Use.SCRATCH, initial=data))

    def _hold(self, buffer: Buffer) -> Buffer:
        self._stack.callback(buffer.free)
        return buffer

    def _stored_formats(self) -> bool:
        return any(macro.startswith("FORMAT_") for macro in self._job.kernel.macros)

    def _matrices(self, name: str) -> Buffer:
        """Random weights in a buffer as the plan has it, or the last copy's where this copy takes others of them."""
        job, push = self._job, self._job.push
        if name in self._weights and self._copies % self._groups() != 0:
            return self._weights[name]
        if job.kernel.file == "embed.comp":
            shape: tuple[int, ...] = (int(push["row_end"]) - int(push["row_first"]), UNIT * int(push["units"]))
        else:
            matrices = int(push["matrix_end"]) - int(push["matrix_first"])
            shape = (matrices, int(push["rows"]), UNIT * int(push["units"]))[matrices == 1 :]
        kind = weight_kind(job.kernel)
        if self._stored is None:
            block, size = GGML_QUANT_SIZES[kind]
            blocks = int(np.prod(shape, dtype=np.int64)) // block
            tile = random_blocks(kind, min(blocks, -(-_TILE // size)), self._rng, 1.0).reshape(-1)
            whole = blocks * size
            self._stored = np.resize(tile, whole) if self._device.keeps_data else np.empty(whole, np.uint8)
        (shard,) = stack_upload(self._device, name, kind, shape, self._stored).shards
        self._hold(shard.buffer)
        if (shard.buffer.nbytes, shard.scale_base) != (job.nbytes[name], push["scale_base"]):
            raise ValueError(
                f"weights of {shape} take {shard.buffer.nbytes} bytes with scales at {shard.scale_base}; the plan says "
                f"{job.nbytes[name]} and {push['scale_base']}"
            )
        self._weights[name] = shard.buffer
        return shard.buffer

    def _groups(self) -> int:
        """Copies that one buffer of weights serves."""
        push = self._job.push
        if self._job.kernel.file == "embed.comp":
            return max(1, (int(push["row_end"]) - int(push["row_first"])) // self._job.tokens)
        if "CHOSEN" in self._job.kernel.macros:
            return max(1, (int(push["matrix_end"]) - int(push["matrix_first"])) // slots_of(self._job))
        return 1


def _floats(inputs: Inputs, name: str) -> Array:
    return inputs._rng.standard_normal(min(_TILE, inputs._words(name)), np.float32)


def _cached(inputs: Inputs, name: str) -> Array:
    kind = cache_kind(inputs._job.kernel)
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        dtype = np.float32 if kind is GGMLQuantizationType.F32 else np.float16
        return inputs._rng.standard_normal(min(_TILE, 2 * inputs._words(name))).astype(dtype)
    # Any bits are quants; without sign and highest exponent bit any half is a scale from 0 to 2.
    return inputs._rng.integers(0, 2**32, min(_TILE, inputs._words(name)), np.uint32) & np.uint32(0x3FFF3FFF)


def _params(inputs: Inputs, name: str) -> Array:
    """n_past, n_tokens and ids (shaders/include/params.glsl), of rows that the launch's table has."""
    job = inputs._job
    first, end = (int(job.push.get(name, default)) for name, default in (("row_first", 0), ("row_end", 1)))
    ids = inputs._rng.integers(first, end, job.tokens)
    return np.concatenate([[job.n_past, job.tokens], ids]).astype(np.uint32)


def _experts(inputs: Inputs, name: str) -> Array:
    """One token's experts, all in the launch's shard, of each copy others until all had their turn."""
    push, used = inputs._job.push, slots_of(inputs._job)
    first, end = int(push["matrix_first"]), int(push["matrix_end"])
    turn = inputs._copies % inputs._groups()
    return (first + (turn * used + np.arange(used)) % (end - first)).astype(np.uint32)


def _chosen(inputs: Inputs, name: str) -> Array:
    return routing(inputs._job).astype(np.uint32)


def _counts(inputs: Inputs, name: str) -> Array:
    job = inputs._job
    return np.bincount(routing(job).reshape(-1), minlength=experts_of(job)).astype(np.uint32)


def _pairs(inputs: Inputs, name: str) -> Array:
    """[expert][CAPACITY]: token * experts used + slot, in order; what is behind an expert's last is not read."""
    job = inputs._job
    chosen, capacity = routing(job).reshape(-1), job.choices[0].spec["CAPACITY"]
    pairs = np.zeros((experts_of(job), capacity), np.uint32)
    for expert in range(experts_of(job)):
        found = np.flatnonzero(chosen == expert)
        pairs[expert, : found.size] = found
    return pairs


def _maxima_and_sums(inputs: Inputs, name: str) -> Array:
    """Of the parts of a head's attention: pairs of any maximum and a positive sum."""
    pairs = inputs._rng.standard_normal((min(_TILE, inputs._words(name) // 2), 2), np.float32)
    pairs[:, 1] = 1 + np.abs(pairs[:, 1])
    return pairs


def _tile(inputs: Inputs, name: str) -> Array:
    """First position and positions of a tile that lies before the chunk (shaders/prompt_rows.comp)."""
    job = inputs._job
    capacity = int(job.push.get("tile", job.choices[0].grid[0]))
    return np.array([job.push.get("first", 0), min(capacity, job.n_past)], np.uint32)


# silu(g) * 3 has the fixed point g = -log 2, which every g below 0 draws near to: whatever the number of launches in
# place, no number grows, or shrinks to one that some processors compute with slowly.
def _gate(inputs: Inputs, name: str) -> Array:
    return -inputs._rng.uniform(0.1, 2, min(_TILE, inputs._words(name))).astype(np.float32)


def _nothing(inputs: Inputs, name: str) -> Array:
    return np.zeros(1, np.uint32)


def _three(inputs: Inputs, name: str) -> Array:
    return np.full(1, 3, np.float32)


_SPECIAL: dict[tuple[str, str], Callable[[Inputs, str], Array]] = {
    **{("", name): _cached for name in _NOT_FLOATS},
    ("", "params"): _params,
    ("", "experts"): _experts,
    ("", "tile"): _tile,
    **dict.fromkeys((("", "arrivals"), ("", "too_large")), _nothing),
    ("", "keys"): _cached,
    ("group_by_expert.comp", "chosen"): _chosen,
    **{(file, "counts"): _counts for file in CHUNK_PRODUCTS},
    **{(file, "pairs"): _pairs for file in CHUNK_PRODUCTS},
    ("attention_combine.comp", "stats"): _maxima_and_sums,
    ("prompt_expand.comp", "rows"): _cached,
    ("prompt_expand.comp", "weights"): _cached,
    ("silu_mul.comp", "gate"): _gate,
    ("silu_mul.comp", "up"): _three,
}
