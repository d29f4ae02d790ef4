"""A model on a device, and sessions that run it: tokens in, logits or the next token out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import takewhile
from pathlib import Path as FilePath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.attention_shape import AttentionShape
from model.budget import require_fit, require_weights
from model.cache import Cache, cache_capacity, latent_ranges
from model.config import ModelConfig
from model.device_weights import DeviceWeights, fallback_bytes, predicted_bytes
from model.forward import Forward
from model.gguf_file import GGUFFile
from model.layout import CacheLayout, Path, active_weight_bytes, get_path, require_whole_words
from model.prompt_attention import PromptShape
from model.quantized_inputs import quantizes
from model.scratch import AHEAD, SLACK_BYTES, Scratch, scratch_bytes
from model.tensors import expected_tensors, require_supported
from model.tokenizer import Tokenizer
from model.top_k import serves
from vkbackend.device import Device
from vkbackend.errors import DeviceError, InputError
from vkbackend.memory import buffer_limit
from vkbackend.program import Launch, LaunchTime

DEFAULT_CHUNK = 512  # prompt tokens, as llama.cpp's --ubatch-size (results/performance-log.md)


class Model:
    """A checked GGUF whose weights lie on ``device``."""

    def __init__(self, gguf: GGUFFile, config: ModelConfig, device: Device) -> None:
        self.gguf, self.config, self.device = gguf, config, device
        self.weights = DeviceWeights(device, config, gguf)
        self.tried_out = False  # whether a first forward step was looked at (harness/smoke.py)

    @classmethod
    def load(
        cls,
        source: str | FilePath | GGUFFile,
        device: Device,
        path: Path | None = None,
        n_ctx: int = 0,
        chunk: int | None = None,
        config: ModelConfig | None = None,
    ) -> Model:
        """Open, check and upload. With ``path``, that a session will fit beside the weights is checked before as well.

        ``config`` is what the caller has read from the file and checked already.

        Raises:
            InputError: the file is damaged, of another architecture, or holds what no kernel can run.
            DeviceError: the weights do not fit.
        """
        gguf = source if isinstance(source, GGUFFile) else GGUFFile.open(source)
        if config is None:
            config = ModelConfig.from_gguf(gguf)
            require_supported(config, gguf)
        needed = predicted_bytes(config, gguf)
        require_weights(device, gguf.path, needed)
        if path is not None:
            if path.layout is CacheLayout.PER_HEAD:
                needed += fallback_bytes(config, gguf)
            require_session(device, config, path, n_ctx, chunk, needed)
        return cls(gguf, config, device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer."""
        return Tokenizer.from_gguf(self.gguf)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight buffers on the device."""
        return self.weights.nbytes

    @cached_property
    def active_weight_bytes(self) -> int:
        """Bytes of weights that one decoded token reads."""
        types = {name: self.gguf.tensors[name].type for name in expected_tensors(self.config)}
        return active_weight_bytes(self.config, types)

    def close(self) -> None:
        """Give the weights' memory back."""
        self.weights.free()


