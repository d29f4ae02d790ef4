"""Every kernel's declaration, side by side: bindings with access, specialization constants, push constants.

The shaders' own first lines say what each computes; the order here is their binding and constant order.
"""

from dataclasses import dataclass, replace

from gguf import GGMLQuantizationType

from vkbackend.kernel import Kernel

# Activations are f32; "params" holds n_past, n_tokens and the token ids (shaders/include/params.glsl).
LINEAR_PUSH = (
    "rows",
    "units",
    "scale_base",
    "matrix_first",
    "matrix_end",
    "x_offset",
    "x_batch",
    "x_token",
    "y_offset",
    "y_batch",
    "y_token",
    "accumulate",
)
_LINEAR = (("weights", "r"), ("x", "r"), ("y", "rw"))
_PARAMS = ("params", "r")

_MATVEC_PUSH = (*LINEAR_PUSH, "tiles_x")
MATVEC = Kernel("matvec.comp", _LINEAR, ("ROWS",), _MATVEC_PUSH)
MATVEC_CACHE = Kernel(
    "matvec.comp", (*_LINEAR, _PARAMS), ("ROWS",), _MATVEC_PUSH
)  # with ROWS_FROM_CACHE or UNITS_FROM_CACHE
MATVEC_CHOSEN = Kernel("matvec.comp", (*_LINEAR, ("experts", "r")), ("ROWS",), _MATVEC_PUSH, {"CHOSEN": "1"})
# y += the chosen experts' products by their shares (shaders/include/matvec_buffers.glsl).
MATVEC_SUMMED = Kernel(
    "matvec.comp",
    (*MATVEC_CHOSEN.bindings, ("shares", "r")),
    ("ROWS",),
    (*_MATVEC_PUSH, "slots"),
    {"CHOSEN": "1", "SUMMED": "1"},
)
# The same for narrow subgroups.
MATVEC_ROWS = Kernel("matvec_rows.comp", _LINEAR, ("ROWS",), LINEAR_PUSH)
MATVEC_ROWS_CACHE = Kernel("matvec_rows.comp", MATVEC_CACHE.bindings, ("ROWS",), LINEAR_PUSH)
MATVEC_ROWS_CHOSEN = Kernel("matvec_rows.comp", MATVEC_CHOSEN.bindings, ("ROWS",), LINEAR_PUSH, {"CHOSEN": "1"})
MATVEC_ROWS_SUMMED = Kernel(
    "matvec_rows.comp", MATVEC_SUMMED.bindings, ("ROWS",), (*LINEAR_PUSH, "slots"), MATVEC_SUMMED.macros
)
MATMUL = Kernel("matmul.comp", (*_LINEAR, _PARAMS), ("ROWS", "TOKENS"), LINEAR_PUSH)
MATMUL_ROUTED = Kernel(
    "matmul.comp",
    (*_LINEAR, _PARAMS, ("counts", "r"), ("pairs", "r")),
    ("ROWS", "TOKENS", "CAPACITY", "X_DIVISOR"),
    LINEAR_PUSH,
    {"ROUTED": "1"},
)
# The same by integer dot products, of inputs as QUANTIZE_INPUTS leaves them.
_DOT = ("shaderIntegerDotProduct",)
MATMUL_DOT = replace(MATMUL, file="matmul_dot.comp", needs=_DOT)
MATMUL_DOT_ROUTED = replace(MATMUL_ROUTED, file="matmul_dot.comp", needs=_DOT)

# The same in halves, with devices' 16-bit arithmetic and by cooperative matrices.
_HALVES = ("shaderFloat16",)
MATMUL_HALVES = replace(MATMUL, file="matmul_halves.comp", needs=_HALVES)
MATMUL_HALVES_ROUTED = replace(MATMUL_ROUTED, file="matmul_halves.comp", needs=_HALVES)
_MATRICES = (*_HALVES, "vulkanMemoryModel", "cooperativeMatrix")
MATMUL_COOPERATIVE = replace(MATMUL, file="matmul_cooperative.comp", needs=_MATRICES)
MATMUL_COOPERATIVE_ROUTED = replace(MATMUL_ROUTED, file="matmul_cooperative.comp", needs=_MATRICES)


