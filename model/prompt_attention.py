"""Attention of a long prompt chunk over the latent cache, a tile of positions at a time, as plain tiled products.

Each launch shares what it loads between a tile of positions and a block of tokens: scores of a tile go to scratch,
online softmax makes weights of them, and the values' product joins tile to tile. The host replays a layer's program for
each tile that is filled, so nothing is recorded for the rest of the context. Queries meet the latent rows themselves,
or in a long chunk the keys and values that these expand to (model/prompt_expansion.py).

Letters: T tokens of the chunk, H heads, R kv_lora, P qk_rope, S positions of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf import GGMLQuantizationType

from model import kernels
from model.attention import AttentionBlock
from model.cache import LatentShard
from model.config import ModelConfig
from model.half_columns import EIGHT, HalfColumns, eights
from model.layout import CacheLayout, Path
from model.prompt_expansion import ExpandedRow, expands_from
from model.scratch import SLACK_BYTES, Scratch
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.memory import buffer_limit
from vkbackend.program import Program

# Tokens from which tiles are worth it: a block's tokens share what is loaded (results/performance-log.md).
TILED_FROM = 16
# A lane's share of a launch: positions by tokens of scores, tokens of values. On lavapipe 4 x 16 scores reach 56
# GFLOP/s of its cores' time, 2 x 16 47, 8 x 16 52; 16 tokens' values 50, 8 tokens' 40, 32 as much but 3 s to compile.
_POSITIONS_CPU, _POSITIONS_GPU = 4, 2
_TOKENS = 16
_VALUE_TOKENS_CPU, _VALUE_TOKENS_GPU = 16, 8
_MOST_SCORES = 64 * 2**20  # bytes of a tile's scores, which shorten the tile where there are many tokens
_MOST_POSITIONS = 2048  # of a tile: past it, joining tiles costs nothing any more


@dataclass(frozen=True)
class PromptShape:
    """How the tiled kernels are cut for a device.

    Attributes:
        tile: positions, whole loads of scores by a subgroup.
        positions, tokens: that a lane, and a workgroup, of scores has.
        value_tokens: that a workgroup of values has, or positions of an expansion.
        expanded: how rows are expanded; None: they are not, whatever the chunk's tokens.
    """

    tile: int
    positions: int
    tokens: int
    value_tokens: int
    expanded: ExpandedRow | None

    @classmethod
    def choose(cls, device: Device, config: ModelConfig, path: Path, n_ctx: int, chunk: int) -> PromptShape | None:
        """None where tiles do not serve: a cache per head, or of f32, whose numbers halves would round (those of
        quantised caches are rounded too, by a fraction of their step); a chunk that is too short, or too long for one
        binding; rows that are no whole vec4s."""
        widths = (config.kv_lora, config.latent_dim)
        latent = path.layout is not CacheLayout.PER_HEAD and path.kind is not GGMLQuantizationType.F32
        if not latent or chunk < TILED_FROM or any(width % 4 for width in widths):
            return None
        cpu = device.info.kind == "cpu"
        whole, limit = 4 * device.subgroup_size, buffer_limit(device) - SLACK_BYTES
        expanded = cls._expanded(device, config, chunk, limit)
        a_position = [4 * config.n_head * chunk, 2 * EIGHT * eights(config.latent_dim)]  # bytes of scores, of a row
        if expanded is not None:
            a_position.append(2 * EIGHT * expanded.width * config.n_head)
        most = min(_MOST_POSITIONS, _MOST_SCORES // a_position[0], -(-n_ctx // whole) * whole)
        tile = min(max(whole, most), limit // max(a_position)) // whole * whole
        if tile == 0:
            return None
        return cls(
            tile,
            _POSITIONS_CPU if cpu else _POSITIONS_GPU,
            _TOKENS,
            _VALUE_TOKENS_CPU if cpu else _VALUE_TOKENS_GPU,
            expanded,
        )

    @staticmethod
    def _expanded(device: Device, config: ModelConfig, chunk: int, limit: int) -> ExpandedRow | None:
        """None where a chunk is too short for it, or the model's widths or the device's limits do not suit."""
        row = ExpandedRow.of(config)
        if row is None or chunk < expands_from(config):
            return None
        return row if 4 * max(row.words(config, 0).values()) <= limit else None

    def scratch_elements(self, config: ModelConfig, path: Path, chunk: int) -> dict[str, int]:
        """32-bit words of each buffer by name."""
        c = config
        rows = {"tile_rows": self.tile * eights(c.latent_dim) * EIGHT // 2}  # halves [S, R + P]
        if path.layout is CacheLayout.LATENT_V:
            rows["tile_values"] = self.tile * eights(c.kv_lora) * EIGHT // 2  # halves [S, R]
        return {
            "tile": 2,  # first position, positions
            "tile_scores": c.n_head * chunk * self.tile,  # [H, T, S]
            "tile_stats": 4 * chunk * c.n_head,  # [T, H]: maximum, sum, shrink
            **rows,
            **({} if self.expanded is None else self.expanded.words(config, self.tile)),
        }


@dataclass(frozen=True)
class PromptAttention:
    """One layer's attention for a chunk, in tiles: over latent rows, or over what they are ``expanded`` to."""

    block: AttentionBlock
    shape: PromptShape
    expanded: ExpandedRow | None

    def emit_before(self, program: Program, scratch: Scratch, chunk: int) -> None:
        """What stands before the first tile: the tokens' rows to the cache, their queries, weights that expand rows."""
        if self.expanded is None:
            self.block.emit_before(program, scratch, chunk)
            return
        self.block.emit_before_expanded(program, scratch, chunk)
        self.expanded.emit_weights(program, scratch, self.block.config, self.block.weights)

    def emit_after(self, program: Program, scratch: Scratch, chunk: int) -> None:
        """What follows the last tile: x += output."""
        if self.expanded is None:
            self.block.emit_after(program, scratch, chunk)
        else:
            self.block.emit_output(program, scratch, chunk)

    def emit_tile(self, program: Program, scratch: Scratch, chunk: int) -> None:
        """What the tile that scratch's ``tile`` names adds to ``latent_out`` with the queries in ``q_latent``; expanded
        to ``heads`` with those in ``q``."""
        c, tile, expanded = self.block.config, self.shape.tile, self.expanded
        copied = self._emit_rows(program, scratch)
        if expanded is None:
            row = eights(c.latent_dim)
            self._scores(program, scratch, chunk, scratch["q_latent"], c.latent_dim, scratch["tile_rows"], row, 0)
        else:
            expanded.emit_tile(program, scratch, c, tile, self.shape.value_tokens, copied)
            row = expanded.width
            self._scores(program, scratch, chunk, scratch["q"], c.key_dim, scratch["tile_heads"], row, tile * row)
        program.launch(
            kernels.PROMPT_SOFTMAX,
            {
                "scores": scratch["tile_scores"],
                "stats": scratch["tile_stats"],
                "params": scratch["params"],
                "tile": scratch["tile"],
            },
            (chunk, c.n_head, 1),
            push={"heads": c.n_head, "chunk": chunk, "tile": tile},
            deep=True,
        )
        if expanded is not None:
            head = tile * row, expanded.key
            self._values(program, scratch, chunk, scratch["tile_heads"], row, head, c.v_head, scratch["heads"])
        else:
            values, row = ("tile_values", eights(c.kv_lora)) if copied else ("tile_rows", row)
            self._values(program, scratch, chunk, scratch[values], row, (0, 0), c.kv_lora, scratch["latent_out"])

    def _emit_rows(self, program: Program, scratch: Scratch) -> bool:
        """The tile's rows as halves; whether values have rows of their own."""
        c, shards = self.block.config, self.block.cache.latent
        for shard in shards:
            self._rows(program, scratch, shard, shard.latent, c.latent_dim, "tile_rows")
            if shard.values is not None:
                self._rows(program, scratch, shard, shard.values, c.kv_lora, "tile_values")
        return shards[0].values is not None

    def _rows(
        self, program: Program, scratch: Scratch, shard: LatentShard, source: Buffer, width: int, target: str
    ) -> None:
        """The tile's rows of ``width`` numbers, as far as the shard has them."""
        kernel = kernels.for_cache(kernels.PROMPT_ROWS, self.block.cache.cache_type)
        push: dict[str, int | float] = {"pairs": width // 2, "words": eights(width) * EIGHT // 2}
        if len(self.block.cache.latent) > 1:
            kernel = kernels.for_shard(kernel, kernels.SHARD_PUSH)
            push |= {"first": shard.first, "last": shard.end}
        buffers = {"cache": source, "rows": scratch[target], "tile": scratch["tile"]}
        program.launch(kernel, buffers, (self.shape.tile, 1, 1), push=push)

    def _scores(
        self,
        program: Program,
        scratch: Scratch,
        chunk: int,
        q: Buffer,
        width: int,
        keys: Buffer,
        key_row: int,
        key_head: int,
    ) -> None:
        """``keys`` of ``width`` numbers, so many eights from position to position and from head to head."""
        c, shape = self.block.config, self.shape
        positions = shape.positions * program.device.subgroup_size
        program.launch(
            kernels.for_device(kernels.PROMPT_SCORES, program.device.info.kind),
            {
                "q": q,
                "keys": keys,
                "scores": scratch["tile_scores"],
                "params": scratch["params"],
                "tile": scratch["tile"],
            },
            (-(-shape.tile // positions), -(-chunk // shape.tokens), c.n_head),
            spec={"POSITIONS": shape.positions, "TOKENS": shape.tokens},
            push={
                "quads": width // 4,
                "q_token": c.n_head * width // 4,
                "q_head": width // 4,
                "key_row": key_row,
                "key_head": key_head,
                "chunk": chunk,
                "tile": shape.tile,
                "scale": c.attn_scale,
            },
            deep=True,
        )

    def _values(
        self,
        program: Program,
        scratch: Scratch,
        chunk: int,
        values: Buffer,
        row: int,
        head: tuple[int, int],
        columns: int,
        out: Buffer,
    ) -> None:
        """``values`` of so many columns, so many eights from position to position; ``head``: from head to head, and
        where the first begins."""
        c, shape, device = self.block.config, self.shape, program.device
        lanes = HalfColumns.choose(device, columns)
        program.launch(
            lanes.kernel(kernels.for_device(kernels.PROMPT_VALUES, device.info.kind), "values"),
            {
                "weights": scratch["tile_scores"],
                "values": values,
                "out": out,
                "stats": scratch["tile_stats"],
                "params": scratch["params"],
                "tile": scratch["tile"],
            },
            (-(-columns // lanes.block), -(-chunk // shape.value_tokens), c.n_head),
            spec={"TOKENS": shape.value_tokens},
            push={
                "heads": c.n_head,
                "columns": columns,
                "value_row": lanes.takes(row),
                "value_head": lanes.takes(head[0]),
                "value_first": lanes.takes(head[1]),
                "chunk": chunk,
                "tile": shape.tile,
            },
            deep=True,
        )
