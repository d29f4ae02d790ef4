"""The whole model in NumPy: tokens in, logits out. Tensor names are the GGUF's own. Letters: see ops.py."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import DTypeLike

from model.config import ModelConfig
from model.gguf_file import GGUFFile
from model.reference.attention import PATHS, LayerCache, latent_attention, split_kv_b
from model.reference.moe import gated_ffn, moe_ffn
from model.reference.ops import Floats, linear, rms_norm, routing_margin
from model.reference.weights import DequantisedWeights, Tensor
from model.rope import frequencies
from vkbackend.errors import InputError

DEFAULT_CHUNK = 256  # tokens a step: bounds the scores, H*T*n numbers, on long prompts
_HEAD_ROWS = 8192  # vocabulary rows dequantised at a time for the logits

Trace = Callable[[str, int, np.ndarray], None]
CacheType = DTypeLike | GGMLQuantizationType


class State:
    """A sequence in progress: the path it is computed on, its position, and each layer's cache."""

    def __init__(self, config: ModelConfig, path: str, cache_type: CacheType) -> None:
        if path not in PATHS:
            raise InputError(f"reference path {path!r} is unknown: choose one of {', '.join(PATHS)}")
        self.path = path
        self.n_past = 0
        self.layers = [LayerCache(cache_type) for _ in range(config.n_layer)]

    def rewind(self, n_past: int) -> None:
        """Go back to ``n_past`` tokens; later ones are forgotten."""
        self.n_past = min(self.n_past, n_past)
        for layer in self.layers:
            layer.rewind(n_past)


