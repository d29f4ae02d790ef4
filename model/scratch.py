"""Activations of one session: f32 buffers sized for a chunk of tokens, shared by the single-token program."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from model.config import ModelConfig
from model.layout import CacheLayout, Path, whole_units
from model.quantized_inputs import quantized_words
from model.rope import frequencies, magnitude
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.memory import Use

# Linear kernels read whole units of 32 columns; what a short last row reads past its end meets zero weights and must
# only be finite, so every buffer ends in this many zeroed elements.
SLACK = 32
SLACK_BYTES = 4 * SLACK
ARGMAX_GROUPS = 64
AHEAD = 8  # tokens that the device decodes at most before the host reads them
TOP_GROUPS = 512  # shares of the logits whose best bound the k likeliest from below
TOP_LIST = 2048  # candidates that reach the bound; where more do, the host chooses among all
# What products read.
_INPUTS = ("normed", "q_a_normed", "q", "heads", "gate", "shared_hidden", "hidden", "expanded", "latent_out")
# What the host writes or reads around a token; all else is touched by kernels alone.
_USES = dict.fromkeys(("params", "tile"), Use.PARAMETERS) | dict.fromkeys(
    ("tokens", "top", "logits", "too_large"), Use.RESULTS
)


def rope_tables(config: ModelConfig, n_ctx: int) -> tuple[np.ndarray, int]:
    """(cos, sin) of 256 * a * theta_i, then of b * theta_i for b < 256, as f32 [rows, rope / 2, 2]; and the rows of a.

    The theta_i are model/rope.py's frequencies, computed in f64; its magnitude is in the rows of a.
    """
    n_high = n_ctx // 256 + 1
    angles = np.concatenate([256.0 * np.arange(n_high), np.arange(256.0)])[:, None] * frequencies(config)
    table = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    table[:n_high] *= magnitude(config)
    return table.astype(np.float32), n_high


def compressed_width(config: ModelConfig) -> int:
    """Elements of a token's compressed query and, behind it, latent and key part, in whole vec4s."""
    return -(-(config.q_lora + config.latent_dim) // 4) * 4


def scratch_bytes(
    config: ModelConfig,
    path: Path,
    n_ctx: int,
    chunk: int,
    splits: int,
    shards: int,
    tiled: Mapping[str, int] | None = None,
    quantized: bool = False,
) -> dict[str, int]:
    """Bytes of every activation buffer by name, from arithmetic alone; ``tiled`` are words that a chunk's tiles take,
    ``quantized`` says whether products read their inputs in 8 bits.

    ``[T]`` below is the chunk's capacity in tokens, H heads, S the sums that a head's attention is made of:
    for a single token ``splits`` for each of the latent cache's ``shards``, for a chunk one where there are several.
    """
    c, width = config, chunk
    sums = shards * max(splits, width if shards > 1 else 1)
    slots, experts = (
        c.n_expert_used + c.n_expert_shared,
        c.n_expert + c.n_expert_shared,
    )  # shared ones may be among them
    hidden = max(c.n_ff, slots * c.n_ff_exp)
    elements = {
        "x": width * c.n_embd,  # residual stream [T, n_embd]
        "normed": width * c.n_embd,
        "compressed": width * compressed_width(c),  # [T, q_lora + kv_lora + rope]
        "q_a_normed": width * c.q_lora,
        "q": width * c.n_head * c.key_dim,  # [T, H, nope + rope]
        "heads": width * c.n_head * c.v_head,  # attention's output [T, H, v]
        "gate": width * hidden,
        "up": width * hidden,
        "shared_hidden": width * c.n_expert_shared * c.n_ff_exp,
        "router": width * c.n_expert,
        "chosen": width * slots,
        "expert_weights": width * slots,
        "arrivals": 1,  # workgroups that have finished (shaders/include/last_workgroup.glsl)
        "counts": experts,
        "pairs": experts * width,  # [expert, T]
        "routed": width * slots * c.n_embd,  # [T, slot, n_embd]
        "shared": width * c.n_embd,
        "hidden": width * c.n_embd,  # normed for the output matrix
        "best": 2 * ARGMAX_GROUPS,
        "top_best": 2 * TOP_GROUPS,
        "top": 2 + 2 * TOP_LIST,  # bound, candidates, each one's logit and id
        "params": 2 + width,
        "tokens": AHEAD,  # the last ones chosen (shaders/argmax.comp)
        "logits": c.n_vocab,
        "rope_tables": (n_ctx // 256 + 1 + 256) * c.qk_rope,
    }
    if path.layout is CacheLayout.PER_HEAD:
        elements |= {
            "expanded": width * c.latent_dim,  # normed latent and rotated key in f32
            "k_nope": width * c.n_head * c.qk_nope,
            "v_new": width * c.n_head * c.v_head,
            "scores": c.n_head * width * n_ctx,  # [H, T, n_ctx]
        }
    else:
        elements |= {
            "q_latent": width * c.n_head * c.latent_dim,  # absorbed queries [T, H, kv_lora + rope]
            "latent_out": width * c.n_head * c.kv_lora,
            "parts": sums * c.n_head * c.kv_lora,  # [T, H, S, kv_lora]
            "stats": 2 * sums * c.n_head,
        }
    if quantized:
        inputs = max(elements.get(name, 0) for name in _INPUTS)
        elements["workspace"] = quantized_words(whole_units(inputs))
    return {name: 4 * n + SLACK_BYTES for name, n in (elements | dict(tiled or {})).items() if n}


class Scratch:
    """The buffers of ``scratch_bytes``, by name."""

    def __init__(self, device: Device, config: ModelConfig, n_ctx: int, sizes: dict[str, int]) -> None:
        self.buffers: dict[str, Buffer] = {}
        try:
            for name, n in sizes.items():
                self.buffers[name] = Buffer(device, n, f"scratch.{name}", use=_USES.get(name, Use.SCRATCH))
            table, self.n_high = rope_tables(config, n_ctx)
            self.buffers["rope_tables"].upload(table)
            if "row_ids" in sizes:
                rows = (sizes["row_ids"] - SLACK_BYTES) // 4 - 2
                self.buffers["row_ids"].upload(np.array([0, rows, *range(rows)], np.uint32))
        except BaseException:
            self.free()
            raise

    def __getitem__(self, name: str) -> Buffer:
        return self.buffers[name]

    @property
    def workspace(self) -> Buffer | None:
        """Where a program's launches leave what only launches behind them read, if any do."""
        return self.buffers.get("workspace")

    @property
    def nbytes(self) -> int:
        """Bytes that all buffers take of the device's memory."""
        return sum(b.allocated for b in self.buffers.values())

    def free(self) -> None:
        """Give the memory back."""
        for buffer in self.buffers.values():
            buffer.free()
