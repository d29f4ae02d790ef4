"""Whether a session fits, decided from arithmetic before anything is allocated."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping

from model.cache import cache_capacity
from model.config import ModelConfig
from model.layout import UNIT, CacheLayout, Path, cache_bytes, whole_units
from model.scratch import SLACK_BYTES
from vkbackend.device import Device
from vkbackend.errors import DeviceError
from vkbackend.gtt import raise_hint
from vkbackend.memory import Room, buffer_limit


def available_bytes(device: Device) -> int:
    """Bytes that new buffers may take now (vkbackend/memory.py says by which limits)."""
    return room(device).nbytes


def room(device: Device) -> Room:
    """Bytes that new buffers may take now, and which limit allows no more."""
    return device.memory.room()


def require_weights(device: Device, source: object, needed: int) -> None:
    """Raise DeviceError, naming the file ``source``, when weights of ``needed`` bytes do not fit."""
    left = room(device)
    if needed > left.nbytes:
        raise DeviceError(
            f"{source}: weights of {needed} bytes; {device.info.name} has {left.nbytes} left {left.limit}, "
            f"{needed - left.nbytes} short, so that no context fits: use a smaller quantisation"
            + _remedies(device, left, needed)
        )


def _remedies(device: Device, left: Room, needed: int) -> str:
    """What else helps where ``needed`` bytes are more than what is left."""
    hint = raise_hint(device.info, device.companion.live_bytes() + needed)
    return "".join(f" or {words}" for words in (left.remedy, hint) if words)


def binding_context(config: ModelConfig, path: Path, limit: int) -> int:
    """Positions at which one buffer of a session reaches ``limit`` bytes, in whole units of 32.

    Per head that buffer is one head's keys or values or a single token's scores (f32); latent rows are split over
    buffers, so that only the 32 bits in which positions are counted limit them.
    """
    if path.layout is not CacheLayout.PER_HEAD:
        return 2**32 - UNIT
    a_position = max(path.number_bytes * max(whole_units(config.key_dim), config.v_head), 4 * config.n_head)
    return max(0, limit - SLACK_BYTES) // a_position // UNIT * UNIT


def require_fit(
    device: Device,
    config: ModelConfig,
    path: Path,
    n_ctx: int,
    scratch: Callable[[int], Mapping[str, int]],
    weights: int,
) -> None:
    """Raise DeviceError when a session of ``n_ctx`` positions does not fit.

    It takes the cache, ``scratch(n_ctx)`` bytes by name, and ``weights`` bytes that are not on the device yet. The
    message gives the bytes that lack, the limit that they exceed, and the largest context that would fit.
    """
    info, limit, left = device.info, buffer_limit(device), room(device)

    def cache(n: int) -> int:
        return cache_bytes(config, path.layout, path.cache_type, cache_capacity(n))

    def needed(n: int) -> int:
        return cache(n) + sum(scratch(n).values()) + weights

    most = binding_context(config, path, limit)

    def advice() -> str:
        units = range(1, min(n_ctx, most) // UNIT + 1)
        fitting = UNIT * bisect_right(units, left.nbytes, key=lambda n: needed(n * UNIT))
        return f"use a context of at most {fitting}" if fitting else "no context fits: use a smaller quantisation"

    if n_ctx > most:
        raise DeviceError(
            f"context {n_ctx} on path {path.name} takes more than the {limit} bytes that {info.name} binds at most: "
            f"{advice()}"
        )
    name, largest = max(scratch(n_ctx).items(), key=lambda item: item[1])
    if largest > limit:
        raise DeviceError(
            f"buffer {name} needs {largest} bytes; {info.name} binds at most {limit}: use a smaller --chunk"
        )
    if needed(n_ctx) <= left.nbytes:
        return
    parts = {"cache": cache(n_ctx), "activations": sum(scratch(n_ctx).values()), "weights": weights}
    listed = ", ".join(f"{n} of {name}" for name, n in parts.items() if n)
    other = "" if path.layout is CacheLayout.LATENT else " or --path mla"
    raise DeviceError(
        f"context {n_ctx} on path {path.name} needs {needed(n_ctx)} bytes ({listed}); {info.name} has {left.nbytes} "
        f"left {left.limit}, {needed(n_ctx) - left.nbytes} short: {advice()}{other}"
        + _remedies(device, left, needed(n_ctx))
    )
