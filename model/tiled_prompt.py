"""A prompt chunk as a run of programs: what stands between two layers' attention, and each layer's attention for one
tile, which the host replays for every tile of positions that is filled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from model.attention import AttentionBlock
from model.feed_forward import FeedForwardBlock
from model.prompt_attention import PromptAttention, PromptShape
from model.prompt_expansion import ExpandedRow
from model.scratch import Scratch
from vkbackend.device import Device
from vkbackend.program import Launch, Program


class TiledPrompt:
    """The programs for chunks of up to ``chunk`` tokens, over latent rows or what they are ``expanded`` to; made at the
    first run or when their launches are asked for."""

    def __init__(
        self,
        device: Device,
        embed: Callable[[Program, int], None],
        blocks: Sequence[tuple[AttentionBlock, FeedForwardBlock]],
        scratch: Scratch,
        shape: PromptShape,
        chunk: int,
        expanded: ExpandedRow | None = None,
    ) -> None:
        self._device, self._embed, self._blocks, self._expanded = device, embed, blocks, expanded
        self._scratch, self._shape, self._chunk = scratch, shape, chunk
        self._between: list[Program] = []
        self._tiles: list[Program] = []

    def _make(self) -> None:
        if self._between:
            return
        scratch, chunk = self._scratch, self._chunk
        program = Program(self._device, "prompt", scratch.workspace)
        self._embed(program, chunk)
        for index, (attention, feed_forward) in enumerate(self._blocks):
            tiles = PromptAttention(attention, self._shape, self._expanded)
            tiles.emit_before(program, scratch, chunk)
            self._between.append(program)
            tile = Program(self._device, f"tile of layer {index}")
            tiles.emit_tile(tile, scratch, chunk)
            self._tiles.append(tile)
            program = Program(self._device, "prompt", scratch.workspace)
            tiles.emit_after(program, scratch, chunk)
            feed_forward.emit(program, scratch, chunk)
        self._between.append(program)

    def run(self, n_past: int, n_tokens: int) -> None:
        """``n_tokens``, which the parameters hold, after ``n_past`` positions; leaves x as the chunk's program does."""
        self._make()
        end = n_past + n_tokens
        self._between[0].run(items=n_tokens)
        for tile, program in zip(self._tiles, self._between[1:], strict=True):
            for first in range(0, end, self._shape.tile):
                count = min(self._shape.tile, end - first)
                self._scratch["tile"].upload(np.array([first, count], np.uint32))
                tile.run(items=n_tokens, depth=count)
            program.run(items=n_tokens)

    def launches(self) -> list[Launch]:
        """All of them in order, a layer's tile once."""
        self._make()
        first, *others = self._between
        found = list(first.launches)
        for tile, program in zip(self._tiles, others, strict=True):
            found += [*tile.launches, *program.launches]
        return found

    def free(self) -> None:
        """Give back the recordings."""
        for program in (*self._between, *self._tiles):
            program.free()
