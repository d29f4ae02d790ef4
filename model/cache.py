"""The KV cache on the device, one value per path: what a layer keeps and in which buffers.

``latent``: rows of kv_lora + rope numbers. ``latent_v``: the same and a second copy of the kv_lora part.
``per_head``: for each head K as rows of a matrix (one row a position) and V transposed (one column a position), so that
scores and values are plain matrix products, as a runtime without MLA computes them.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from model.config import ModelConfig
from model.layout import CacheLayout, Path, whole_units
from model.weights import Weight, allocate
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.memory import Use, buffer_limit


@dataclass(frozen=True)
class LatentShard:
    """Positions ``first`` to ``end`` of a layer's latent rows and, in the layout that has one, of the V copy."""

    latent: Buffer
    values: Buffer | None
    first: int
    end: int


@dataclass(frozen=True)
class LayerCache:
    """One layer's buffers; those that the layout does not have are empty or None."""

    cache_type: str
    latent: tuple[LatentShard, ...] = ()
    keys_per_head: Weight | None = None
    values_per_head: Weight | None = None

    def parts(self) -> list[Buffer | Weight]:
        """What was allocated."""
        latent = [part for shard in self.latent for part in (shard.latent, shard.values)]
        return [p for p in (*latent, self.keys_per_head, self.values_per_head) if p is not None]


def cache_capacity(n_ctx: int) -> int:
    """Positions that are allocated for a context: whole units of 32, as the values' product reads them."""
    return whole_units(n_ctx)


def latent_ranges(config: ModelConfig, path: Path, n_ctx: int, limit: int) -> list[tuple[int, int]]:
    """(first, end) positions of a layer's shards: as few as bindings of ``limit`` bytes allow."""
    rows = max(1, limit // path.row_bytes(config.latent_dim))
    return [(first, min(first + rows, n_ctx)) for first in range(0, n_ctx, rows)]


class Cache:
    """All layers' caches for ``cache_capacity(n_ctx)`` positions.

    Raises:
        DeviceError: one head's keys or values exceed a storage buffer binding, or memory does not suffice.
    """

    def __init__(self, device: Device, config: ModelConfig, path: Path, n_ctx: int) -> None:
        self.n_ctx = cache_capacity(n_ctx)
        self.layers: list[LayerCache] = []
        try:
            for i in range(config.n_layer):
                self.layers.append(self._layer(device, config, path, f"cache.{i}"))
        except BaseException:
            self.free()
            raise

    def _layer(self, device: Device, config: ModelConfig, path: Path, name: str) -> LayerCache:
        if path.layout is CacheLayout.PER_HEAD:
            # One kernel writes a head's key and value, so both are split between the same heads.
            heads, n_ctx, key, value = config.n_head, self.n_ctx, config.key_dim, config.v_head
            widest = n_ctx * max(whole_units(key), value)
            keys = allocate(device, f"{name}.k", path.kind, heads, n_ctx, key, widest)
            try:
                values = allocate(device, f"{name}.v", path.kind, heads, value, n_ctx, widest)
            except BaseException:
                keys.free()
                raise
            return LayerCache(path.cache_type, keys_per_head=keys, values_per_head=values)
        with ExitStack() as made:
            shards = []
            for first, end in latent_ranges(config, path, self.n_ctx, buffer_limit(device)):
                nbytes = (end - first) * path.row_bytes(config.latent_dim)
                latent = Buffer(device, nbytes, f"{name}.latent[{first}:{end}]", use=Use.CACHE)
                copy: Buffer | None = None
                made.callback(latent.free)
                if path.layout is CacheLayout.LATENT_V:
                    nbytes = (end - first) * path.row_bytes(config.kv_lora)
                    copy = Buffer(device, nbytes, f"{name}.values[{first}:{end}]", use=Use.CACHE)
                    made.callback(copy.free)
                shards.append(LatentShard(latent, copy, first, end))
            made.pop_all()
        return LayerCache(path.cache_type, latent=tuple(shards))

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers take of the device's memory, counted where Vulkan allocates."""
        return sum(part.allocated for layer in self.layers for part in layer.parts())

    def free(self) -> None:
        """Give the memory back."""
        for layer in self.layers:
            for part in layer.parts():
                part.free()
