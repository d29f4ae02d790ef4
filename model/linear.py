"""Matrix products as launches: one token by the matrix-vector kernel, a chunk by the matrix-matrix kernel.

Tensors that were split over buffers take one launch a buffer; callers see one product. Offsets and strides are in
elements; ``batch`` goes over a stack's matrices (heads), ``token`` over the chunk's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from model import kernels
from model.weights import Weight
from vkbackend.buffer import Buffer
from vkbackend.kernel import Kernel
from vkbackend.program import Program

# Workgroup shapes. lavapipe (subgroups of 8): measured, Q4_K 2048 x 2048, 8 rows a subgroup for one token; 2 rows a lane by
# 4 tokens for a chunk (27 GFLOP/s, against 22 at 2 x 16, where compiling takes five times as long).
MATVEC_ROWS_CPU, MATVEC_ROWS_GPU = 8, 4
MATMUL_ROWS, MATMUL_TOKENS = 2, 4


@dataclass(frozen=True)
class View:
    """Where a product's vectors lie in a buffer: start, distance between batch entries, distance between tokens."""

    buffer: Buffer
    offset: int = 0
    batch: int = 0
    token: int = 0


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def matvec_rows(program: Program) -> int:
    """Rows that one subgroup of the matrix-vector kernel handles."""
    return MATVEC_ROWS_CPU if program.device.info.kind == "cpu" else MATVEC_ROWS_GPU


def linear(
    program: Program,
    weight: Weight,
    x: View,
    y: View,
    *,
    tokens: int,
    params: Buffer,
    accumulate: bool = False,
    cache_extent: str = "",
) -> None:
    """y[token][batch] (+)= W[batch] x[token][batch] for every matrix of ``weight``.

    ``tokens`` is the chunk's capacity (1: matrix-vector). ``cache_extent`` is "ROWS" or "UNITS" when the weight is a cache
    of which only the filled rows, or columns, take part.
    """
    extent = {f"{cache_extent}_FROM_CACHE": "1"} if cache_extent else {}
    for shard in weight.shards:
        stacked = weight.matrices > 1
        rows = weight.rows if stacked else shard.end - shard.first
        push = _push(weight, x, y, accumulate) | {
            "rows": rows,
            "scale_base": shard.scale_base,
            "matrix_first": shard.first if stacked else 0,
            "matrix_end": shard.end if stacked else 1,
            "y_offset": y.offset + (0 if stacked else shard.first),
        }
        buffers = {"weights": shard.buffer, "x": x.buffer, "y": y.buffer}
        if tokens == 1:
            per_group = matvec_rows(program)
            kernel, spec = kernels.MATVEC, {"ROWS": per_group}
            if cache_extent:
                kernel, buffers["params"] = kernels.MATVEC_CACHE, params
            grid = _rows_grid(program, _ceil(rows, per_group), weight.matrices)
        else:
            kernel, spec = kernels.MATMUL, {"ROWS": MATMUL_ROWS, "TOKENS": MATMUL_TOKENS}
            buffers["params"] = params
            per_group = MATMUL_ROWS * program.device.subgroup_size
            grid = (_ceil(rows, per_group), _ceil(tokens, MATMUL_TOKENS), weight.matrices)
        _launch(program, kernel.variant(**extent), weight, buffers, grid, spec, push)


def routed_linear(
    program: Program,
    weight: Weight,
    x: View,
    y: View,
    *,
    tokens: int,
    used: int,
    routing: dict[str, Buffer],
    params: Buffer,
) -> None:
    """y[token][slot] = W[expert of (token, slot)] x, the experts' ids read on the device.

    ``x.batch`` is 0 when a token's slots share one input (gate, up), else the distance between slots (down); then inputs
    of all (token, slot) pairs must be consecutive. ``routing`` holds the buffers chosen, counts and pairs.
    """
    shared = x.batch == 0
    for shard in weight.shards:
        push = _push(weight, x, y, False) | {
            "rows": weight.rows,
            "scale_base": shard.scale_base,
            "matrix_first": shard.first,
            "matrix_end": shard.end,
            "y_offset": y.offset,
        }
        buffers = {"weights": shard.buffer, "x": x.buffer, "y": y.buffer}
        if tokens == 1:
            per_group = matvec_rows(program)
            grid = _rows_grid(program, _ceil(weight.rows, per_group), used)
            buffers["experts"] = routing["chosen"]
            _launch(program, kernels.MATVEC_ROUTED, weight, buffers, grid, {"ROWS": per_group}, push)
            continue
        spec = {
            "ROWS": MATMUL_ROWS,
            "TOKENS": MATMUL_TOKENS,
            "CAPACITY": tokens,
            "X_DIVISOR": used if shared else 1,
        }
        push |= {"x_token": x.token if shared else x.batch, "y_token": y.batch}
        buffers |= {"params": params, "counts": routing["counts"], "pairs": routing["pairs"]}
        per_group = MATMUL_ROWS * program.device.subgroup_size
        # Every token may choose the same expert, so each expert's grid has room for the whole chunk.
        grid = (_ceil(weight.rows, per_group), _ceil(tokens, MATMUL_TOKENS), weight.matrices)
        _launch(program, kernels.MATMUL_ROUTED, weight, buffers, grid, spec, push)


def _push(weight: Weight, x: View, y: View, accumulate: bool) -> dict[str, int | float]:
    return {
        "units": weight.units,
        "x_offset": x.offset,
        "x_batch": x.batch,
        "x_token": x.token,
        "y_batch": y.batch,
        "y_token": y.token,
        "accumulate": int(accumulate),
    }


def _rows_grid(program: Program, tiles: int, batch: int) -> tuple[int, int, int]:
    """Row tiles over x and, past the device's limit there, over z."""
    limit = program.device.info.max_workgroup_count[0]
    layers = _ceil(tiles, limit)
    return (_ceil(tiles, layers), batch, layers)


def _launch(
    program: Program,
    kernel: Kernel,
    weight: Weight,
    buffers: dict[str, Buffer],
    grid: tuple[int, int, int],
    spec: dict[str, int],
    push: dict[str, int | float],
) -> None:
    program.launch(kernels.for_format(kernel, weight.kind), buffers, grid, spec=spec, push=push, label=weight.name)
