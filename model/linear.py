"""Matrix products as launches, of one token or of a chunk of tokens.

Tensors that were split over buffers take one launch a buffer; callers see one product. Offsets and strides are in
elements; ``batch`` goes over a stack's matrices (heads), ``token`` over the chunk's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from model import kernels
from model.layout import UNIT
from model.quantized_inputs import quantized
from model.tiling import IN_HALVES, Tiling
from model.weights import Shard, Weight, reads_texels
from vkbackend.buffer import Buffer
from vkbackend.kernel import Kernel
from vkbackend.program import Program


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
    if tiling.kernel in kernels.CHUNK_PRODUCTS:
        kernel = tiling.of_chunk.plain
    else:
        kernel = tiling.of_token.cache if cache_extent else tiling.of_token.plain
    if cache_extent:
        kernel = kernel.variant(**{f"{cache_extent}_FROM_CACHE": "1"})
    x = _as_read(program, tiling, weight, x, weight.matrices, tokens, params)
    for shard in weight.shards:
        push = _push(weight, shard, x, y, accumulate)
        buffers = {"weights": shard.buffer, "x": x.buffer, "y": y.buffer}
        if "params" in dict(kernel.bindings):
            buffers["params"] = params
        made = _folded(kernel, norm, buffers, push)
        _launch(program, made, weight, buffers, tiling, push, weight.matrices, tokens, deep=bool(cache_extent))


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
    spec = {} if tokens == 1 else {"CAPACITY": tokens, "X_DIVISOR": used if shared else 1}
    x = _as_read(program, tiling, weight, x, used, tokens, params)
    for shard in weight.shards:
        push = _push(weight, shard, x, y, accumulate=False)
        buffers = {"weights": shard.buffer, "x": x.buffer, "y": y.buffer}
        if tokens == 1:
            buffers["experts"] = routing["chosen"]
            _launch(program, tiling.of_token.chosen, weight, buffers, tiling, push, used)
            continue
        push |= {"x_token": x.token if shared else x.batch, "y_token": y.batch}
        buffers |= {"params": params, "counts": routing["counts"], "pairs": routing["pairs"]}
        # Every token may choose the same expert, so each expert's grid has room for the whole chunk.
        _launch(program, tiling.of_chunk.routed, weight, buffers, tiling, push, weight.matrices, tokens, spec=spec)


def can_fold(*weights: Weight) -> bool:
    """Whether products of one token with these can take a norm in: rows of whole units, which end where x does."""
    return all(weight.columns % UNIT == 0 for weight in weights)


def can_gate(gate: Weight, up: Weight) -> bool:
    """Whether one launch can make both products and take a norm in: the same format, shape and split over buffers."""
    parts = [(w.kind, w.matrices, w.rows, w.columns, [(s.first, s.end) for s in w.shards]) for w in (gate, up)]
    return parts[0] == parts[1] and can_fold(gate)


def _as_read(
    program: Program, tiling: Tiling, weight: Weight, x: View, batch: int, tokens: int, params: Buffer
) -> View:
    """A product's inputs, of ``batch`` vectors a token where they are not shared, as its kernel reads them."""
    if tiling.kernel != kernels.MATMUL_DOT.file:
        return x
    label = f"{weight.name} inputs"
    return quantized(program, x, weight.columns, batch if x.batch else 1, tokens, params, label)


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
    kernel = tiling.of_token.plain if chosen is None else tiling.of_token.chosen
    ids = {} if chosen is None else {"experts": chosen}
    for shard, other in zip(gate.shards, up.shards, strict=True):
        push = _push(gate, shard, x, y, accumulate=False)
        buffers = {"weights": shard.buffer, "x": x.buffer, "y": y.buffer, "up": other.buffer} | ids
        made = _folded(kernels.gated(kernel), norm, buffers, push)
        _launch(program, made, gate, buffers, tiling, push, used, label=both_names(gate, up))


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
    for shard in weight.shards:
        push = _push(weight, shard, x, y, accumulate=True) | {"slots": used}
        buffers = {"weights": shard.buffer, "x": x.buffer, "y": y.buffer, "experts": chosen, "shares": shares}
        _launch(program, tiling.of_token.summed, weight, buffers, tiling, push, 1)


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
    kernel = kernels.for_cache(kernels.absorbing(tiling.of_token.plain, "values" in token_buffers), cache_type)
    push = {**_push(weight, shard, x, y, accumulate=False), **token_push}
    buffers = {"weights": shard.buffer, "x": x.buffer, "y": y.buffer, **token_buffers}
    _launch(program, kernel, weight, buffers, tiling, push, weight.matrices + 2)


def can_route(weight: Weight) -> bool:
    """Whether one launch can make this product, a router's, and choose the experts: of the format that routers have, in
    one buffer."""
    return weight.kind is GGMLQuantizationType.F32 and len(weight.shards) == 1


def routing_linear(
    program: Program,
    weight: Weight,
    x: View,
    logits: View,
    norm: Norm | None,
    choice_buffers: Mapping[str, Buffer],
    choice_spec: Mapping[str, int],
    choice_push: Mapping[str, int | float],
    tiling: Tiling | None = None,
) -> None:
    """logits = W x' of one token, where ``can_route``, and the choice of its experts by them. Buffers are those of
    kernels.routes; ``arrivals`` must hold 0, and does so again behind the launch. ``tiling`` as in ``linear``."""
    tiling = tiling or Tiling.choose(program.device, weight.kind, 1)
    (shard,) = weight.shards
    push = _push(weight, shard, x, logits, accumulate=False)
    buffers = {"weights": shard.buffer, "x": x.buffer, "y": logits.buffer, **choice_buffers}
    kernel = kernels.for_device(
        kernels.routes(_folded(tiling.of_token.plain, norm, buffers, push)), program.device.info.kind
    )
    push |= choice_push
    _launch(program, kernel, weight, buffers, tiling, push, 1, spec=choice_spec)


def both_names(one: Weight, other: Weight) -> str:
    """What a launch over two of a layer's tensors is called: 'blk.0.ffn_gate + ffn_up'."""
    return f"{one.name} + {other.name.rsplit('.', 1)[-1]}"


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


def _launch(
    program: Program,
    kernel: Kernel,
    weight: Weight,
    buffers: dict[str, Buffer],
    tiling: Tiling,
    push: dict[str, int | float],
    batch: int,
    tokens: int = 1,
    *,
    spec: Mapping[str, int] | None = None,
    label: str = "",
    deep: bool = False,
) -> None:
    """A shard's product with ``batch`` matrices in the tiling's form, ``spec`` being constants beside its own."""
    tiles = _ceil(int(push["rows"]), tiling.rows)
    grid = (tiles, _ceil(tokens, tiling.tokens), batch)
    if "tiles_x" in kernel.push:  # row tiles over x and, past the device's limit there, over z
        layers = _ceil(tiles, program.device.info.max_workgroup_count[0])
        grid = (_ceil(tiles, layers), batch, layers)
        push["tiles_x"] = grid[0]
    made = kernels.for_format(kernel, weight.kind, weight.interleaved)
    if tiling.kernel in kernels.CHUNK_PRODUCTS and reads_texels(program.device.info):
        made = kernels.with_texels(made, "x")
    if tiling.kernel in IN_HALVES:
        made = kernels.for_device(made, program.device.info.kind)
    program.launch(
        made, buffers, grid, spec=tiling.spec | dict(spec or {}), push=push, label=label or weight.name, deep=deep
    )
