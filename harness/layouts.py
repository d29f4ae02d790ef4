"""The cache layouts that a runtime may have, with what each costs a token: the candidates of a diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.config import ModelConfig
from model.layout import CACHE_TYPES, PATHS, CacheLayout, cache_bytes_per_token

WORDS = {
    CacheLayout.PER_HEAD: "MHA fallback",
    CacheLayout.LATENT_V: "latent with a V copy",
    CacheLayout.LATENT: "latent, V-less",
}
# What runtimes cache in: their default, and what a user may have asked for. f32 is for checks.
RUNTIME_TYPES = tuple(name for name in CACHE_TYPES if name != "f32")


@dataclass(frozen=True)
class Candidate:
    """A layout over a cache type, and the bytes that each cached token takes and a decoded token reads of it."""

    layout: CacheLayout
    cache_type: str
    bytes_per_token: int

    @property
    def latent(self) -> bool:
        return self.layout is not CacheLayout.PER_HEAD

    @property
    def name(self) -> str:
        """For people: 'MHA fallback, f16'."""
        return f"{WORDS[self.layout]}, {self.cache_type}"


def candidates(config: ModelConfig, cache_types: Sequence[str] = RUNTIME_TYPES) -> tuple[Candidate, ...]:
    """Every layout over every one of those types, the largest first; ``model.layout`` has the formula."""
    found = [
        Candidate(path.layout, cache_type, cache_bytes_per_token(config, path.layout, cache_type))
        for path in PATHS.values()
        for cache_type in cache_types
    ]
    return tuple(sorted(found, key=lambda candidate: -candidate.bytes_per_token))
