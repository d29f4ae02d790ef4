"""Matrix products as launches, of one token or of a chunk of tokens.

Tensors that were split over buffers take one launch a buffer; callers see one product. Offsets and strides are in
elements; ``batch`` goes over a stack's matrices (heads), ``token`` over the chunk's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from model import kernels
from model.block_formats import IN_PIECES
from model.layout import UNIT
from model.weights import NARROW_SUBGROUP, Shard, Weight
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.kernel import Kernel
from vkbackend.program import Program
from vkbackend.tuning import Entry

Q = GGMLQuantizationType

# One token. Wide subgroups: matvec.comp, this many rows a subgroup: RADV makes 48 registers of two on phoenix, 10 waves
# a SIMD to hide loads by, for nearly all formats; of four 64, 8 waves.
# Narrow ones (lavapipe's 8): matvec_rows.comp, this many rows a lane, which share the inputs: many pay where blocks are
# read as texels; elsewhere most time goes into loading them lane by lane (results/performance-log.md).
MATVEC_ROWS = 2
LANE_ROWS, LANE_ROWS_IN_PIECES = 1, 8
# A chunk: rows a lane by tokens of matmul.comp. On lavapipe 2 x 16 is slower than 2 x 4 and takes five times as long to
# compile; 4 x 4 takes 0.86 of its time for Q4_K as texels. RADV on phoenix predicts 22% less time a result for 2 x 8
# than for 2 x 4, no spills.
MATMUL_NARROW, MATMUL_NARROW_IN_PIECES, MATMUL_WIDE = (2, 4), (4, 4), (2, 8)
MOST_RESULTS = 64  # sums that a lane of a tuned tiling keeps; lavapipe compiles 256 for more than two minutes


@dataclass(frozen=True)
class View:
    """Where a product's vectors lie in a buffer: start, distance between batch entries, distance between tokens."""

    buffer: Buffer
    offset: int = 0
    batch: int = 0
    token: int = 0


@dataclass(frozen=True)
class Norm:
    """An RMS norm that a product of one token takes its input through, where ``can_fold`` says so."""

    weight: Buffer
    eps: float


@dataclass(frozen=True)
class Source:
    """What a block's first products read: vectors, and the norm that they still have to go through, if any."""

    view: View
    norm: Norm | None = None


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Tiling:
    """Which kernel, by its file, serves ``tokens``, and how many rows and tokens one of its workgroups makes."""

    kernel: str
    spec: dict[str, int]
    rows: int
    tokens: int

    @classmethod
    def choose(cls, device: Device, kind: GGMLQuantizationType, tokens: int, role: str = "") -> Tiling:
        """What the device's tuning says of products of that kind and ``role``, else the usual one for its subgroups."""
        name = purpose(kind, tokens, role)
        tuned = device.tuning.find(name)
        if tuned is not None:
            wrong = unfit(tuned, tokens, role)
            if not wrong:
                return cls.of(tuned, device.subgroup_size)
            device.tuning.reject(name, wrong)
        return cls.of(usual(kind, tokens, device.subgroup_size, role), device.subgroup_size)

    @classmethod
    def of(cls, entry: Entry, lanes: int) -> Tiling:
        """The tiling that a kernel's constants stand for on subgroups of ``lanes``."""
        spec = dict(entry.constants)
        rows = spec["ROWS"] * (1 if entry.kernel == kernels.MATVEC.file else lanes)
        return cls(entry.kernel, spec, rows, spec.get("TOKENS", 1))


ROLES = ("", "chosen", "routed", "cache", "gated", "summed")


def purpose(kind: GGMLQuantizationType, tokens: int, role: str) -> str:
    """What a tuning calls products with weights of that kind, of one token or a chunk; ``role``, of ROLES, is "" for a
    plain matrix, "chosen" and "routed" for a token's and a chunk's experts, "cache" for a cache taken as a matrix,
    "gated" for two matrices of one input whose outputs are gated, "summed" for a token's experts added up."""
    return " ".join(filter(None, ("linear", role, kind.name.lower(), "token" if tokens == 1 else "chunk")))


