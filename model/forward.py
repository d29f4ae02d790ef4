"""The forward pass as programs: one token, a chunk of prompt tokens, and the output head on top of either.

The path is a value: it chooses the caches and, through them, the attention launches; nothing else differs. Programs
are recorded once; position, token count and token ids reach them through one small parameter buffer.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from model import kernels
from model.all_logits import AllLogits
from model.attention import AttentionBlock
from model.attention_shape import AttentionShape
from model.cache import Cache
from model.config import ModelConfig
from model.device_weights import DeviceWeights
from model.feed_forward import FeedForwardBlock
from model.layout import CacheLayout, Path
from model.linear import Norm, View, linear
from model.norm import emit_norm
from model.prompt_attention import TILED_FROM, PromptShape
from model.prompt_expansion import expands_from
from model.scratch import AHEAD, ARGMAX_GROUPS, Scratch
from model.tiled_prompt import TiledPrompt
from model.top_k import TopK
from vkbackend.device import Device
from vkbackend.program import Launch, Program


class Forward:
    """The programs of one session: ``decode`` (token in, next token out), ``chunk``, ``head_last``, ``head_all``."""

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        weights: DeviceWeights,
        path: Path,
        cache: Cache,
        scratch: Scratch,
        shapes: tuple[AttentionShape, AttentionShape],
        chunk: int,
    ) -> None:
        self._config, self._weights, self._scratch = config, weights, scratch
        if path.layout is CacheLayout.PER_HEAD:
            weights.need_fallback()
        self._blocks = []
        for i, layer_cache in enumerate(cache.layers):
            matrices, vectors = weights.layer(i)
            attention = AttentionBlock(config, matrices, vectors, layer_cache, cache.n_ctx, *shapes)
            self._blocks.append((attention, FeedForwardBlock(config, matrices, vectors, config.is_moe(i))))

        self.decode = Program(device, "decode")
        self._embed(self.decode, 1)
        for i in range(len(self._blocks)):
            self._layer(self.decode, i, 1)
        self._head_last(self.decode)
        self.chunk = Program(device, "chunk", scratch.workspace)
        self._embed(self.chunk, chunk)
        for i in range(len(self._blocks)):
            self._layer(self.chunk, i, chunk)
        self.head_last = Program(device, "head_last")
        self._head_last(self.head_last)
        self._device, self._chunk = device, chunk
        shape = PromptShape.choose(device, config, path, cache.n_ctx, chunk)
        # Forms of a chunk in tiles by name, each from so many tokens on.
        self._tiled: dict[str, tuple[int, TiledPrompt]] = {}
        if shape is not None:
            parts = device, self._embed, self._blocks, scratch, shape, chunk
            self._tiled["tiled"] = TILED_FROM, TiledPrompt(*parts)
            if shape.expanded is not None:
                self._tiled["expanded"] = expands_from(config), TiledPrompt(*parts, shape.expanded)
        self._top: dict[int, TopK] = {}

    def prompt(self, n_past: int, n_tokens: int) -> None:
        """Run ``n_tokens`` of a chunk, which the parameters hold, after ``n_past`` positions: in tiles where they are
        enough to pay, expanded unless a key or value turns out to be none that halves hold."""
        least, expanded = self._tiled.get("expanded", (0, None))
        if expanded is not None and n_tokens >= least:
            expanded.run(n_past, n_tokens)
            if not self._scratch["too_large"].download(np.uint32, 1)[0]:
                return
            # Absorbed, nothing is as large. From the embedding on all is made anew, the cache's new rows as they are.
            self._tiled.pop("expanded")[1].free()
        least, tiled = self._tiled.get("tiled", (0, None))
        if tiled is not None and n_tokens >= least:
            tiled.run(n_past, n_tokens)
        else:
            self.chunk.run(items=n_tokens, depth=n_past + n_tokens)

    def tiled_launches(self) -> dict[str, list[Launch]]:
        """What a chunk in tiles launches, each layer's tile once, by the form's name; none where there are no tiles."""
        return {name: tiled.launches() for name, (_, tiled) in self._tiled.items()}

    def _layer(self, program: Program, index: int, tokens: int) -> None:
        attention, feed_forward = self._blocks[index]
        attention.emit(program, self._scratch, tokens)
        feed_forward.emit(program, self._scratch, tokens)

    def _embed(self, program: Program, tokens: int) -> None:
        scratch, embedding = self._scratch, self._weights.matrix("token_embd")
        for shard in embedding.shards:
            program.launch(
                kernels.for_format(kernels.EMBED, embedding.kind, embedding.interleaved),
                {"weights": shard.buffer, "x": scratch["x"], "params": scratch["params"]},
                (tokens, 1, 1),
                push={
                    "units": embedding.units,
                    "scale_base": shard.scale_base,
                    "row_first": shard.first,
                    "row_end": shard.end,
                    "width": self._config.n_embd,
                    "across": tokens,
                },
                label="token_embd",
            )

    def _norm(self, program: Program, tokens: int, last_token: bool) -> View:
        c, scratch = self._config, self._scratch
        norm = Norm(self._weights.vector("output_norm"), c.rms_eps)
        x = View(scratch["x"], token=c.n_embd)
        emit_norm(program, scratch, tokens, x, norm, scratch["hidden"], c.n_embd, last_token)
        return View(scratch["hidden"], token=c.n_embd)

    def _head_last(self, program: Program) -> None:
        """Logits of the last token, and the greedy next one, for which the parameters are made ready."""
        c, scratch = self._config, self._scratch
        hidden = self._norm(program, 1, last_token=True)
        logits = View(scratch["logits"], token=c.n_vocab)
        linear(program, self._weights.output(), hidden, logits, tokens=1, params=scratch["params"])
        program.launch(
            kernels.ARGMAX,
            {"logits": scratch["logits"], "best": scratch["best"]},
            (ARGMAX_GROUPS, 1, 1),
            # Ids that stand for no token are never chosen.
            push={"count": c.n_tokens, "share": -(-c.n_tokens // ARGMAX_GROUPS)},
        )
        program.launch(
            kernels.ARGMAX_FINAL,
            {"best": scratch["best"], "tokens": scratch["tokens"], "params": scratch["params"]},
            (1, 1, 1),
            push={"count": ARGMAX_GROUPS, "share": ARGMAX_GROUPS, "kept": AHEAD},
        )

    @cached_property
    def head_all(self) -> AllLogits:
        """Logits of every token of a chunk, made when first asked for."""
        hidden = View(self._scratch["hidden"], token=self._config.n_embd)
        output = self._weights.output()
        return AllLogits(self._device, self._norm_all, output, hidden, self._chunk, self._scratch.workspace)

    def _norm_all(self, program: Program) -> None:
        self._norm(program, self._chunk, last_token=False)

    def top(self, k: int) -> TopK:
        """What lists candidates for the ``k`` likeliest of the last token's logits, made when first asked for."""
        if k not in self._top:
            self._top[k] = TopK(self._device, self._scratch, self._config.n_tokens, k)
        return self._top[k]

    def free(self) -> None:
        """Give back what the programs own beyond the session's buffers."""
        for program in (self.decode, self.chunk, self.head_last, *(top.program for top in self._top.values())):
            program.free()
        for _, tiled in self._tiled.values():
            tiled.free()
        if "head_all" in self.__dict__:
            self.head_all.free()