def chunk_and_scratch(
    device: Device, config: ModelConfig, path: Path, n_ctx: int, wanted: int | None, splits: int
) -> tuple[int, dict[str, int]]:
    """Prompt tokens a chunk, and the activation buffers that it takes, as ``session_scratch`` gives them.

    They are ``wanted`` or the default, at most what the context holds; less where the MHA fallback's scores
    [H, chunk, n_ctx] would exceed one binding, and a half, a quarter and so on of the default where another activation
    buffer would."""
    limit = buffer_limit(device)
    chunk = min(wanted or DEFAULT_CHUNK, n_ctx)
    if path.layout is CacheLayout.PER_HEAD:
        chunk = min(chunk, (limit - SLACK_BYTES) // (4 * config.n_head * cache_capacity(n_ctx)))
    chunk = max(1, chunk)
    while True:
        sizes = session_scratch(device, config, path, n_ctx, chunk, splits)
        if wanted is not None or chunk == 1 or max(sizes.values()) <= limit:
            return chunk, sizes
        chunk //= 2


def require_session(
    device: Device, config: ModelConfig, path: Path, n_ctx: int, chunk: int | None, weights: int
) -> None:
    """Everything that can be known to prevent a session, beside ``weights`` bytes that are not on the device yet.

    Raises:
        InputError: ``n_ctx`` or ``chunk`` is not positive, or the path has no kernel for this model.
        DeviceError: it does not fit.
    """
    if n_ctx < 1:
        raise InputError(f"context {n_ctx}; expected at least 1: choose a longer one")
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk {chunk}; expected at least 1: choose a larger one")
    require_whole_words(config, get_path(path.name, path.cache_type))
    splits = AttentionShape.choose(device, config, path.kind, 1).splits

    def scratch(n: int) -> dict[str, int]:
        return chunk_and_scratch(device, config, path, n, chunk, splits)[1]

    require_fit(device, config, path, n_ctx, scratch, weights)


def session_scratch(
    device: Device, config: ModelConfig, path: Path, n_ctx: int, chunk: int, splits: int
) -> dict[str, int]:
    """Bytes of a session's activation buffers by name, for chunks of ``chunk`` tokens and ``splits`` of one token."""
    positions = cache_capacity(n_ctx)
    shards = len(latent_ranges(config, path, positions, buffer_limit(device)))
    tiled = PromptShape.choose(device, config, path, positions, chunk)
    words = {} if tiled is None else tiled.scratch_elements(config, path, chunk)
    return scratch_bytes(config, path, positions, chunk, splits, shards, words, quantizes(device.tuning))


class Session:
    """One cache and its programs over a model's weights.

    Args:
        n_ctx: positions that the cache holds.
        chunk: prompt tokens run at once; None for the default.

    Raises:
        InputError: ``n_ctx`` or ``chunk`` is not positive, or the path has no kernel for this model.
        DeviceError: the cache does not fit; nothing is allocated then.
    """

    def __init__(self, model: Model, path: Path, n_ctx: int, chunk: int | None = None) -> None:
        device, config = model.device, model.config
        missing = model.weights.missing_fallback_bytes() if path.layout is CacheLayout.PER_HEAD else 0
        require_session(device, config, path, n_ctx, chunk, missing)
        self.model, self.path = model, path
        one, several = (AttentionShape.choose(device, config, path.kind, tokens) for tokens in (1, 2))
        self.chunk, sizes = chunk_and_scratch(device, config, path, n_ctx, chunk, one.splits)
        self.n_ctx = n_ctx
        with ExitStack() as made:  # what exists already is given back when the next part fails
            self._cache = Cache(device, config, path, n_ctx)
            made.callback(self._cache.free)
            self._scratch = Scratch(device, config, self._cache.n_ctx, sizes)
            made.callback(self._scratch.free)
            self._forward = Forward(
                device, config, model.weights, path, self._cache, self._scratch, (one, several), self.chunk
            )
            made.pop_all()
        self._params = self._scratch["params"]
        self.n_past = 0
        self._midway = True  # whether what was set last did not run whole, as far as is known

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache's buffers as created."""
        return self._cache.nbytes

    @property
    def scratch_bytes(self) -> int:
        """Bytes of activations and parameters."""
        return self._scratch.nbytes

    def _set(self, tokens: Sequence[int]) -> None:
        """What the next launches are to run."""
        if self._midway:  # a token's that failed may have left a count
            self._scratch["arrivals"].upload(np.zeros(1, np.uint32))
        self._midway = True
        self._params.upload(np.array([self.n_past, len(tokens), *tokens], np.uint32))

    def prompt(
        self, tokens: Sequence[int], want: Literal["last", "all", "none"] = "last"
    ) -> NDArray[np.float32] | None:
        """Append ``tokens`` after ``n_past``, a chunk at a time.

        Returns:
            f32 logits: [n_vocab] of the last token, [len(tokens), n_vocab] for "all", None for "none".

        Raises:
            InputError: no token, an id outside the vocabulary, or more tokens than the context holds.
            DeviceError: logits that are not finite.
        """
        if len(tokens) == 0:
            raise InputError("an empty prompt; expected at least one token: give some text")
        self._check(tokens)
        pieces = []
        for start in range(0, len(tokens), self.chunk):
            piece = tokens[start : start + self.chunk]
            self._set(piece)
            self._forward.prompt(self.n_past, len(piece))
            if want == "all":
                pieces.append(self._forward.head_all.run(len(piece)))
                finite = np.isfinite(pieces[-1]).all(axis=1)
                if not finite.all():
                    raise self._not_finite(self.n_past + int(np.argmin(finite)))
            self.n_past += len(piece)
        if want == "all":
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if want == "last":
            self._forward.head_last.run()
            logits = self.last_logits()
            if not np.isfinite(logits).all():
                raise self._not_finite(self.n_past - 1)
            return logits
        return None

    def _not_finite(self, position: int) -> DeviceError:
        device = self.model.device.info.name
        return DeviceError(
            f"{self.model.gguf.path}: logits after position {position} are not finite on {device}; "
            "expected numbers: check the file's hash, then its types, or choose another --device"
        )

    def _check(self, tokens: Sequence[int]) -> None:
        """Everything that could be wrong with ``tokens``, before the first of them runs."""
        n_vocab = self.model.config.n_vocab
        for token in tokens:
            if not 0 <= token < n_vocab:
                raise InputError(f"token id {token}; expected 0 to {n_vocab - 1}: the model has no other")
        if self.n_past + len(tokens) > self.n_ctx:
            raise InputError(
                f"{self.n_past + len(tokens)} tokens; expected at most {self.n_ctx}, the session's context: "
                "ask for a longer context"
            )

    def decode(self, token: int) -> int:
        """Run one token at ``n_past`` and return the greedy next one, chosen on the device.

        Raises:
            InputError: as ``prompt``.
            DeviceError: no logit is a number.
        """
        return self.decode_ahead(token, 1)[0]

    def decode_ahead(self, token: int, most: int = AHEAD) -> list[int]:
        """Run one token at ``n_past`` and those chosen after it, in one submission that the host does not interrupt.

        Returns:
            The greedy next token after each that was run, in order: 1 to ``most`` as the device was seen to be fast
            enough, at most AHEAD, and none beyond the context. ``rewind`` takes back those that are not wanted, but for
            ``last_logits``, which are of the last.

        Raises:
            InputError: as ``prompt``.
            DeviceError: no logit is a number, after ``token``; where that is so later, the tokens end before it.
        """
        self._check([token])
        self._set([token])
        first, most = self.n_past, min(most, AHEAD, self.n_ctx - self.n_past)
        times = self._forward.decode.fitting(most, depth=first + most)
        self._forward.decode.run(depth=first + times, times=times)
        self._midway = False
        kept = self._scratch["tokens"].download(np.uint32, AHEAD)
        tokens = [int(kept[position % AHEAD]) for position in range(first, first + times)]
        chosen = list(takewhile(lambda each: each < self.model.config.n_vocab, tokens))
        self.n_past = first + max(1, len(chosen))
        if not chosen:  # no logit was greater than minus infinity
            raise self._not_finite(first)
        return chosen

    def trial(self, token: int) -> NDArray[np.float32]:
        """f32 logits [n_vocab] of ``token`` run by itself, on a session that is empty and stays so.

        Raises:
            InputError: as ``prompt``.
            DeviceError: a logit that is not finite.
        """
        self.decode(token)
        logits = self.last_logits()
        self.rewind(0)
        if not np.isfinite(logits).all():
            raise self._not_finite(0)
        return logits

    def profile(self, token: int) -> list[LaunchTime]:
        """Device time of every launch of one token at ``n_past``, which does not move; raises as ``decode``.

        Timestamps cost time themselves: the shares mean more than the sum.
        """
        self._check([token])
        self._set([token])
        return self._forward.decode.profile(depth=self.n_past + 1)

    def last_logits(self) -> NDArray[np.float32]:
        """f32 logits [n_vocab] of the last token that ``decode`` or ``prompt(..., "last")`` ran."""
        return self._scratch["logits"].download(np.float32, self.model.config.n_vocab).astype(np.float32, copy=False)

    def candidates(self, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Ids, ascending, and f32 logits of the last token's ``k`` likeliest successors and of some more, found on the
        device; None where ``last_logits`` is to tell them: where finding them there is slower or ``k`` too many
        (``model.top_k.serves``), and where too many are equal."""
        if not serves(self.model.device, self.model.config.n_tokens, k):
            return None
        return self._forward.top(k).find()

    def rewind(self, n_past: int) -> None:
        """Forget all but the first ``n_past`` positions.

        Raises:
            InputError: ``n_past`` is negative or beyond what was run.
        """
        if not 0 <= n_past <= self.n_past:
            raise InputError(f"rewind to {n_past}; expected 0 to {self.n_past}, the positions in the cache: choose one")
        self.n_past = n_past

    def launches(self) -> dict[str, list[Launch]]:
        """What a decoded token, a whole prompt chunk, all logits of a chunk ("head_all") and the search for the 40
        likeliest tokens ("top") launch; where the session has tiles, a chunk in tiles ("tiled"), each layer's tile
        once, and one that expands latent rows ("expanded")."""
        forward = self._forward
        whole = {"decode": forward.decode.launches, "chunk": forward.chunk.launches}
        whole |= {"head_all": forward.head_all.launches}
        whole["top"] = forward.top(40).program.launches  # as many as llama.cpp keeps by default
        return whole | forward.tiled_launches()

    def launch_counts(self) -> dict[str, int]:
        """How many launches a decoded token and a prompt chunk take, and the last token's logits after a prompt;
        "tiled" and "expanded" as in ``launches``."""
        forward = self._forward
        counts = {program.name: len(program.launches) for program in (forward.decode, forward.chunk, forward.head_last)}
        return counts | {name: len(launches) for name, launches in forward.tiled_launches().items()}

    def close(self) -> None:
        """Give cache and scratch memory back."""
        self._forward.free()
        self._cache.free()
        self._scratch.free()