@dataclass(frozen=True)
class TokenProducts:
    """One file's products of one token: of a plain matrix, of a cache taken as one, of the chosen experts, and these
    added up."""

    plain: Kernel
    cache: Kernel
    chosen: Kernel
    summed: Kernel


@dataclass(frozen=True)
class ChunkProducts:
    """One file's products of a chunk of tokens: of a plain matrix, and of the experts that tokens are routed to."""

    plain: Kernel
    routed: Kernel


TOKEN_PRODUCTS = {
    products.plain.file: products
    for products in (
        TokenProducts(MATVEC, MATVEC_CACHE, MATVEC_CHOSEN, MATVEC_SUMMED),
        TokenProducts(MATVEC_ROWS, MATVEC_ROWS_CACHE, MATVEC_ROWS_CHOSEN, MATVEC_ROWS_SUMMED),
    )
}
CHUNK_PRODUCTS = {
    products.plain.file: products
    for products in (
        ChunkProducts(MATMUL, MATMUL_ROUTED),
        ChunkProducts(MATMUL_DOT, MATMUL_DOT_ROUTED),
        ChunkProducts(MATMUL_HALVES, MATMUL_HALVES_ROUTED),
        ChunkProducts(MATMUL_COOPERATIVE, MATMUL_COOPERATIVE_ROUTED),
    )
}

QUANTIZE_INPUTS = Kernel(
    "quantize_inputs.comp",
    (("x", "r"), ("quantized", "w"), _PARAMS),
    push=("columns", "vectors", "x_offset", "x_batch", "x_token"),
)
EMBED = Kernel(
    "embed.comp",
    (("weights", "r"), ("x", "w"), _PARAMS),
    push=("units", "scale_base", "row_first", "row_end", "width", "across"),
)
RMS_NORM = Kernel(
    "rms_norm.comp",
    (("x", "r"), ("weight", "r"), ("y", "w"), _PARAMS),
    ("HELD",),
    ("width", "x_token", "y_token", "eps"),
)
LATENT_CACHE = Kernel(
    "latent_cache.comp",
    (("kv", "r"), ("weight", "r"), ("rope_tables", "r"), _PARAMS, ("cache", "w")),
    push=("latent", "rope", "kv_first", "kv_token", "n_high", "eps"),
)
LATENT_CACHE_V = Kernel(
    "latent_cache.comp",
    (*LATENT_CACHE.bindings, ("values", "w")),
    push=LATENT_CACHE.push,
    macros={"REDUNDANT_V": "1"},
)
# The same with SHARD: one of the position ranges that a cache larger than a binding is split into.
SHARD_PUSH = ("first", "last")
SHARD_SLOTS_PUSH = (*SHARD_PUSH, "slot_first", "slots")
LATENT_EXPAND = LATENT_CACHE.variant(PER_HEAD="1")
ROPE_QUERY = Kernel(
    "rope_query.comp",
    (("q", "r"), ("rope_tables", "r"), _PARAMS, ("out", "w")),
    push=("heads", "rope", "q_head", "q_rope", "out_head", "out_rope", "n_high"),
)
ATTENTION_LATENT = Kernel(
    "attention_latent.comp",
    (("q", "r"), ("cache", "r"), ("out", "w"), ("stats", "w"), _PARAMS),
    ("LATENT", "ROPE", "HEADS", "TILE", "SPLITS", "LATENT_PAIRS", "ROPE_PAIRS"),
    ("heads", "scale"),
)
ATTENTION_LATENT_V = Kernel(
    "attention_latent.comp",
    (*ATTENTION_LATENT.bindings, ("values", "r")),
    ATTENTION_LATENT.spec,
    ATTENTION_LATENT.push,
    {"REDUNDANT_V": "1"},
)
# The same over quantised caches, by packed arithmetic.
_PACKED = (*_DOT, *_HALVES)
ATTENTION_PACKED = replace(ATTENTION_LATENT, file="attention_packed.comp", needs=_PACKED)
ATTENTION_PACKED_V = replace(ATTENTION_LATENT_V, file="attention_packed.comp", needs=_PACKED)


@dataclass(frozen=True)
class LatentAttention:
    """One file's attention over a latent cache: whose rows have the values, and with these in a copy of their own."""

    plain: Kernel
    with_values: Kernel


