"""What one launch must move and compute: bytes that it has to read and write, each once, and f32 operations.

Letters: T tokens, E experts, K chosen ones a token, H heads. Operations are counted of products and attention, 2 for a
multiply-add; what else a kernel computes is of no account beside its bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from harness.shader_work import WORK
from harness.timing.job import BenchJob
from model.kernels import CHUNK_PRODUCTS, LATENT_ATTENTION, MATMUL_DOT, MATVEC, cache_kind, weight_kind
from model.layout import UNIT, latent_row_bytes
from model.quantized_inputs import BLOCK_WORDS

F32 = 4  # bytes
ELEMENT = "element"


@dataclass(frozen=True)
class Amount:
    """Of one launch.

    Attributes:
        units: of the kernel's work (``harness.shader_work``), or elements of its output.
        read: bytes of what it only reads.
        written: bytes that it writes, and that it reads of what it writes.
    """

    unit: str
    units: float
    read: float
    written: float
    flops: float = 0.0

    @property
    def nbytes(self) -> float:
        """All that memory must move."""
        return self.read + self.written


def amount(job: BenchJob) -> Amount:
    """What the job's launch must do, whatever its choice of constants."""
    return _AMOUNTS[job.kernel.file](job)


def routed_counts(job: BenchJob) -> NDArray[np.int64]:
    """Tokens of each expert of the launch's shard, by ``routing``. int64 [experts of the shard]"""
    experts = np.bincount(routing(job).reshape(-1), minlength=experts_of(job))
    return experts[int(job.push["matrix_first"]) : int(job.push["matrix_end"])]


def routing(job: BenchJob) -> NDArray[np.int64]:
    """Expert ids [T, K + A], of a token all different, drawn alike for every expert; the same for the same shapes.
    Behind them the A shared experts, where the launch has them among the routed ones."""
    c = job.config
    rng = np.random.default_rng((c.n_expert, job.tokens))
    chosen = np.argsort(rng.random((job.tokens, c.n_expert)), axis=1)[:, : c.n_expert_used]
    always = np.arange(c.n_expert, experts_of(job))
    return np.concatenate([chosen, np.broadcast_to(always, (job.tokens, always.size))], axis=1)


def experts_of(job: BenchJob) -> int:
    """Experts that a launch over a chunk's pairs knows: each has its place in a routed product's grid."""
    return int(job.push.get("experts", job.choices[0].grid[2]))


def slots_of(job: BenchJob) -> int:
    """Experts of one token that a product of chosen ones takes: where they are not summed, each is a batch entry."""
    grid = job.choices[0].grid
    return int(job.push.get("slots", grid[1] if job.kernel.file == MATVEC.file else grid[2]))


def _pairs(job: BenchJob) -> int:
    """Cache positions that the tokens attend to, together: a token sees what is before it and itself."""
    last = int(job.push.get("last", job.n_past + job.tokens))
    first = int(job.push.get("first", 0))
    seen = np.minimum(job.n_past + 1 + np.arange(job.tokens), last) - first
    return int(np.maximum(seen, 0).sum())