class Reference:
    """The model as float32 NumPy. ``dtype=np.float64`` computes the same in float64, to measure float32's own rounding.

    ``weights`` maps GGUF tensor names to float arrays in NumPy order (outermost axis first), or to tensors that
    dequantise when indexed (``DequantisedWeights``): only chosen experts and needed vocabulary rows are ever asked for.
    """

    def __init__(self, weights: Mapping[str, Tensor], config: ModelConfig, dtype: DTypeLike = np.float32) -> None:
        self.weights = weights
        self.config = config
        self.dtype = np.dtype(dtype)
        self.frequencies = frequencies(config)

    @classmethod
    def from_gguf(cls, gguf_file: GGUFFile, dtype: DTypeLike = np.float32) -> "Reference":
        """Raises InputError where ``ModelConfig.from_gguf`` does."""
        return cls(DequantisedWeights(gguf_file), ModelConfig.from_gguf(gguf_file), dtype)

    def start(self, path: str = "latent", cache_type: CacheType | None = None) -> State:
        """An empty sequence. ``cache_type`` rounds what is cached, np.float16 or a GGUF type as a device does; None:
        nothing is rounded."""
        return State(self.config, path, self.dtype if cache_type is None else cache_type)

    def step(self, tokens: Sequence[int], state: State, trace: Trace | None = None) -> Floats:
        """Append ``tokens`` to the sequence. -> hidden states after the last layer, before ``output_norm``, [T, D].

        ``trace(name, layer, array)`` is called with each intermediate, for holding a device's buffers against it:
        attn_norm, attn_out, ffn_inp, ffn_norm, ffn_moe_logits, ffn_out, l_out. Raises InputError on a token outside the
        vocabulary.
        """
        ids = self._checked(tokens)
        positions = np.arange(state.n_past, state.n_past + len(ids))
        x = np.asarray(self.weights["token_embd.weight"][ids], self.dtype)
        for layer in range(self.config.n_layer):
            x = self._block(x, layer, positions, state, trace or _no_trace)
        state.n_past += len(ids)
        return x

    def head(self, hidden: Floats) -> Floats:
        """Logits of hidden states. [T, D] -> [T, n_vocab]. A tied model reuses ``token_embd.weight``."""
        x = rms_norm(hidden, self._whole("output_norm.weight"), self.config.rms_eps)
        output = self.weights["token_embd.weight" if self.config.tied_output else "output.weight"]
        starts = range(0, output.shape[0], _HEAD_ROWS)
        return np.concatenate([linear(x, np.asarray(output[i : i + _HEAD_ROWS], self.dtype)) for i in starts], axis=1)

    def logits(
        self,
        tokens: Sequence[int],
        path: str = "latent",
        chunk: int | None = None,
        cache_type: CacheType | None = None,
    ) -> Floats:
        """Logits at every position of a fresh sequence, ``chunk`` tokens at a time (None: 256). -> [T, n_vocab]."""
        return np.concatenate([self.head(h) for h in self._chunks(tokens, self.start(path, cache_type), chunk)])

    def generate(
        self,
        tokens: Sequence[int],
        n_tokens: int,
        path: str = "latent",
        cache_type: CacheType | None = None,
        chunk: int | None = None,
    ) -> list[int]:
        """The ``n_tokens`` greedy continuations of ``tokens``; ties go to the lowest id, and no end token stops it.

        Ids that stand for no token are never chosen.
        """
        state = self.start(path, cache_type)
        for hidden in self._chunks(tokens, state, chunk):
            last = hidden[-1:]
        out: list[int] = []
        while len(out) < n_tokens:
            out.append(int(np.argmax(self.head(last)[0, : self.config.n_tokens])))
            if len(out) < n_tokens:
                last = self.step(out[-1:], state)
        return out

    def routing_margins(self, tokens: Sequence[int], path: str = "latent", chunk: int | None = None) -> Floats:
        """Each token's smallest ``routing_margin`` over the mixture layers, [T]: how near it is to other experts."""
        found: list[list[Floats]] = [[] for _ in range(self.config.n_layer)]

        def keep(name: str, layer: int, array: np.ndarray) -> None:
            if name == "ffn_moe_logits":
                found[layer].append(routing_margin(array, self.selection_bias(layer), self.config))

        self._chunks(tokens, self.start(path), chunk, keep)
        none = np.full(len(tokens), np.inf, self.dtype)
        return np.min([none, *(np.concatenate(f) for f in found if f)], axis=0)

    def _chunks(
        self, tokens: Sequence[int], state: State, chunk: int | None, trace: Trace | None = None
    ) -> list[Floats]:
        self._checked(tokens)
        size = DEFAULT_CHUNK if chunk is None else chunk
        if size < 1:
            raise InputError(f"chunk {size} is not a number of tokens: give 1 or more")
        return [self.step(tokens[i : i + size], state, trace) for i in range(0, len(tokens), size)]

    def _checked(self, tokens: Sequence[int]) -> np.ndarray:
        ids = np.asarray(tokens, np.int64)
        if ids.ndim != 1 or ids.size == 0:
            raise InputError(f"tokens have shape {ids.shape}: give at least one token id, in one list")
        outside = ids[(ids < 0) | (ids >= self.config.n_vocab)]
        if outside.size:
            raise InputError(
                f"token {outside[0]} is outside the vocabulary: give ids from 0 to {self.config.n_vocab - 1}"
            )
        return ids

    def _block(self, x: Floats, layer: int, positions: np.ndarray, state: State, trace: Trace) -> Floats:
        config = self.config
        normed = rms_norm(x, self._layer(layer, "attn_norm"), config.rms_eps)
        trace("attn_norm", layer, normed)
        attended = latent_attention(
            normed,
            positions,
            self.frequencies,
            lambda n: self._layer(layer, n),
            config,
            state.layers[layer],
            state.path,
        )
        trace("attn_out", layer, attended)
        x = x + attended
        trace("ffn_inp", layer, x)
        normed = rms_norm(x, self._layer(layer, "ffn_norm"), config.rms_eps)
        trace("ffn_norm", layer, normed)
        out = self._moe(normed, layer, trace) if config.is_moe(layer) else self._dense(normed, layer)
        trace("ffn_out", layer, out)
        x = x + out
        trace("l_out", layer, x)
        return x

    def _dense(self, x: Floats, layer: int) -> Floats:
        return gated_ffn(x, *(self._layer(layer, name) for name in ("ffn_gate", "ffn_up", "ffn_down")))

    def _moe(self, x: Floats, layer: int, trace: Trace) -> Floats:
        logits = linear(x, self._layer(layer, "ffn_gate_inp"))
        trace("ffn_moe_logits", layer, logits)
        return moe_ffn(
            x,
            logits,
            lambda name: self._layer(layer, name),
            lambda name, e: self._expert(layer, name, e),
            self.selection_bias(layer),
            self.config,
        )

    def selection_bias(self, layer: int) -> Floats | None:
        """``exp_probs_b`` of a layer, [E], or None for a model without (the softmax-gated ones)."""
        return self._whole(f"blk.{layer}.exp_probs_b.bias") if self.config.expert_bias else None

    def _expert(self, layer: int, name: str, expert: int) -> Floats:
        """One expert's matrix; a fused tensor has the gate's rows before up's."""
        fused = self.config.fused_gate_up and name in ("ffn_gate_exps", "ffn_up_exps")
        stack = self.weights[f"blk.{layer}.{'ffn_gate_up_exps' if fused else name}.weight"]
        matrix = np.asarray(stack[expert], self.dtype)
        return np.split(matrix, 2)[name == "ffn_up_exps"] if fused else matrix

    def _layer(self, layer: int, name: str) -> Floats:
        c, prefix = self.config, f"blk.{layer}."
        shapes = {"attn_k_b": (c.n_head, c.kv_lora, c.qk_nope), "attn_v_b": (c.n_head, c.v_head, c.kv_lora)}
        if name not in shapes:
            return self._whole(f"{prefix}{name}.weight")
        if not c.split_kv_b:
            return split_kv_b(self._whole(f"{prefix}attn_kv_b.weight"), c)[name == "attn_v_b"]
        return self._whole(f"{prefix}{name}.weight").reshape(shapes[name])

    def _whole(self, name: str) -> Floats:
        return np.asarray(self.weights[name], self.dtype)


def _no_trace(name: str, layer: int, array: np.ndarray) -> None:
    """Watch nothing."""
