"""Feed-forward of one layer as launches: dense SwiGLU, or routed experts with a shared one.

Routing and grouping run on the device; the host never sees an expert's id. model/reference/moe.py has it in NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model import kernels
from model.attention import emit_norm
from model.config import GROUP_BEST, ModelConfig
from model.linear import View, linear, routed_linear
from model.scratch import Scratch
from model.weights import Weight
from vkbackend.buffer import Buffer
from vkbackend.program import Program


@dataclass(frozen=True)
class FeedForwardBlock:
    """Everything one layer's feed-forward touches; ``emit`` appends its launches to a program."""

    config: ModelConfig
    weights: Mapping[str, Weight]
    vectors: Mapping[str, Buffer]
    moe: bool

    def emit(self, program: Program, scratch: Scratch, tokens: int) -> None:
        """x += feed_forward(norm(x)) for ``tokens`` (1, or the chunk's capacity)."""
        c = self.config
        emit_norm(
            program, scratch, tokens, scratch["x"], self.vectors["ffn_norm"], scratch["normed"], c.n_embd, c.rms_eps
        )
        if not self.moe:
            self._gated(program, scratch, tokens, "", c.n_ff, View(scratch["x"], token=c.n_embd), accumulate=True)
            return
        self._route(program, scratch, tokens)
        self._experts(program, scratch, tokens)
        if c.n_expert_shared:
            shared = View(scratch["shared"], token=c.n_embd)
            self._gated(program, scratch, tokens, "_shexp", c.n_expert_shared * c.n_ff_exp, shared, accumulate=False)
        program.launch(
            kernels.MOE_SUM,
            {
                "routed": scratch["routed"],
                "weights": scratch["expert_weights"],
                "shared": scratch["shared"],
                "x": scratch["x"],
                "params": scratch["params"],
            },
            (-(-c.n_embd // 4 // program.device.subgroup_size), tokens, 1),
            push={"width": c.n_embd, "used": c.n_expert_used, "has_shared": int(c.n_expert_shared > 0)},
        )

    def _gated(
        self, program: Program, scratch: Scratch, tokens: int, suffix: str, width: int, out: View, accumulate: bool
    ) -> None:
        """out (+)= down(silu(gate x) * up x)."""
        params = scratch["params"]
        x = View(scratch["normed"], token=self.config.n_embd)
        for name in ("gate", "up"):
            y = View(scratch[name], token=width)
            linear(program, self.weights[f"ffn_{name}{suffix}"], x, y, tokens=tokens, params=params)
        self._silu_mul(program, scratch, tokens, width)
        gate = View(scratch["gate"], token=width)
        down = self.weights[f"ffn_down{suffix}"]
        linear(program, down, gate, out, tokens=tokens, params=params, accumulate=accumulate)

    def _silu_mul(self, program: Program, scratch: Scratch, tokens: int, per_token: int) -> None:
        program.launch(
            kernels.SILU_MUL,
            {"gate": scratch["gate"], "up": scratch["up"], "params": scratch["params"]},
            (-(-per_token // 4 // program.device.subgroup_size), tokens, 1),
            push={"per_token": per_token},
        )

    def _route(self, program: Program, scratch: Scratch, tokens: int) -> None:
        c, lanes = self.config, program.device.subgroup_size
        router = View(scratch["router"], token=c.n_expert)
        x = View(scratch["normed"], token=c.n_embd)
        linear(program, self.weights["ffn_gate_inp"], x, router, tokens=tokens, params=scratch["params"])
        spec, push = route_constants(c, lanes)
        program.launch(
            kernels.for_device(kernels.ROUTE, program.device.info.kind),
            {
                "logits": scratch["router"],
                "bias": self.vectors["exp_probs_b"],
                "chosen": scratch["chosen"],
                "weights": scratch["expert_weights"],
                "params": scratch["params"],
            },
            (tokens, 1, 1),
            spec=spec,
            push=push,
        )
        if tokens > 1:
            program.launch(
                kernels.GROUP_BY_EXPERT,
                {
                    "chosen": scratch["chosen"],
                    "counts": scratch["counts"],
                    "pairs": scratch["pairs"],
                    "params": scratch["params"],
                },
                (-(-c.n_expert // lanes), 1, 1),
                push={"experts": c.n_expert, "used": c.n_expert_used, "capacity": tokens},
            )

    def _experts(self, program: Program, scratch: Scratch, tokens: int) -> None:
        c = self.config
        routing = {name: scratch[name] for name in ("chosen", "counts", "pairs")}
        normed = View(scratch["normed"], token=c.n_embd)
        slots = c.n_expert_used
        hidden = {name: View(scratch[name], batch=c.n_ff_exp, token=slots * c.n_ff_exp) for name in ("gate", "up")}
        out = View(scratch["routed"], batch=c.n_embd, token=slots * c.n_embd)
        params = scratch["params"]
        for name, y in hidden.items():
            weight = self.weights[f"ffn_{name}_exps"]
            routed_linear(program, weight, normed, y, tokens=tokens, used=slots, routing=routing, params=params)
        self._silu_mul(program, scratch, tokens, slots * c.n_ff_exp)
        down = self.weights["ffn_down_exps"]
        routed_linear(program, down, hidden["gate"], out, tokens=tokens, used=slots, routing=routing, params=params)


def route_constants(config: ModelConfig, lanes: int) -> tuple[dict[str, int], dict[str, int | float]]:
    """Specialization and push constants of the routing kernel on subgroups of ``lanes``."""
    c = config
    spec = {
        "PER_LANE": -(-c.n_expert // lanes),
        "GROUP": c.n_expert // c.n_group if c.n_group > 1 else 0,
        "GROUPS_PER_LANE": -(-c.n_group // lanes),
    }
    push = {
        "experts": c.n_expert,
        "used": c.n_expert_used,
        "sigmoid_gate": int(c.gating == "sigmoid"),
        "normalise": int(c.norm_topk),
        "scale": float(c.expert_scale),
        "groups_used": c.n_group_used,
        "group_best": GROUP_BEST[c.gating],
    }
    return spec, push
