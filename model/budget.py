"""Whether a session fits, decided from arithmetic before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from model.cache import cache_capacity
from model.config import ModelConfig
from model.layout import CacheLayout, Path, cache_bytes, max_context
from model.scratch import SLACK_BYTES
from model.weights import UNIT
from vkbackend.device import Device
from vkbackend.errors import DeviceError

# Left to the desktop and the page cache on unified memory; a discrete card keeps a little for the compositor.
_RESERVE_UNIFIED, _RESERVE_DEVICE = 512 * 2**20, 256 * 2**20


def available_bytes(device: Device) -> int:
    """Bytes that new buffers may take now: what the device's memory has beside our own buffers, and what the host has
    free, which holds the buffers on unified memory and Kompute's staging copy of each elsewhere."""
    info, host = device.info, psutil.virtual_memory().available
    left = info.memory - device.live_bytes
    if info.unified:
        return max(0, min(left, host) - _RESERVE_UNIFIED)
    return max(0, min(left - _RESERVE_DEVICE, host - _RESERVE_UNIFIED))


def binding_context(config: ModelConfig, path: Path, limit: int) -> int:
    """Positions at which one buffer of a session reaches ``limit`` bytes, in whole units of 32.

    That buffer is a layer's latent rows or, per head, one head's keys or values or a single token's scores (f32).
    """
    if path.layout is CacheLayout.PER_HEAD:
        a_position = max(2 * config.key_dim, 2 * config.v_head, 4 * config.n_head)
    else:
        a_position = 2 * config.latent_dim
    return max(0, limit - SLACK_BYTES) // a_position // UNIT * UNIT


def require_fit(
    device: Device, config: ModelConfig, path: Path, n_ctx: int, scratch: Mapping[str, int], weights: int = 0
) -> None:
    """Raise DeviceError when the cache for ``n_ctx`` positions does not fit beside what else a session allocates.

    That is the scratch (bytes by name) and ``weights`` bytes that only this path needs. The message gives the bytes and
    the largest context that would fit.
    """
    info = device.info
    most = binding_context(config, path, info.max_storage_buffer_range)
    if n_ctx > most:
        fitting = min(most, max_context(config, path.layout, path.cache_type, available_bytes(device)) // UNIT * UNIT)
        raise DeviceError(
            f"context {n_ctx} on path {path.name} takes more than the {info.max_storage_buffer_range} bytes that "
            f"{info.name} binds at most: use a context of at most {fitting}"
        )
    name, largest = max(scratch.items(), key=lambda item: item[1])
    if largest > info.max_storage_buffer_range:
        raise DeviceError(
            f"buffer {name} needs {largest} bytes; {info.name} binds at most {info.max_storage_buffer_range}: "
            "use a smaller --chunk"
        )
    needed = cache_bytes(config, path.layout, path.cache_type, cache_capacity(n_ctx))
    free = max(0, available_bytes(device) - sum(scratch.values()) - weights)
    if needed <= free:
        return
    fitting = max_context(config, path.layout, path.cache_type, free) // UNIT * UNIT
    other = "" if path.layout is CacheLayout.LATENT else " or --path mla"
    raise DeviceError(
        f"context {n_ctx} on path {path.name} needs {needed} bytes of cache; {info.name} has {free} left: "
        f"use a context of at most {fitting}{other}"
    )
