"""A kernel's unit of work: what its hottest loop makes in one pass, and what that costs a chip.

A shader's instruction count says little by itself; instructions for each weight, or for each cache row and head, can
be held against the bytes that the same unit must be read from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from harness.chips import LANE_INSTRUCTIONS_OF_A_MATRIX, Chip
from model.kernels import cache_kind, weight_kind
from model.layout import latent_row_bytes
from vkbackend.isa import Counts, Loop, find_loops, hottest
from vkbackend.program import Launch

UNIT = 32  # weights that a lane decodes at a time (shaders/include/unit.glsl)
# shaders/attention_latent.comp on a GPU: pairs of a row that one pass scores, by the cache's type (others: a block),
# and rows of which one pass takes the values.
SCORED_PAIRS = {GGMLQuantizationType.F16: 32, GGMLQuantizationType.F32: 16}
BLOCK_PAIRS, ROWS_AT_ONCE = 16, 4
PACKED_COLUMNS, PACKED_ROWS = 64, 8  # the same of shaders/attention_packed.comp


@dataclass(frozen=True)
class Work:
    """What one pass of the hottest loop does.

    Attributes:
        unit: its name, "weight" or "cache row and head".
        per_lane: units that a lane makes in a pass, of its launch and the subgroup's size.
        inner_passes: passes of the inner loops, in order, in a pass of the hottest.
        bytes_read: bytes that a unit must be read from memory: what no cache can save.
        around: None where the loop is an outermost one; else how many loops farther out than the hottest.
    """

    unit: str
    per_lane: Callable[[Launch, int], float]
    inner_passes: Callable[[Launch], tuple[float, ...]]
    bytes_read: Callable[[Launch], float]
    around: int | None = None


@dataclass(frozen=True)
class UnitCost:
    """What a unit of work costs: lane instructions, bytes that lanes load, and seconds on a chip by either bound."""

    unit: str
    valu: float
    loaded_bytes: float
    bytes_read: float
    compute_seconds: float | None = None
    memory_seconds: float | None = None

    @property
    def governs(self) -> str | None:
        """The bound that is the slower one; None without a chip's figures."""
        if self.compute_seconds is None or self.memory_seconds is None:
            return None
        return "memory" if self.memory_seconds >= self.compute_seconds else "compute"

    @property
    def share(self) -> float | None:
        """Of the memory roofline, what the vector instructions leave, if all else is hidden."""
        if self.compute_seconds is None or self.memory_seconds is None:
            return None
        return self.memory_seconds / max(self.compute_seconds, self.memory_seconds)


def _weight_bytes(launch: Launch) -> float:
    """Bytes of a weight as the file stores it."""
    block, size = GGML_QUANT_SIZES[weight_kind(launch.kernel)]
    return size / block


def _weight_bytes_a_token(launch: Launch) -> float:
    """A weight read once for each token of a tile; whether caches keep it for the next tile is the device's affair."""
    return _weight_bytes(launch) / launch.spec["TOKENS"]


def _row_bytes_a_head(launch: Launch) -> float:
    """A latent row, and the copied values, read once for all heads of the model."""
    latent, rope, heads = launch.spec["LATENT"], launch.spec["ROPE"], launch.push["heads"]
    kind = cache_kind(launch.kernel)
    copied = latent_row_bytes(latent, kind) if "REDUNDANT_V" in launch.kernel.macros else 0
    return (latent_row_bytes(latent + rope, kind) + copied) / heads