def _product(job: BenchJob) -> Amount:
    push, macros = job.push, job.kernel.macros
    live = job.n_past + job.tokens
    rows = live if "ROWS_FROM_CACHE" in macros else int(push["rows"])
    columns = UNIT * (-(-live // UNIT) if "UNITS_FROM_CACHE" in macros else int(push["units"]))
    matrices = int(push["matrix_end"]) - int(push["matrix_first"])
    vectors = job.tokens * matrices  # that are multiplied with a matrix
    inputs = vectors if push["x_batch"] else job.tokens
    if "CHOSEN" in macros:
        matrices = vectors = slots_of(job)
        inputs = vectors if push["x_batch"] else 1
    elif "ROUTED" in macros:
        counts = routed_counts(job)
        matrices, vectors = int((counts > 0).sum()), int(counts.sum())
        inputs = job.tokens if job.choices[0].spec["X_DIVISOR"] > 1 else vectors
    block, size = GGML_QUANT_SIZES[weight_kind(job.kernel)]
    outputs = 1 if "SUMMED" in macros else vectors
    if "GATED" in macros:  # two matrices of each input make one output
        matrices, vectors = 2 * matrices, 2 * vectors
    weights = matrices * rows * columns
    written = outputs * rows * (2 if push["accumulate"] else 1)
    products = vectors * rows * columns
    column = 4 * BLOCK_WORDS / UNIT if job.kernel.file == MATMUL_DOT.file else F32
    read = weights / block * size + column * inputs * columns
    return Amount(WORK[job.kernel.file].unit, products, read, F32 * written, 2 * products)


def _attention(job: BenchJob) -> Amount:
    spec, heads, macros = job.choices[0].spec, int(job.push["heads"]), job.kernel.macros
    latent, rope = spec["LATENT"], spec["ROPE"]
    kind = cache_kind(job.kernel)
    row = latent_row_bytes(latent + rope, kind)
    row += latent_row_bytes(latent, kind) if "REDUNDANT_V" in macros else 0
    rows = min(job.n_past + job.tokens, int(job.push.get("last", 2**32))) - int(job.push.get("first", 0))
    units = _pairs(job) * heads
    queries, sums = (F32 * job.tokens * heads * width for width in (latent + rope, latent))
    flops = 2 * units * (latent + rope + latent)
    return Amount(WORK[job.kernel.file].unit, units, rows * row + queries, sums, flops)


def _rows_of_a_tile(job: BenchJob) -> Amount:
    positions = min(job.choices[0].grid[0], job.n_past)
    row, halves = latent_row_bytes(2 * int(job.push["pairs"]), cache_kind(job.kernel)), 2 * job.push["words"]
    return Amount(ELEMENT, positions * halves, positions * row, 2 * positions * halves)


def tile_pairs(job: BenchJob) -> int:
    """Positions of the timed tile, all before the chunk, by tokens and heads."""
    return min(int(job.push["tile"]), job.n_past) * job.tokens * job.choices[0].grid[2]


def _scores(job: BenchJob) -> Amount:
    pairs, width = tile_pairs(job), 4 * int(job.push["quads"])
    queries = job.tokens * job.choices[0].grid[2]
    keys = pairs // job.tokens if job.push["key_head"] else pairs // queries
    return Amount("score", pairs, width * (F32 * queries + 2 * keys), F32 * pairs, 2 * pairs * width)


def _weights_of_a_tile(job: BenchJob) -> Amount:
    pairs = min(int(job.push["tile"]), job.n_past) * job.tokens * int(job.push["heads"])
    return Amount("score", pairs, 0, 2 * F32 * pairs)


def _values(job: BenchJob) -> Amount:
    pairs, columns = tile_pairs(job), int(job.push["columns"])
    queries = job.tokens * job.choices[0].grid[2]
    values = pairs // job.tokens if job.push["value_head"] else pairs // queries
    return Amount("score", pairs, F32 * pairs + 2 * values * columns, F32 * queries * columns, 2 * pairs * columns)


def _expansion(job: BenchJob) -> Amount:
    push, heads = job.push, job.choices[0].grid[2]
    each = 4 if "FOURS" in job.kernel.macros else 8
    made = each * int(push["column_end"] - push["column_first"])
    copied = each * int(push["copied_end"] - push["copied_first"]) if push["column_first"] < push["copied_end"] else 0
    positions, latent = min(int(push["tile"]), job.n_past), int(push["latent"])
    read = 2 * (positions * (latent + copied) + heads * latent * (made - copied))
    units = positions * heads * made
    return Amount(ELEMENT, units, read, 2 * units, 2 * latent * positions * heads * (made - copied))


def _half_weights(job: BenchJob) -> Amount:
    rows, heads, _ = job.choices[0].grid
    elements = rows * heads * 2 * int(job.push["pairs"])
    return Amount(ELEMENT, elements, F32 * elements, 2 * elements)


def _elements(
    read: Callable[[BenchJob], float],
    written: Callable[[BenchJob], float],
    in_place: Callable[[BenchJob], float] = lambda job: 0,
) -> Callable[[BenchJob], Amount]:
    """Of a kernel that reads and writes so many f32, ``in_place`` of those that it writes too."""

    def made(job: BenchJob) -> Amount:
        return Amount(ELEMENT, written(job), F32 * read(job), F32 * (written(job) + in_place(job)))

    return made


def _embed(job: BenchJob) -> Amount:
    block, size = GGML_QUANT_SIZES[weight_kind(job.kernel)]
    width = job.tokens * job.push["width"]
    return Amount(WORK[job.kernel.file].unit, width, width / block * size, F32 * width)


def _norm(job: BenchJob) -> Amount:
    tokens, width = 1 if "LAST_TOKEN" in job.kernel.macros else job.tokens, job.push["width"]
    return Amount(ELEMENT, tokens * width, F32 * (tokens + 1) * width, F32 * tokens * width)


def _quantized(job: BenchJob) -> Amount:
    elements = job.tokens * job.push["vectors"] * job.push["columns"]
    return Amount(ELEMENT, elements, F32 * elements, 4 * BLOCK_WORDS / UNIT * elements)


def _latent_cache(job: BenchJob) -> Amount:
    latent, rope, macros = int(job.push["latent"]), int(job.push["rope"]), job.kernel.macros
    kind = GGMLQuantizationType.F32 if "PER_HEAD" in macros else cache_kind(job.kernel)
    widths = [latent + rope, *([latent] if "REDUNDANT_V" in macros else [])]
    written = job.tokens * sum(latent_row_bytes(width, kind) for width in widths)
    return Amount(ELEMENT, job.tokens * sum(widths), F32 * job.tokens * (latent + rope), written)


def _cache_per_head(job: BenchJob) -> Amount:
    push, heads = job.push, job.choices[0].grid[0]
    written = job.tokens * heads * (push["nope"] + push["rope"] + push["v_dim"])
    read = job.tokens * (heads * (push["nope"] + push["v_dim"]) + push["rope"])
    return Amount(ELEMENT, written, F32 * read, (4 if "CACHE_F32" in job.kernel.macros else 2) * written)


def _softmax(job: BenchJob) -> Amount:
    scores = _pairs(job) * job.choices[0].grid[1]
    return Amount("score", scores, 0, 2 * F32 * scores)


def _rope(job: BenchJob) -> float:
    return job.tokens * job.push["heads"] * job.push["rope"]


def _per_token(name: str) -> Callable[[BenchJob], float]:
    return lambda job: job.tokens * job.push[name]


_AMOUNTS: dict[str, Callable[[BenchJob], Amount]] = {
    "argmax.comp": _elements(lambda j: j.push["count"] * ("FINAL" in j.kernel.macros) + j.push["count"], lambda j: 1),
    "attention_combine.comp": _elements(
        lambda j: j.choices[0].grid[0] * j.push["splits"] * (j.push["latent"] + 2),
        lambda j: j.choices[0].grid[0] * j.push["latent"],
    ),
    **dict.fromkeys(LATENT_ATTENTION, _attention),
    "cache_per_head.comp": _cache_per_head,
    "embed.comp": _embed,
    "group_by_expert.comp": _elements(
        lambda j: j.tokens * j.push["used"], lambda j: j.tokens * j.push["used"] + j.push["experts"]
    ),
    "latent_cache.comp": _latent_cache,
    **dict.fromkeys(CHUNK_PRODUCTS, _product),
    "matvec_rows.comp": _product,
    "matvec.comp": _product,
    "moe_sum.comp": _elements(
        lambda j: j.tokens * j.push["width"] * (j.push["used"] + j.push["has_shared"]),
        _per_token("width"),
        _per_token("width"),
    ),
    "prompt_expand.comp": _expansion,
    "prompt_rows.comp": _rows_of_a_tile,
    "prompt_scores.comp": _scores,
    "prompt_softmax.comp": _weights_of_a_tile,
    "prompt_values.comp": _values,
    "prompt_weights.comp": _half_weights,
    "quantize_inputs.comp": _quantized,
    "rms_norm.comp": _norm,
    "rope_query.comp": _elements(_rope, _rope),
    "route.comp": _elements(
        lambda j: (j.tokens + 1) * j.push["experts"], lambda j: 2 * j.tokens * (j.push["used"] + j.push["always"])
    ),
    "silu_mul.comp": _elements(_per_token("per_token"), _per_token("per_token"), _per_token("per_token")),
    "softmax_causal.comp": _softmax,
    "top_k_bound.comp": _elements(lambda j: j.push["groups"], lambda j: 2),
    "top_k_collect.comp": _elements(lambda j: j.push["count"], lambda j: 2),
}
TIMED = frozenset(_AMOUNTS)  # kernels of the forward pass; the backend's own are measured by `devices --measure`
