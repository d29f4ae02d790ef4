"""The embedded model in PyTorch, written for training speed on a CPU: expanded attention, experts gathered by token.

The mathematics is that of llama.cpp's `deepseek2` graph. Parameters carry their GGUF names and shapes in NumPy order:
export is a copy. Letters: B documents, T tokens, E width, H heads, P rope width.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig

# Cache elements of a layer and token, per-head to latent: 20 * (24 + 8 + 32) / (64 + 8) = 17.78, as in GLM-4.7-Flash.
EMBEDDED = ModelConfig(
    name="latentvk-tiny",
    n_layer=3,
    n_dense=1,
    n_embd=256,
    n_vocab=2048,
    n_head=20,
    q_lora=96,
    kv_lora=64,
    qk_nope=24,
    qk_rope=8,
    v_head=32,
    n_ff=768,
    n_expert=16,
    n_expert_used=4,
    n_expert_shared=1,
    n_ff_exp=128,
    gating="sigmoid",
    norm_topk=True,
    expert_scale=1.8,
    # The slowest rope pair turns once in 2*pi*theta^(3/4) = 17,772 tokens: distances within the context differ.
    rope_theta=40_000.0,
    rms_eps=1e-5,
    n_ctx_train=16_384,
)


def matrix(*shape: int, gain: float = 1.0) -> nn.Parameter:
    """A normally drawn matrix [..., out, in] with standard deviation gain / sqrt(in)."""
    return nn.Parameter(torch.randn(*shape) * (gain / math.sqrt(shape[-1])))


def rope_tables(config: ModelConfig, n_ctx: int) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [n_ctx, P/2], of position * theta^(-2i/P)."""
    frequency = config.rope_theta ** (-torch.arange(0, config.qk_rope, 2, dtype=torch.float64) / config.qk_rope)
    angle = torch.arange(n_ctx, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rope on adjacent pairs of the last axis; x [..., T, P]."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """MLA with keys and values expanded per head: the same numbers as the absorbed form, cheaper to differentiate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = self.config = config
        self.attn_norm = nn.Parameter(torch.ones(c.n_embd))
        self.attn_q_a = matrix(c.q_lora, c.n_embd)
        self.attn_q_a_norm = nn.Parameter(torch.ones(c.q_lora))
        self.attn_q_b = matrix(c.n_head * (c.qk_nope + c.qk_rope), c.q_lora)
        self.attn_kv_a_mqa = matrix(c.kv_lora + c.qk_rope, c.n_embd)
        self.attn_kv_a_norm = nn.Parameter(torch.ones(c.kv_lora))
        self.attn_k_b = nn.Parameter(torch.randn(c.n_head, c.kv_lora, c.qk_nope) / math.sqrt(c.kv_lora))
        self.attn_v_b = matrix(c.n_head, c.v_head, c.kv_lora)
        self.attn_output = matrix(c.n_embd, c.n_head * c.v_head, gain=0.5)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, T, E] to the attention's contribution [B, T, E]."""
        c = self.config
        batch, time, _ = x.shape
        h = F.rms_norm(x, (c.n_embd,), self.attn_norm, c.rms_eps)
        q_a = F.rms_norm(F.linear(h, self.attn_q_a).float(), (c.q_lora,), self.attn_q_a_norm, c.rms_eps)
        q = F.linear(q_a, self.attn_q_b).view(batch, time, c.n_head, c.qk_nope + c.qk_rope).transpose(1, 2)
        q = torch.cat((q[..., : c.qk_nope], rotate(q[..., c.qk_nope :], cos, sin)), -1)

        latent, k_rope = F.linear(h, self.attn_kv_a_mqa).split((c.kv_lora, c.qk_rope), -1)
        latent = F.rms_norm(latent.float(), (c.kv_lora,), self.attn_kv_a_norm, c.rms_eps)
        k_b = self.attn_k_b.transpose(1, 2).reshape(c.n_head * c.qk_nope, c.kv_lora)
        k_nope = F.linear(latent, k_b).view(batch, time, c.n_head, c.qk_nope).transpose(1, 2)
        k_rope = rotate(k_rope[:, None], cos, sin).expand(batch, c.n_head, time, c.qk_rope)
        k = torch.cat((k_nope, k_rope.to(k_nope.dtype)), -1)
        v = F.linear(latent, self.attn_v_b.flatten(0, 1)).view(batch, time, c.n_head, c.v_head).transpose(1, 2)
        if mask is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # short contexts: three dense operations beat the blocked kernel
            scale = 1 / math.sqrt(c.qk_nope + c.qk_rope)
            flat = (batch * c.n_head, time, -1)
            scores = torch.baddbmm(
                mask.to(q.dtype).expand(flat[0], time, time), q.reshape(flat) * scale, k.reshape(flat).transpose(1, 2)
            )
            out = (torch.softmax(scores, -1).to(v.dtype) @ v.reshape(flat)).view(batch, c.n_head, time, c.v_head)
        return F.linear(out.transpose(1, 2).reshape(batch, time, -1), self.attn_output)


class DenseFeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.ffn_norm = nn.Parameter(torch.ones(config.n_embd))
        self.ffn_gate = matrix(config.n_ff, config.n_embd)
        self.ffn_up = matrix(config.n_ff, config.n_embd)
        self.ffn_down = matrix(config.n_embd, config.n_ff, gain=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, E] to the layer's contribution [B, T, E]."""
        h = F.rms_norm(x, (self.config.n_embd,), self.ffn_norm, self.config.rms_eps)
        return F.linear(F.silu(F.linear(h, self.ffn_gate)) * F.linear(h, self.ffn_up), self.ffn_down)


class ExpertFeedForward(nn.Module):
    """Routed experts (sigmoid scores, biased selection, renormalised and scaled weights) and one shared expert."""

    exp_probs_b: Tensor
    load: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = self.config = config
        self.ffn_norm = nn.Parameter(torch.ones(c.n_embd))
        self.ffn_gate_inp = matrix(c.n_expert, c.n_embd)
        self.register_buffer("exp_probs_b", torch.zeros(c.n_expert))
        self.register_buffer("load", torch.zeros(c.n_expert), persistent=False)
        self.ffn_gate_exps = matrix(c.n_expert, c.n_ff_exp, c.n_embd)
        self.ffn_up_exps = matrix(c.n_expert, c.n_ff_exp, c.n_embd)
        self.ffn_down_exps = matrix(c.n_expert, c.n_embd, c.n_ff_exp, gain=0.25)
        shared = c.n_ff_exp * c.n_expert_shared
        self.ffn_gate_shexp = matrix(shared, c.n_embd)
        self.ffn_up_shexp = matrix(shared, c.n_embd)
        self.ffn_down_shexp = matrix(c.n_embd, shared, gain=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, E] to the layer's contribution [B, T, E]; `load` counts the assignments of this call."""
        c = self.config
        h = F.rms_norm(x, (c.n_embd,), self.ffn_norm, c.rms_eps)
        with torch.autocast("cpu", enabled=False):
            scores = torch.sigmoid(F.linear(h.float(), self.ffn_gate_inp)).view(-1, c.n_expert)
        chosen = torch.topk(scores.detach() + self.exp_probs_b, c.n_expert_used, -1).indices
        weights = scores.gather(1, chosen)
        weights = weights / weights.sum(-1, keepdim=True) * c.expert_scale

        flat = h.view(-1, c.n_embd)
        # NumPy sorts bytes by radix, far faster than torch.argsort.
        order = torch.from_numpy(np.argsort(chosen.flatten().to(torch.uint8).numpy(), kind="stable"))
        counts = torch.bincount(chosen.flatten(), minlength=c.n_expert)
        if self.training:
            self.load += counts
        rows = flat.to(torch.bfloat16 if torch.is_autocast_enabled("cpu") else flat.dtype)[
            order // c.n_expert_used
        ].split(counts.tolist())
        experts = zip(
            rows, self.ffn_gate_exps.unbind(0), self.ffn_up_exps.unbind(0), self.ffn_down_exps.unbind(0), strict=True
        )
        outs = [F.linear(F.silu(F.linear(r, gate)) * F.linear(r, up), down) for r, gate, up, down in experts]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        routed = torch.cat(outs)[back].view(-1, c.n_expert_used, c.n_embd)
        routed = torch.bmm(weights.unsqueeze(1).to(routed.dtype), routed).view(x.shape)
        shared = F.linear(
            F.silu(F.linear(h, self.ffn_gate_shexp)) * F.linear(h, self.ffn_up_shexp), self.ffn_down_shexp
        )
        return routed + shared

    def update_bias(self, rate: float) -> float:
        """DeepSeek-V3's balancing without a loss: raise underloaded experts' bias. Returns max load / mean load."""
        mean = self.load.mean()
        imbalance = float(self.load.max() / mean.clamp(min=1))
        self.exp_probs_b += rate * torch.sign(mean - self.load)
        self.load.zero_()
        return imbalance


class Block(nn.Module):
    """One layer: attention, then the dense or routed feed-forward part, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = DenseFeedForward(config) if layer < config.n_dense else ExpertFeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """x float32 [B, T, E] to the same shape."""
        x = x + self.attention(x, cos, sin, mask)
        return x + self.feed_forward(x)


class TinyModel(nn.Module):
    """Tokens to the normed hidden state (and logits)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embd = nn.Parameter(torch.randn(config.n_vocab, config.n_embd) * 0.5)
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.n_layer)])
        self.output_norm = nn.Parameter(torch.ones(config.n_embd))
        self.output = matrix(config.n_vocab, config.n_embd, gain=0.5)

    def hidden(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """tokens int64 [B, T] to float32 [B, T, E] after the last norm; positions int64 [B, T], else 0 to T - 1."""
        time = tokens.shape[1]
        cos, sin = rope_tables(self.config, time if positions is None else self.config.n_ctx_train)
        if positions is not None:
            cos, sin = cos[positions][:, None], sin[positions][:, None]
        mask = torch.full((time, time), -torch.inf).triu(1) if time <= 256 else None
        x = F.embedding(tokens, self.token_embd)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return F.rms_norm(x, (self.config.n_embd,), self.output_norm, self.config.rms_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T] to float32 logits [B, T, n_vocab]."""
        return F.linear(self.hidden(tokens), self.output).float()

    def expert_layers(self) -> list[ExpertFeedForward]:
        """The routed layers, first to last."""
        return [block.feed_forward for block in self.blocks if isinstance(block.feed_forward, ExpertFeedForward)]