def unfit(entry: Entry, tokens: int, role: str = "") -> str:
    """Why no product of one token (``tokens`` 1), or of a chunk, in that role can be launched so; "" where it can."""
    fitting = (kernels.MATVEC, kernels.MATVEC_ROWS) if tokens == 1 else (kernels.MATMUL,)
    names = {kernel.file: kernel.spec for kernel in fitting}.get(entry.kernel)
    if names is None:
        return f"has the kernel {entry.kernel}, expected {' or '.join(kernel.file for kernel in fitting)}"
    if set(entry.constants) != set(names):
        return f"has the constants {', '.join(entry.constants) or 'none'}, expected {', '.join(names)}"
    rows, each = entry.constants["ROWS"], entry.constants.get("TOKENS", 1)
    most = MOST_RESULTS // (2 if role == "gated" else 1)
    if not (rows >= 1 and each >= 1 and rows * each <= most):
        return f"has {rows} rows by {each} tokens a lane, expected 1 to {most} results"
    return ""


def usual(kind: GGMLQuantizationType, tokens: int, lanes: int, role: str = "") -> Entry:
    """By subgroup width and token count; the constants above say why. Each row of a gated product is two, one of each
    matrix, so that it makes half as many."""
    narrow, in_pieces, matrices = lanes < NARROW_SUBGROUP, kind in IN_PIECES, 2 if role == "gated" else 1
    if tokens > 1:
        rows, each = MATMUL_WIDE if not narrow else MATMUL_NARROW_IN_PIECES if in_pieces else MATMUL_NARROW
        return Entry(kernels.MATMUL.file, {"ROWS": rows, "TOKENS": each})
    if narrow:
        rows = LANE_ROWS_IN_PIECES if in_pieces else LANE_ROWS
        return Entry(kernels.MATVEC_ROWS.file, {"ROWS": max(1, rows // matrices)})
    return Entry(kernels.MATVEC.file, {"ROWS": MATVEC_ROWS // matrices})


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
    norm: Norm | None = None,
    tiling: Tiling | None = None,
) -> None:
    """y[token][batch] (+)= W[batch] x[token][batch] for every matrix of ``weight``.

    ``tokens`` is the chunk's capacity (1: matrix-vector). ``cache_extent`` is "ROWS" or "UNITS" when the weight is a
    cache of which only the filled rows, or columns, take part. ``norm`` is folded into the product. ``tiling`` is the
    device's unless another is given.
    """
    tiling = tiling or Tiling.choose(program.device, weight.kind, tokens, "cache" if cache_extent else "")
    extent = {f"{cache_extent}_FROM_CACHE": "1"} if cache_extent else {}
    for shard in weight.shards:
        push = _push(weight, shard, x, y, accumulate)
        buffers = {"weights": shard.buffer, "x": x.buffer, "y": y.buffer}
        tiles = _ceil(int(push["rows"]), tiling.rows)
        grid = (tiles, _ceil(tokens, tiling.tokens), weight.matrices)
        if tiling.kernel == kernels.MATVEC.file:
            kernel = kernels.MATVEC_CACHE if cache_extent else kernels.MATVEC
            grid = _rows_grid(program, tiles, weight.matrices)
            push["tiles_x"] = grid[0]
        elif tiling.kernel == kernels.MATVEC_ROWS.file:
            kernel = kernels.MATVEC_ROWS_CACHE if cache_extent else kernels.MATVEC_ROWS
        else:
            kernel = kernels.MATMUL
        if "params" in dict(kernel.bindings):
            buffers["params"] = params
        kernel = _folded(kernel.variant(**extent), norm, buffers, push)
        _launch(program, kernel, weight, buffers, grid, tiling.spec, push, deep=bool(cache_extent))


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
    tiling: Tiling | None = None,
) -> None:
    """y[token][slot] = W[expert of (token, slot)] x, the experts' ids read on the device.

    ``x.batch`` is 0 when a token's slots share one input (gate, up), else the distance between slots (down); then
    inputs of all (token, slot) pairs must be consecutive. ``routing`` holds the buffers chosen, counts and pairs;
    ``tiling`` as in ``linear``.
    """
    tiling = tiling or Tiling.choose(program.device, weight.kind, tokens, "chosen" if tokens == 1 else "routed")
    shared = x.batch == 0
    for shard in weight.shards:
        push = _push(weight, shard, x, y, accumulate=False)
        buffers = {"weights": shard.buffer, "x": x.buffer, "y": y.buffer}
        tiles = _ceil(int(push["rows"]), tiling.rows)
        if tokens == 1:
            buffers["experts"] = routing["chosen"]
            wide = tiling.kernel == kernels.MATVEC.file
            kernel = kernels.MATVEC_CHOSEN if wide else kernels.MATVEC_ROWS_CHOSEN
            _launch_rows(program, kernel, weight, buffers, tiling, push, used, label=weight.name)
            continue
        spec = tiling.spec | {"CAPACITY": tokens, "X_DIVISOR": used if shared else 1}
        push |= {"x_token": x.token if shared else x.batch, "y_token": y.batch}
        buffers |= {"params": params, "counts": routing["counts"], "pairs": routing["pairs"]}
        # Every token may choose the same expert, so each expert's grid has room for the whole chunk.
        grid = (tiles, _ceil(tokens, tiling.tokens), weight.matrices)
        _launch(program, kernels.MATMUL_ROUTED, weight, buffers, grid, spec, push)


def can_fold(*weights: Weight) -> bool:
    """Whether products of one token with these can take a norm in: rows of whole units, which end where x does."""
    return all(weight.columns % UNIT == 0 for weight in weights)


def can_gate(gate: Weight, up: Weight) -> bool:
    """Whether one launch can make both products and take a norm in: the same format, shape and split over buffers."""
    parts = [(w.kind, w.matrices, w.rows, w.columns, [(s.first, s.end) for s in w.shards]) for w in (gate, up)]
    return parts[0] == parts[1] and can_fold(gate)


def _folded(kernel: Kernel, norm: Norm | None, buffers: dict[str, Buffer], push: dict[str, int | float]) -> Kernel:
    """The kernel with the norm, whose buffer and constant are added."""
    if norm is None:
        return kernel
    buffers["norm"] = norm.weight
    push["eps"] = float(norm.eps)
    return kernels.normed(kernel)


def gated_linear(
    program: Program,
    gate: Weight,
    up: Weight,
    x: View,
    y: View,
    norm: Norm,
    *,
    chosen: Buffer | None = None,
    used: int = 1,
    tiling: Tiling | None = None,
) -> None:
    """y[slot] = silu(gate x') * (up x') for one token and x' = norm(x), where ``can_gate``: of a plain matrix, or of
    the ``used`` experts whose ids ``chosen`` holds. ``tiling`` as in ``linear``; a row of it is one of each matrix."""
    tiling = tiling or Tiling.choose(program.device, gate.kind, 1, "gated")
    wide = tiling.kernel == kernels.MATVEC.file
    if chosen is None:
        kernel, ids = kernels.MATVEC if wide else kernels.MATVEC_ROWS, {}
    else:
        kernel, ids = kernels.MATVEC_CHOSEN if wide else kernels.MATVEC_ROWS_CHOSEN, {"experts": chosen}
    for shard, other in zip(gate.shards, up.shards, strict=True):
        push = _push(gate, shard, x, y, accumulate=False)
        buffers = {"weights": shard.buffer, "x": x.buffer, "y": y.buffer, "up": other.buffer} | ids
        made = _folded(kernels.gated(kernel), norm, buffers, push)
        _launch_rows(program, made, gate, buffers, tiling, push, used, label=both_names(gate, up))


def summed_linear(
    program: Program,
    weight: Weight,
    x: View,
    y: View,
    *,
    used: int,
    chosen: Buffer,
    shares: Buffer,
    tiling: Tiling | None = None,
) -> None:
    """y += sum over the ``used`` slots of shares[slot] * W[chosen[slot]] x[slot], for one token; ``tiling`` as in
    ``linear``."""
    tiling = tiling or Tiling.choose(program.device, weight.kind, 1, "summed")
    kernel = kernels.MATVEC_SUMMED if tiling.kernel == kernels.MATVEC.file else kernels.MATVEC_ROWS_SUMMED
    for shard in weight.shards:
        push = _push(weight, shard, x, y, accumulate=True) | {"slots": used}
        buffers = {"weights": shard.buffer, "x": x.buffer, "y": y.buffer, "experts": chosen, "shares": shares}
        _launch_rows(program, kernel, weight, buffers, tiling, push, 1, label=weight.name)


def absorbing_linear(
    program: Program,
    weight: Weight,
    x: View,
    y: View,
    token_buffers: Mapping[str, Buffer],
    token_push: Mapping[str, int | float],
    cache_type: str,
    tiling: Tiling | None = None,
) -> None:
    """y[head] = W[head] x[head] for one token, whose latent row is stored and whose queries are rotated beside it
    (shaders/include/absorbing.glsl) by ``token_buffers`` and ``token_push``; ``tiling`` as in ``linear``."""
    tiling = tiling or Tiling.choose(program.device, weight.kind, 1)
    (shard,) = weight.shards
    kernel = kernels.MATVEC if tiling.kernel == kernels.MATVEC.file else kernels.MATVEC_ROWS
    kernel = kernels.for_cache(kernels.absorbing(kernel, "values" in token_buffers), cache_type)
    push = {**_push(weight, shard, x, y, accumulate=False), **token_push}
    buffers = {"weights": shard.buffer, "x": x.buffer, "y": y.buffer, **token_buffers}
    _launch_rows(program, kernel, weight, buffers, tiling, push, weight.matrices + 2, label=weight.name)


def both_names(one: Weight, other: Weight) -> str:
    """What a launch over two of a layer's tensors is called: 'blk.0.ffn_gate + ffn_up'."""
    return f"{one.name} + {other.name.rsplit('.', 1)[-1]}"


def _launch_rows(
    program: Program,
    kernel: Kernel,
    weight: Weight,
    buffers: dict[str, Buffer],
    tiling: Tiling,
    push: dict[str, int | float],
    batch: int,
    label: str,
) -> None:
    """One token's product in the tiling's form, over ``batch`` matrices."""
    tiles = _ceil(int(push["rows"]), tiling.rows)
    grid = (tiles, 1, batch)
    if tiling.kernel == kernels.MATVEC.file:
        grid = _rows_grid(program, tiles, batch)
        push["tiles_x"] = grid[0]
    _launch(program, kernel, weight, buffers, grid, tiling.spec, push, label=label)


def _push(weight: Weight, shard: Shard, x: View, y: View, accumulate: bool) -> dict[str, int | float]:
    """Push constants for one shard: some of a stack's matrices, or some rows of the only one."""
    return {
        "rows": weight.rows if weight.stacked else shard.end - shard.first,
        "units": weight.units,
        "scale_base": shard.scale_base,
        "matrix_first": shard.first if weight.stacked else 0,
        "matrix_end": shard.end if weight.stacked else 1,
        "x_offset": x.offset,
        "x_batch": x.batch,
        "x_token": x.token,
        "y_offset": y.offset + (0 if weight.stacked else shard.first),
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
    deep: bool = False,
    label: str = "",
) -> None:
    made = kernels.for_format(kernel, weight.kind, weight.interleaved)
    program.launch(made, buffers, grid, spec=spec, push=push, label=label or weight.name, deep=deep)
