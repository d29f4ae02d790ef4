"""Multi-head latent attention, every way. Shape letters: see ops.py.

"latent": the cache keeps one row of R + P numbers a token, shared by all heads; ``attn_k_b`` is absorbed into the
query and ``attn_v_b`` applied to the attended latent. "latent_v": beside that row a copy of its R numbers is what
values are read from; it differs where the copy is quantised in blocks of its own, R being no multiple of a block.
"expanded": keys and values are computed per head and cached per head, as a runtime without MLA does. In exact
arithmetic all are one function.
"""

from collections.abc import Callable

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import DTypeLike, NDArray

from model.config import ModelConfig
from model.reference.ops import Floats, Ints, linear, rms_norm, rope, softmax
from model.rope import magnitude

PATHS = ("latent", "latent_v", "expanded")
Weight = Callable[[str], Floats]  # tensor name within the layer -> dequantised array


class RowCache:
    """The rows of past tokens, one array. ``kind`` rounds them as a device's cache of that type does: a NumPy type, or
    a GGUF type, by whose blocks rows [T, width], padded with zeros, are quantised."""

    def __init__(self, kind: DTypeLike | GGMLQuantizationType) -> None:
        self.quantised = kind if isinstance(kind, GGMLQuantizationType) else None
        self.dtype = np.dtype(np.float32 if isinstance(kind, GGMLQuantizationType) else kind)
        self.length = 0
        self._rows: np.ndarray | None = None

    def append(self, rows: Floats) -> Floats:
        """Add rows [T, ...] and return all rows so far, [n, ...], in the type of ``rows``."""
        end = self.length + rows.shape[0]
        if self._rows is None or end > self._rows.shape[0]:
            grown = np.empty((max(end, 2 * self.length), *rows.shape[1:]), self.dtype)
            if self._rows is not None:
                grown[: self.length] = self._rows[: self.length]
            self._rows = grown
        self._rows[self.length : end] = rows if self.quantised is None else _quantised(rows, self.quantised)
        self.length = end
        return self._rows[:end].astype(rows.dtype)

    def rewind(self, length: int) -> None:
        """Forget every row from ``length`` on."""
        self.length = min(self.length, length)


def _quantised(rows: Floats, kind: GGMLQuantizationType) -> Floats:
    block = GGML_QUANT_SIZES[kind][0]
    padded = np.pad(rows.astype(np.float32), ((0, 0), (0, -rows.shape[1] % block)))
    return dequantize(quantize(padded, kind), kind)[:, : rows.shape[1]]


class LayerCache:
    """One layer's cache: ``rows`` [n, R+P], for "latent_v" with ``values`` [n, R]; for "expanded" ``rows`` [n, H, N+P]
    with ``values`` [n, H, V].

    ``kind`` as in RowCache.
    """

    def __init__(self, kind: DTypeLike | GGMLQuantizationType) -> None:
        self.rows = RowCache(kind)
        self.values = RowCache(kind)

    def rewind(self, length: int) -> None:
        self.rows.rewind(length)
        self.values.rewind(length)


def queries(x: Floats, weight: Weight, config: ModelConfig) -> Floats:
    """Queries before rope, each head nope first and rope last. x [T, D] -> [T, H, N+P]."""
    if config.q_lora:
        compressed = rms_norm(linear(x, weight("attn_q_a")), weight("attn_q_a_norm"), config.rms_eps)
        q = linear(compressed, weight("attn_q_b"))
    else:
        q = linear(x, weight("attn_q"))
    return q.reshape(x.shape[0], config.n_head, config.key_dim)


def attend(q: Floats, keys: Floats, values: Floats, scale: float) -> Floats:
    """Causal attention of the last T of n positions. q [H, T, d], keys [H or 1, n, d], values [H or 1, n, e] -> [H, T,
    e].
    """
    n_tokens, n_cached = q.shape[1], keys.shape[1]
    scores = q @ keys.transpose(0, 2, 1) * q.dtype.type(scale)  # [H, T, n]
    future = np.arange(n_cached)[None, :] > np.arange(n_cached - n_tokens, n_cached)[:, None]
    return softmax(np.where(future, -np.inf, scores).astype(q.dtype, copy=False)) @ values


def latent_attention(
    x: Floats,
    positions: Ints,
    frequencies: NDArray[np.float64],
    weight: Weight,
    config: ModelConfig,
    cache: LayerCache,
    path: str,
) -> Floats:
    """One layer's attention of the tokens at ``positions``, which are appended to ``cache``. x [T, D], normed -> [T,
    D].

    ``weight`` gives ``attn_k_b`` as [H, R, N] and ``attn_v_b`` as [H, V, R].
    """
    n_tokens, n_rank, n_nope = x.shape[0], config.kv_lora, config.qk_nope
    q = queries(x, weight, config)
    q_nope = q[..., :n_nope].transpose(1, 0, 2)  # [H, T, N]
    q_rope = rope(q[..., n_nope:], positions, frequencies, magnitude(config)).transpose(1, 0, 2)  # [H, T, P]

    kv_a = linear(x, weight("attn_kv_a_mqa"))  # [T, R+P]
    latent = rms_norm(kv_a[:, :n_rank], weight("attn_kv_a_norm"), config.rms_eps)
    k_rope = rope(kv_a[:, n_rank:], positions, frequencies, magnitude(config))  # [T, P], one for all heads

    k_b, v_b = weight("attn_k_b"), weight("attn_v_b")
    if path != "expanded":
        rows = cache.rows.append(np.concatenate([latent, k_rope], axis=1))[None]  # [1, n, R+P]
        shared = cache.values.append(latent)[None] if path == "latent_v" else rows[..., :n_rank]  # [1, n, R]
        q_absorbed = np.concatenate([q_nope @ k_b.transpose(0, 2, 1), q_rope], axis=2)  # [H, T, R+P]
        attended = attend(q_absorbed, rows, shared, config.attn_scale)  # [H, T, R]
        out: Floats = attended @ v_b.transpose(0, 2, 1)  # [H, T, V]
    else:
        k_nope = (latent @ k_b).transpose(1, 0, 2)  # [T, H, N]
        k_rope_of_heads = np.broadcast_to(k_rope[:, None], (n_tokens, config.n_head, config.qk_rope))
        keys = cache.rows.append(np.concatenate([k_nope, k_rope_of_heads], axis=2))  # [n, H, N+P]
        values = cache.values.append((latent @ v_b.transpose(0, 2, 1)).transpose(1, 0, 2))  # [n, H, V]
        q_full = np.concatenate([q_nope, q_rope], axis=2)
        out = attend(q_full, keys.transpose(1, 0, 2), values.transpose(1, 0, 2), config.attn_scale)  # [H, T, V]
    joined = out.transpose(1, 0, 2).reshape(n_tokens, config.n_head * config.v_head)
    return linear(joined, weight("attn_output"))


def split_kv_b(kv_b: Floats, config: ModelConfig) -> tuple[Floats, Floats]:
    """The older single tensor, [H*(N+V), R] -> (``attn_k_b`` [H, R, N], ``attn_v_b`` [H, V, R])."""
    per_head = kv_b.reshape(config.n_head, config.qk_nope + config.v_head, config.kv_lora)
    return per_head[:, : config.qk_nope].transpose(0, 2, 1), per_head[:, config.qk_nope :]