LATENT_ATTENTION = {
    forms.plain.file: forms
    for forms in (
        LatentAttention(ATTENTION_LATENT, ATTENTION_LATENT_V),
        LatentAttention(ATTENTION_PACKED, ATTENTION_PACKED_V),
    )
}
ATTENTION_COMBINE = Kernel(
    "attention_combine.comp", (("parts", "r"), ("stats", "r"), ("out", "w")), push=("latent", "splits")
)
# A long prompt chunk's attention, tile by tile (model/prompt_attention.py).
PROMPT_ROWS = Kernel("prompt_rows.comp", (("cache", "r"), ("rows", "w"), ("tile", "r")), push=("pairs", "words"))
PROMPT_SCORES = Kernel(
    "prompt_scores.comp",
    (("q", "r"), ("keys", "r"), ("scores", "w"), _PARAMS, ("tile", "r")),
    ("POSITIONS", "TOKENS"),
    ("quads", "q_token", "q_head", "key_row", "key_head", "chunk", "tile", "scale"),
)
PROMPT_SOFTMAX = Kernel(
    "prompt_softmax.comp", (("scores", "rw"), ("stats", "rw"), _PARAMS, ("tile", "r")), push=("heads", "chunk", "tile")
)
PROMPT_VALUES = Kernel(
    "prompt_values.comp",
    (("weights", "r"), ("values", "r"), ("out", "rw"), ("stats", "r"), _PARAMS, ("tile", "r")),
    ("TOKENS",),
    ("heads", "columns", "value_row", "value_head", "value_first", "chunk", "tile"),
)
# A chunk that expands each tile's latent rows to keys and values of all heads: weights for that, and the rows.
_TOO_LARGE = ("too_large", "w")  # shaders/include/half_range.glsl
PROMPT_WEIGHTS = Kernel(
    "prompt_weights.comp",
    (("source", "r"), ("halves", "w"), _TOO_LARGE),
    push=("pairs", "rows", "head", "latent", "column", "words", "first"),
)
PROMPT_EXPAND = Kernel(
    "prompt_expand.comp",
    (("rows", "r"), ("weights", "r"), ("expanded", "w"), ("tile", "r"), _TOO_LARGE),
    ("ROWS",),
    ("latent", "row", "width", "column_first", "column_end", "copied_first", "copied_end", "tile"),
)
CACHE_PER_HEAD = Kernel(
    "cache_per_head.comp",
    (("k_nope", "r"), ("latent_rope", "r"), ("v_new", "r"), _PARAMS, ("k_cache", "w"), ("v_cache", "rw")),
    push=("head_first", "heads", "nope", "rope", "v_dim", "latent", "n_ctx", "key_row"),
)
SOFTMAX_CAUSAL = Kernel("softmax_causal.comp", (("scores", "rw"), _PARAMS), push=("capacity", "n_ctx", "scale"))
ROUTE = Kernel(
    "route.comp",
    (("logits", "r"), ("bias", "r"), ("chosen", "w"), ("shares", "rw"), _PARAMS),
    ("PER_LANE", "GROUP", "GROUPS_PER_LANE"),
    ("experts", "used", "always", "sigmoid_gate", "normalise", "scale", "groups_used", "group_best"),
)
GROUP_BY_EXPERT = Kernel(
    "group_by_expert.comp",
    (("chosen", "r"), ("counts", "w"), ("pairs", "w"), _PARAMS),
    push=("experts", "used", "capacity"),
)
SILU_MUL = Kernel("silu_mul.comp", (("gate", "rw"), ("up", "r"), _PARAMS), push=("per_token",))
MOE_SUM = Kernel(
    "moe_sum.comp",
    (("routed", "r"), ("weights", "r"), ("shared", "r"), ("x", "rw"), _PARAMS),
    push=("width", "used", "has_shared"),
)
ARGMAX = Kernel("argmax.comp", (("logits", "r"), ("best", "w")), push=("count", "share"))
ARGMAX_FINAL = Kernel(
    "argmax.comp",
    (("best", "r"), ("tokens", "w"), ("params", "rw")),
    push=("count", "share", "kept"),
    macros={"FINAL": "1"},
)
# The k likeliest (model/top_k.py).
TOP_K_BOUND = Kernel("top_k_bound.comp", (("best", "r"), ("top", "w")), ("PER_LANE",), ("groups", "k"))
TOP_K_COLLECT = Kernel("top_k_collect.comp", (("logits", "r"), ("top", "rw")), push=("count", "share", "capacity"))


