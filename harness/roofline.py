"""The performance model: bytes and operations of decoding and of a prompt, and the bound that a device's peaks set.

Letters: C cached rows (the context), H heads, L layers, R kv_lora, P rope, T prompt tokens.
The model counts what a path cannot avoid: every active weight once and every cache row once per decoded token, and its
own arithmetic in f32 (a prompt whose latent rows are expanded, or f16 arithmetic, can pass a prompt's bound). It leaves
out activations and, for the unfused path, the score matrix (8 bytes a head and row written and read, under 2% of
GLM-4.7-Flash's per-head cache). So it gives an upper bound on a path's speed, never an estimate of what a runtime
reaches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from harness.chips import Chip
from model.config import ModelConfig
from model.layout import CacheLayout, Path, active_parameters, cache_bytes_per_token, total_parameters
from model.tensors import expected_tensors

if TYPE_CHECKING:
    from vkbackend.peaks import Peaks as DevicePeaks

# Average of llama.cpp's Q4_K_M files (its quantize tool's table: 4.85 bits a weight). 3.58e9 active weights of
# GLM-4.7-Flash then are 2.17 GB a token. Adding up the mix tensor by tensor (Q4_K 4.5 bits, Q6_K for the output and
# half of the down projections, Q5_0 k_b, F32 routers) gives 2.22 GB: the average is within 3% of the true file.
Q4_K_M_BITS = 4.85


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights: all of them, and those that one decoded token reads."""

    total_bytes: int
    active_bytes: int
    source: str


@dataclass(frozen=True)
class Bound:
    """The least seconds that some work takes on a device, and why: bytes read, operations done, which of them
    governs."""

    bytes_read: float
    flops: float
    memory_seconds: float
    compute_seconds: float

    @property
    def seconds(self) -> float:
        return max(self.memory_seconds, self.compute_seconds)

    @property
    def governs(self) -> str:
        return "memory" if self.memory_seconds >= self.compute_seconds else "compute"


@dataclass(frozen=True)
class Peaks:
    """What a device can do at most: bytes/s and f32 operations/s, and whether that was measured or taken from a
    table."""

    bandwidth: float
    flops: float
    source: str

    @property
    def balance(self) -> float:
        return self.flops / self.bandwidth

    def bound(self, bytes_read: float, flops: float) -> Bound:
        return Bound(bytes_read, flops, bytes_read / self.bandwidth, flops / self.flops)


@dataclass(frozen=True)
class Line:
    """Seconds per token as a straight line in context, least squares: seconds = intercept + slope * context."""

    intercept: float
    slope: float
    slope_error: float | None

    def bytes_per_token(self, bandwidth: float) -> float:
        """The cache bytes per token of context that would make a memory-bound runtime have this slope."""
        return self.slope * bandwidth


def chip_peaks(chip: Chip) -> Peaks:
    return Peaks(chip.bandwidth, chip.flops, f"{chip.bandwidth_source}; {chip.flops_source}")


def best_peaks(before: "DevicePeaks", after: "DevicePeaks | None") -> tuple[Peaks, dict[str, list[float]]]:
    """The higher of two measurements, as a peak is what the device can do, not what it could while busy with others.

    ``after`` is None where the device was lost before it.
    """
    samples = {f"{name} before": values for name, values in before.samples.items()}
    if after is None:
        after = before
    else:
        samples |= {f"{name} after": values for name, values in after.samples.items()}
    bandwidth = max(before.bandwidth_bytes_per_s, after.bandwidth_bytes_per_s)
    flops = max(before.flops_per_s, after.flops_per_s)
    return Peaks(bandwidth, flops, "read and multiply-add kernels on this device"), samples


def estimated_weights(config: ModelConfig, bits: float = Q4_K_M_BITS) -> Weights:
    """Weights of a model that is no file yet, at an average of `bits` a weight."""
    return Weights(
        round(total_parameters(config) * bits / 8),
        round(active_parameters(config) * bits / 8),
        f"estimated at {bits} bits a weight, the average of Q4_K_M",
    )


def attention_flops_per_row(config: ModelConfig, path: Path) -> int:
    """Operations of all heads and layers against one cached row, for one query token.

    Latent: scores over R + P and values over R for each of H heads, 2 operations a multiply-add. Per head: scores
    over the key's width and values over the value's.
    """
    if path.layout is CacheLayout.PER_HEAD:
        width = config.key_dim + config.v_head
    else:
        width = config.latent_dim + config.kv_lora
    return 2 * config.n_head * width * config.n_layer


def flops_per_cache_byte(config: ModelConfig, path: Path) -> float:
    """Attention's arithmetic intensity in FLOP per cache byte: with f16, 38 for GLM-4.7-Flash's V-less latent, 1 per
    head."""
    return attention_flops_per_row(config, path) / cache_bytes_per_token(config, path.layout, path.cache_type)


