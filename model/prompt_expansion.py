"""Keys and values of all heads, expanded from a tile's latent rows, for chunks of so many tokens that it pays.

Absorbed, a query meets a row with R + P numbers for its score and R for its value; expanded with N + P and V, but first
R (N + V) multiply-adds make each head's key and value of a row. They are halves, like the rows and the weights that
they are made with, so that the same tiled products serve both. A chunk with numbers beyond the largest half is begun
anew absorbed (Forward.prompt).

Letters: H heads, R kv_lora, N qk_nope, P qk_rope, V v_head, S positions of a tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from model import kernels
from model.config import ModelConfig
from model.half_columns import EIGHT, HalfColumns, eights
from model.scratch import Scratch
from model.weights import Weight
from vkbackend.buffer import Buffer
from vkbackend.program import Program

# What a multiply-add of an expansion costs, of one that it saves, on lavapipe (results/performance-log.md).
_EXPANDING = 0.85
_NEVER = 2**32


def expands_from(config: ModelConfig) -> int:
    """Tokens of a chunk from which expanding every row costs less than it saves, whatever the depth."""
    c = config
    saved = 2 * c.kv_lora - c.qk_nope - c.v_head  # multiply-adds a head, token and row
    return ceil(_EXPANDING * c.kv_lora * (c.qk_nope + c.v_head) / saved) if saved > 0 else _NEVER


@dataclass(frozen=True)
class ExpandedRow:
    """Eights of halves of which a head's key and value are made: a key's own part, its part that all heads share, the
    value."""

    own: int
    shared: int
    value: int

    @classmethod
    def of(cls, config: ModelConfig) -> ExpandedRow | None:
        """None where a part would begin inside an eight, or a query or value inside a vec4."""
        c = config
        if c.kv_lora % EIGHT or c.qk_nope % EIGHT or c.qk_rope % 4 or c.v_head % 4:
            return None
        return cls(eights(c.qk_nope), eights(c.qk_rope), eights(c.v_head))

    @property
    def key(self) -> int:
        return self.own + self.shared

    @property
    def width(self) -> int:
        return self.key + self.value

    def words(self, config: ModelConfig, tile: int) -> dict[str, int]:
        """32-bit words of each scratch buffer by name."""
        c = config
        tallest = c.n_head * max(c.kv_lora, c.v_head)
        return {
            "tile_heads": c.n_head * tile * self.width * EIGHT // 2,  # halves [H, S, N + P + V]
            "head_weights": c.n_head * c.kv_lora * self.width * EIGHT // 2,  # halves [H, R, N + P + V]
            "head_source": c.n_head * c.kv_lora * max(c.qk_nope, c.v_head),  # attn_k_b, then attn_v_b, in f32
            "row_ids": 2 + tallest,  # parameters by which the embedding's kernel takes all rows
            "too_large": 1,  # whether a weight, key or value was beyond the largest half
        }

    def emit_weights(
        self, program: Program, scratch: Scratch, config: ModelConfig, weights: Mapping[str, Weight]
    ) -> None:
        """A layer's ``head_weights``, of its attn_k_b [H, R, N] and attn_v_b [H, V, R]."""
        c = config
        sources = (
            ("attn_k_b", 0, {"pairs": c.qk_nope // 2, "latent": c.qk_nope, "column": 1}),
            ("attn_v_b", self.key, {"pairs": c.v_head // 2, "latent": 1, "column": c.kv_lora}),
        )
        for name, first, push in sources:
            weight = weights[name]
            emit_all_rows(program, weight, scratch["row_ids"], scratch["head_source"])
            push |= {"rows": c.kv_lora, "head": weight.rows * weight.columns}
            push |= {"words": self.width * EIGHT // 2, "first": first * EIGHT // 2}
            buffers = {"source": scratch["head_source"], "halves": scratch["head_weights"]}
            buffers["too_large"] = scratch["too_large"]
            program.launch(kernels.PROMPT_WEIGHTS, buffers, (c.kv_lora, c.n_head, 1), push=push)

    def emit_tile(
        self, program: Program, scratch: Scratch, config: ModelConfig, tile: int, each: int, copied: bool
    ) -> None:
        """A tile's ``tile_heads``, ``each`` positions a workgroup, of its latent rows; with ``copied`` values are made
        of the cache's copy of their latent part, as that layout has it."""
        key_rows = "tile_rows", eights(config.latent_dim)
        if not copied:
            self._part(program, scratch, config, tile, each, key_rows, 0, self.width)
            return
        self._part(program, scratch, config, tile, each, key_rows, 0, self.key)
        value_rows = "tile_values", eights(config.kv_lora)
        self._part(program, scratch, config, tile, each, value_rows, self.key, self.width)

    def _part(
        self,
        program: Program,
        scratch: Scratch,
        config: ModelConfig,
        tile: int,
        each: int,
        rows: tuple[str, int],
        first: int,
        end: int,
    ) -> None:
        """Columns ``first`` to ``end``, in eights, of rows in the buffer of that name, so many eights apart."""
        device = program.device
        name, row = rows
        columns = HalfColumns.choose(device, EIGHT * (end - first))
        kernel = kernels.for_device(kernels.PROMPT_EXPAND, device.info.kind)
        program.launch(
            columns.kernel(kernel, "weights"),
            {
                "rows": scratch[name],
                "weights": scratch["head_weights"],
                "expanded": scratch["tile_heads"],
                "tile": scratch["tile"],
                "too_large": scratch["too_large"],
            },
            (-(-EIGHT * (end - first) // columns.block), -(-tile // each), config.n_head),
            spec={"ROWS": each},
            push={
                "latent": config.kv_lora,
                "row": 2 * row,
                "width": columns.takes(self.width),
                "column_first": columns.takes(first),
                "column_end": columns.takes(end),
                "copied_first": columns.takes(self.own),
                "copied_end": columns.takes(self.key),
                "tile": tile,
            },
            deep=True,
        )


def emit_all_rows(program: Program, weight: Weight, ids: Buffer, out: Buffer) -> None:
    """All rows of a stack of matrices in f32, one after the other; ``ids`` are parameters that name them in order."""
    rows = 1 if not weight.stacked else weight.rows
    for shard in weight.shards:
        program.launch(
            kernels.for_format(kernels.EMBED, weight.kind, weight.interleaved),
            {"weights": shard.buffer, "x": out, "params": ids},
            (weight.rows, weight.matrices, 1),  # on one axis 128 heads have more than many devices allow
            push={
                "units": weight.units,
                "scale_base": shard.scale_base,
                "row_first": shard.first * rows,
                "row_end": shard.end * rows,
                "width": weight.columns,
                "across": weight.rows,
            },
            label=weight.name,
        )