def absorbing(kernel: Kernel, redundant_values: bool) -> Kernel:
    """The product with attn_k_b that also stores the token's latent row, or two, and rotates its queries
    (``shaders/include/absorbing.glsl``)."""
    latent = LATENT_CACHE_V if redundant_values else LATENT_CACHE
    kv, weight, rope_tables, params, *caches = latent.bindings
    return replace(
        kernel.variant(ABSORBS="1", **latent.macros),
        bindings=(*kernel.bindings, params, kv, weight, rope_tables, *caches),
        push=(*kernel.push, *latent.push, *(name for name in ROPE_QUERY.push if name not in latent.push)),
    )


def gated(kernel: Kernel) -> Kernel:
    """The product of two matrices with one input, whose outputs are gated (GATED of
    ``shaders/include/matvec_buffers.glsl``)."""
    return replace(kernel.variant(GATED="1"), bindings=(*kernel.bindings, ("up", "r")))


def normed(kernel: Kernel) -> Kernel:
    """The product of the RMS norm of its input (NORMED of ``shaders/include/matvec_buffers.glsl``)."""
    made = kernel.variant(NORMED="1")
    return replace(made, bindings=(*kernel.bindings, ("norm", "r")), push=(*kernel.push, "eps"))


def routes(kernel: Kernel) -> Kernel:
    """The product whose outputs are a token's router logits, by which it chooses the experts (ROUTES of
    ``shaders/include/matvec_buffers.glsl``)."""
    made = kernel.variant(ROUTES="1")
    bindings = (*kernel.bindings, ("bias", "r"), ("chosen", "w"), ("shares", "rw"), ("arrivals", "rw"))
    push = tuple(name for name in ROUTE.push if name != "experts")
    return replace(made, bindings=bindings, spec=(*kernel.spec, *ROUTE.spec), push=(*kernel.push, *push))


def for_shard(kernel: Kernel, push: tuple[str, ...]) -> Kernel:
    """The kernel that serves one shard of a split latent cache, with the push constants that say which."""
    return replace(kernel.variant(SHARD="1"), push=(*kernel.push, *push))


def for_device(kernel: Kernel, kind: str) -> Kernel:
    """The kernel as a device of ``kind`` needs the arrays of its lanes (``shaders/include/array_loop.glsl``)."""
    return kernel.variant(ARRAYS_IN_MEMORY="1") if kind == "cpu" else kernel


def with_texels(kernel: Kernel, binding: str) -> Kernel:
    """The kernel that reads ``binding`` as texels, where it has such a form."""
    return replace(kernel.variant(TEXELS="1"), texels=(*kernel.texels, binding))


def for_cache(kernel: Kernel, cache_type: str) -> Kernel:
    """The kernel over a cache of that type (``shaders/include/latent_row.glsl``)."""
    return kernel if cache_type == "f16" else kernel.variant(**{f"CACHE_{cache_type.upper()}": "1"})


def cache_kind(kernel: Kernel) -> GGMLQuantizationType:
    """The type of the cache that a kernel is for."""
    named = [name.removeprefix("CACHE_") for name in kernel.macros if name.startswith("CACHE_")]
    return GGMLQuantizationType[named[0]] if named else GGMLQuantizationType.F16


def for_format(kernel: Kernel, kind: GGMLQuantizationType, interleaved: bool = False) -> Kernel:
    """The kernel compiled for one weight format (``shaders/include/format_*.glsl``), with the blocks of a row one after
    the other or ``interleaved`` with those of its neighbours (``shaders/include/weights.glsl``)."""
    made = kernel.variant(**{f"FORMAT_{kind.name.upper()}": "1"})
    texels = (*kernel.texels, "weights", "up")
    return replace(made.variant(INTERLEAVED="1"), texels=texels) if interleaved else made


def weight_kind(kernel: Kernel) -> GGMLQuantizationType:
    """The weight format that a kernel is compiled for."""
    (name,) = (name.removeprefix("FORMAT_") for name in kernel.macros if name.startswith("FORMAT_"))
    return GGMLQuantizationType[name]
