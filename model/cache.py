"""The KV cache on the device, one value per path: what a layer keeps and in which buffers.

``latent``: rows of kv_lora + rope packed halves. ``latent_v``: the same and a second copy of the kv_lora part.
``per_head``: for each head K as rows of a matrix (one row a position) and V transposed (one column a position), so that
scores and values are plain matrix products, as a runtime without MLA computes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from model.config import ModelConfig
from model.layout import CacheLayout, Path
from model.weights import UNIT, Weight, allocate_f16
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.errors import InputError
from vkbackend.memory import Use


@dataclass(frozen=True)
class LayerCache:
    """One layer's buffers; those that the layout does not have are None."""

    latent: Buffer | None = None
    values: Buffer | None = None
    keys_per_head: Weight | None = None
    values_per_head: Weight | None = None

    def parts(self) -> list[Buffer | Weight]:
        """What was allocated."""
        return [p for p in (self.latent, self.values, self.keys_per_head, self.values_per_head) if p is not None]


@contextmanager
def _freed_on_error(part: Buffer | Weight) -> Iterator[None]:
    try:
        yield
    except BaseException:
        part.free()
        raise


def cache_capacity(n_ctx: int) -> int:
    """Positions that are allocated for a context: whole units of 32, as the values' product reads them."""
    return -(-n_ctx // UNIT) * UNIT


class Cache:
    """All layers' caches for ``cache_capacity(n_ctx)`` positions.

    Raises:
        InputError: the cache type or the layout's widths have no kernel.
        DeviceError: one layer's latent cache exceeds a storage buffer binding.
    """

    def __init__(self, device: Device, config: ModelConfig, path: Path, n_ctx: int) -> None:
        require_layout(config, path)
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
            widest = n_ctx * max(key, value)
            keys = allocate_f16(device, f"{name}.k", heads, n_ctx, key, widest)
            with _freed_on_error(keys):
                values = allocate_f16(device, f"{name}.v", heads, value, n_ctx, widest)
            return LayerCache(keys_per_head=keys, values_per_head=values)
        latent = Buffer(device, self.n_ctx * config.latent_dim * 2, f"{name}.latent", use=Use.CACHE)
        if path.layout is CacheLayout.LATENT:
            return LayerCache(latent=latent)
        with _freed_on_error(latent):
            copy = Buffer(device, self.n_ctx * config.kv_lora * 2, f"{name}.values", use=Use.CACHE)
        return LayerCache(latent=latent, values=copy)

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers take of the device's memory, counted where Vulkan allocates."""
        return sum(part.allocated for layer in self.layers for part in layer.parts())

    def free(self) -> None:
        """Give the memory back."""
        for layer in self.layers:
            for part in layer.parts():
                part.free()


def require_layout(config: ModelConfig, path: Path) -> None:
    """Raise InputError unless there are kernels for this path over this model's widths."""
    if path.cache_type != "f16":
        raise InputError(f"cache type {path.cache_type} has no kernel; expected f16: choose it")
    if path.layout is CacheLayout.PER_HEAD and config.key_dim % UNIT:
        raise InputError(
            f"{config.name}: keys of {config.key_dim} elements a head; path {path.name} expects a multiple of {UNIT}: "
            "choose --path mla"
        )