def decode_bound(config: ModelConfig, active_weight_bytes: float, path: Path, context: int, peaks: Peaks) -> Bound:
    """One decoded token with `context` rows in the cache."""
    bytes_read = active_weight_bytes + context * cache_bytes_per_token(config, path.layout, path.cache_type)
    flops = 2 * active_parameters(config) + context * attention_flops_per_row(config, path)
    return peaks.bound(bytes_read, flops)


def prompt_bound(
    config: ModelConfig, weights: Weights, path: Path, tokens: int, chunk: int, peaks: Peaks, past: int = 0
) -> Bound:
    """A prompt of `tokens` after `past` cached rows, in passes of `chunk`: each pass reads the weights that its tokens
    need once and the rows cached so far once. The last token alone meets the output matrix.

    Attention is causal, so T tokens meet T(T+1)/2 rows beside those before them, each pass in its least form.
    """
    passes = [(past + first, min(chunk, tokens - first)) for first in range(0, tokens, chunk)]
    if not passes:
        return peaks.bound(0.0, 0.0)
    active, output = active_parameters(config), config.n_vocab * config.n_embd
    output_bytes = weights.active_bytes * output / active  # its types are not told apart
    weight_bytes = output_bytes + sum(_pass_weight_bytes(config, weights, n) - output_bytes for _, n in passes)
    rows_read = sum(before + n for before, n in passes)
    bytes_read = weight_bytes + rows_read * cache_bytes_per_token(config, path.layout, path.cache_type)
    attention = sum(_pass_attention_flops(config, path, before, n) for before, n in passes)
    return peaks.bound(bytes_read, 2 * (tokens * (active - output) + output) + attention)


def run_bound(
    config: ModelConfig, weights: Weights, path: Path, n_prompt: int, n_gen: int, depth: int, chunk: int, peaks: Peaks
) -> Bound:
    """A prompt after `depth` rows in passes of `chunk`, then `n_gen` decoded tokens, each of which meets itself too."""
    prompt = prompt_bound(config, weights, path, n_prompt, chunk, peaks, past=depth)
    contexts = (depth + n_prompt + i + 1 for i in range(n_gen))
    parts = [prompt, *(decode_bound(config, weights.active_bytes, path, context, peaks) for context in contexts)]
    return peaks.bound(sum(part.bytes_read for part in parts), sum(part.flops for part in parts))


def _pass_weight_bytes(config: ModelConfig, weights: Weights, tokens: int) -> float:
    """What one token needs, and of the other experts those that further tokens choose: with an even choice all but a
    share of (1 - used / experts) ** (tokens - 1), 1% after 73 tokens of GLM-4.7-Flash. An embedding is not read."""
    experts = sum(prod(shape) for name, shape in expected_tensors(config).items() if name.endswith("_exps.weight"))
    if not experts:
        return weights.active_bytes
    of_token = config.n_expert_used / config.n_expert
    others = experts * (1 - of_token) / (total_parameters(config) - active_parameters(config))
    other_bytes = others * (weights.total_bytes - weights.active_bytes)
    return weights.active_bytes + other_bytes * (1 - (1 - of_token) ** (tokens - 1))


def _pass_attention_flops(config: ModelConfig, path: Path, past: int, tokens: int) -> int:
    """Attention of ``tokens`` after ``past`` rows: over a latent cache absorbed, or with the rows before the pass
    expanded to each head's key and value, whichever is less; the pass's own take what its queries take absorbed."""
    c, pairs = config, tokens * past + tokens * (tokens + 1) // 2
    absorbed = pairs * attention_flops_per_row(config, path)
    if path.layout is CacheLayout.PER_HEAD:
        return absorbed
    a_head = pairs * (c.key_dim + c.v_head) + past * c.kv_lora * (c.qk_nope + c.v_head)
    return min(absorbed, 2 * c.n_layer * c.n_head * a_head)


def fit_line(contexts: Sequence[float], seconds: Sequence[float], relative: bool = False) -> Line | None:
    """Least squares through (context, seconds per token); None with fewer than two different contexts.

    ``relative``: of the errors relative to the seconds, which are about alike for all contexts. `slope_error` is the
    slope's standard error, None where two points leave nothing to estimate it from.
    """
    x = np.asarray(contexts, dtype=np.float64)
    y = np.asarray(seconds, dtype=np.float64)
    if len(set(x.tolist())) < 2:
        return None
    weights = y**-2 / (y**-2).mean() if relative else np.ones_like(y)
    middle = float(np.average(x, weights=weights))
    spread = float((weights * (x - middle) ** 2).sum())
    slope = float((weights * (x - middle) * y).sum() / spread)
    intercept = float(np.average(y, weights=weights) - slope * middle)
    if len(x) < 3:
        return Line(intercept, slope, None)
    residual = y - (intercept + slope * x)
    return Line(intercept, slope, float(np.sqrt((weights * residual**2).sum() / (len(x) - 2) / spread)))
