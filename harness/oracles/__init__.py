"""What every kernel must compute: NumPy oracles, one file a family, that the tests and `shaders check` both run.

An oracle draws inputs, lays out buffers as the forward pass does and says what each written buffer must hold
afterwards, to the bit or within a tolerance that its comment derives. ``case.py`` is what it is written with,
``run.py`` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from harness.oracles import (
    activations,
    attention,
    caches,
    embedding,
    inputs,
    linear,
    prompt_attention,
    prompt_expansion,
    routing,
    token_products,
    top_k,
    transfers,
)
from harness.oracles.case import Case, Target

Oracle = Callable[[Target, np.random.Generator], Iterator[Case]]
ORACLES: dict[str, Oracle] = {
    "argmax.comp": activations.argmax_cases,
    "attention_combine.comp": attention.combine_cases,
    "attention_latent.comp": attention.latent_cases,
    "attention_packed.comp": attention.latent_cases,
    "cache_per_head.comp": caches.per_head_cases,
    "copy_words.comp": transfers.copy_cases,
    "embed.comp": embedding.cases,
    "fill_zero.comp": transfers.zero_cases,
    "group_by_expert.comp": routing.grouping_cases,
    "latent_cache.comp": caches.latent_cases,
    "matmul.comp": linear.cases,
    "matmul_dot.comp": linear.cases,
    "matmul_cooperative.comp": linear.cases,
    "matmul_halves.comp": linear.cases,
    "matvec.comp": token_products.cases,
    "matvec_rows.comp": token_products.cases,
    "moe_sum.comp": routing.sum_cases,
    "peak_arithmetic.comp": transfers.arithmetic_cases,
    "peak_read.comp": transfers.read_cases,
    "probe_subgroup.comp": transfers.probe_cases,
    "prompt_expand.comp": prompt_expansion.expand_cases,
    "prompt_rows.comp": prompt_attention.rows_cases,
    "prompt_scores.comp": prompt_attention.scores_cases,
    "prompt_softmax.comp": prompt_attention.softmax_cases,
    "prompt_values.comp": prompt_attention.values_cases,
    "prompt_weights.comp": prompt_expansion.weights_cases,
    "quantize_inputs.comp": inputs.quantize_cases,
    "rms_norm.comp": activations.norm_cases,
    "rope_query.comp": caches.rope_cases,
    "route.comp": routing.route_cases,
    "silu_mul.comp": activations.silu_cases,
    "softmax_causal.comp": attention.softmax_cases,
    "top_k_bound.comp": top_k.cases,
    "top_k_collect.comp": top_k.cases,
}