def _attention_passes(launch: Launch) -> tuple[float, ...]:
    """Of the loops that score a tile's rows and that take their values."""
    spec = launch.spec
    if "ARRAYS_IN_MEMORY" in launch.kernel.macros:
        return spec["TILE"], spec["TILE"]
    pairs = (spec["LATENT"] + spec["ROPE"]) // 2
    scored = SCORED_PAIRS.get(cache_kind(launch.kernel), BLOCK_PAIRS)
    return -(-pairs // scored), -(-spec["TILE"] // ROWS_AT_ONCE)


def _packed_passes(launch: Launch) -> tuple[float, ...]:
    spec = launch.spec
    return -(-(spec["LATENT"] + spec["ROPE"]) // PACKED_COLUMNS), -(-spec["TILE"] // PACKED_ROWS)


def _rows_and_heads(launch: Launch, lanes: int) -> float:
    return launch.spec["TILE"] * launch.spec["HEADS"] / lanes


def _tile_of_a_lane(launch: Launch, lanes: int) -> float:
    return UNIT * launch.spec["ROWS"] * launch.spec["TOKENS"] / lanes


def _pieces(launch: Launch) -> tuple[float, ...]:
    """Of the loop over a unit's pieces (shaders/include/fragments.glsl)."""
    return (UNIT * 2 / 16,)


def _none(launch: Launch) -> tuple[float, ...]:
    return ()


def _rows(launch: Launch, lanes: int) -> float:
    """A unit of each row."""
    return UNIT * launch.spec["ROWS"]


def _rows_by_tokens(launch: Launch, lanes: int) -> float:
    return _rows(launch, lanes) * launch.spec["TOKENS"]


def _step_by_tokens(launch: Launch, lanes: int) -> float:
    """shaders/matmul_dot.comp: of formats in blocks of 256, two units at once."""
    return _rows_by_tokens(launch, lanes) * (2 if GGML_QUANT_SIZES[weight_kind(launch.kernel)][0] > UNIT else 1)


WORK = {
    "matvec.comp": Work("weight", _rows, _none, _weight_bytes),
    "matvec_rows.comp": Work("weight", _rows, _none, _weight_bytes),
    "matmul.comp": Work("weight and token", _rows_by_tokens, _none, _weight_bytes_a_token),
    "matmul_dot.comp": Work("weight and token", _step_by_tokens, _none, _weight_bytes_a_token),
    "matmul_halves.comp": Work("weight and token", _tile_of_a_lane, _pieces, _weight_bytes_a_token, around=1),
    "matmul_cooperative.comp": Work("weight and token", _tile_of_a_lane, _none, _weight_bytes_a_token, around=0),
    "embed.comp": Work("weight", lambda launch, lanes: UNIT, _none, _weight_bytes),
    "attention_latent.comp": Work("cache row and head", _rows_and_heads, _attention_passes, _row_bytes_a_head),
    "attention_packed.comp": Work("cache row and head", _rows_and_heads, _packed_passes, _row_bytes_a_head),
}


def unit_cost(launch: Launch, assembly: str, subgroup: int, chip: Chip | None) -> UnitCost | None:
    """The cost of a unit of the launch's work by its assembly; None for a kernel whose unit is not told, or where no
    loop has the inner loops that its work is told by."""
    work = WORK.get(launch.kernel.file)
    if work is None:
        return None
    passes = work.inner_passes(launch)
    loops = find_loops(assembly)
    if work.around is not None:
        loops = hottest(loops)[-1 - work.around :][:1]
    loops = [loop for loop in loops if not passes or len(loop.inner) == len(passes)]
    if not loops:
        return None

    def one_pass(loop: Loop) -> Counts:
        return loop.total(passes)

    counts = max((one_pass(loop) for loop in loops), key=lambda c: c.valu)
    made = work.per_lane(launch, subgroup) * (2 if "GATED" in launch.kernel.macros else 1)
    bytes_read = work.bytes_read(launch)
    cost = UnitCost(work.unit, counts.valu / made, counts.loaded_bytes / made, bytes_read)
    if chip is None:
        return cost
    matrices = counts.matrices * (LANE_INSTRUCTIONS_OF_A_MATRIX / subgroup - 1)  # of which each is counted once
    return UnitCost(
        *(cost.unit, cost.valu, cost.loaded_bytes, bytes_read),
        compute_seconds=(cost.valu + matrices / made) / chip.lane_instructions,
        memory_seconds=bytes_read / chip.bandwidth,
    )
