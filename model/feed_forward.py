"""Feed-forward of one layer as launches: dense SwiGLU, or routed experts with a shared one.

Routing and grouping run on the device; the host never sees an expert's id. model/reference/moe.py has it in NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model import kernels
from model.config import GROUP_BEST, ModelConfig
from model.linear import (
    Norm,
    Source,
    View,
    can_gate,
    can_route,
    gated_linear,
    linear,
    routed_linear,
    routing_linear,
    summed_linear,
)
from model.norm import normed
from model.plan import EXPERTS
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
        c, params = self.config, scratch["params"]
        x, norm = View(scratch["x"], token=c.n_embd), Norm(self.vectors["ffn_norm"], c.rms_eps)
        source = normed(program, scratch, tokens, x, norm, scratch["normed"], c.n_embd, self._folds())
        if not self.moe:
            hidden = self._hidden(program, scratch, tokens, source, "", c.n_ff, "gate")
            linear(program, self.weights["ffn_down"], hidden, x, tokens=tokens, params=params, accumulate=True)
            return
        self._route(program, scratch, tokens, source)
        self._experts(program, scratch, tokens, source)

    @property
    def _joined(self) -> bool:
        """Whether the shared experts stand behind the routed ones, as experts that every token is sent to."""
        return EXPERTS.format("gate") in self.weights

    @property
    def _apart(self) -> bool:
        """Whether there are shared experts in tensors of their own."""
        return self.moe and self.config.n_expert_shared > 0 and not self._joined

    @property
    def _slots(self) -> int:
        """Experts that a token is sent to."""
        return self.config.n_expert_used + (self.config.n_expert_shared if self._joined else 0)

    def _expert(self, name: str) -> Weight:
        return self.weights[EXPERTS.format(name) if self._joined else f"ffn_{name}_exps"]

    def _folds(self) -> bool:
        """Whether one token's norm is part of every product that follows it, and these of one launch for each pair."""
        suffixes = ["_shexp"] if self._apart else [] if self.moe else [""]
        pairs = [(self.weights[f"ffn_gate{suffix}"], self.weights[f"ffn_up{suffix}"]) for suffix in suffixes]
        pairs += [(self._expert("gate"), self._expert("up"))] if self.moe else []
        return all(can_gate(gate, up) for gate, up in pairs)

    def _hidden(
        self, program: Program, scratch: Scratch, tokens: int, source: Source, suffix: str, width: int, into: str
    ) -> View:
        """silu(gate x) * up x of a dense layer, or of the shared experts, in the buffer named ``into``."""
        x, params = source.view, scratch["params"]
        gate, up = (self.weights[f"ffn_{name}{suffix}"] for name in ("gate", "up"))
        hidden = View(scratch[into], token=width)
        if source.norm is not None:
            gated_linear(program, gate, up, x, hidden, source.norm)
        else:
            linear(program, gate, x, hidden, tokens=tokens, params=params)
            linear(program, up, x, View(scratch["up"], token=width), tokens=tokens, params=params)
            self._silu_mul(program, scratch, tokens, into, width)
        return hidden

    def _silu_mul(self, program: Program, scratch: Scratch, tokens: int, gate: str, per_token: int) -> None:
        program.launch(
            kernels.SILU_MUL,
            {"gate": scratch[gate], "up": scratch["up"], "params": scratch["params"]},
            (-(-per_token // 4 // program.device.subgroup_size), tokens, 1),
            push={"per_token": per_token},
        )

    def _route(self, program: Program, scratch: Scratch, tokens: int, source: Source) -> None:
        c, lanes = self.config, program.device.subgroup_size
        router = View(scratch["router"], token=c.n_expert)
        weight, params = self.weights["ffn_gate_inp"], scratch["params"]
        spec, push = route_constants(c, lanes, self._slots - c.n_expert_used)
        buffers = {"bias": self.vectors["exp_probs_b"], "chosen": scratch["chosen"]}
        buffers["shares"] = scratch["expert_weights"]
        if tokens == 1 and can_route(weight):
            buffers["arrivals"] = scratch["arrivals"]
            routing_linear(program, weight, source.view, router, source.norm, buffers, spec, push)
            return
        linear(program, weight, source.view, router, tokens=tokens, params=params, norm=source.norm)
        program.launch(
            kernels.for_device(kernels.ROUTE, program.device.info.kind),
            {"logits": scratch["router"], **buffers, "params": params},
            (tokens, 1, 1),
            spec=spec,
            push={"experts": c.n_expert} | push,
        )
        if tokens > 1:
            experts = self._expert("gate").matrices
            program.launch(
                kernels.GROUP_BY_EXPERT,
                {
                    "chosen": scratch["chosen"],
                    "counts": scratch["counts"],
                    "pairs": scratch["pairs"],
                    "params": scratch["params"],
                },
                (-(-experts // lanes), 1, 1),
                push={"experts": experts, "used": self._slots, "capacity": tokens},
            )

    def _experts(self, program: Program, scratch: Scratch, tokens: int, source: Source) -> None:
        """x += the chosen experts' outputs by their weights, and the shared experts'. One token's are added by the
        products themselves, after every product that reads x; a chunk's are summed when all are there."""
        c, params = self.config, scratch["params"]
        routing = {name: scratch[name] for name in ("chosen", "counts", "pairs")}
        slots, x = self._slots, View(scratch["x"], token=c.n_embd)
        gate, up, down = (self._expert(name) for name in ("gate", "up", "down"))
        hidden, beside = (View(scratch[name], batch=c.n_ff_exp, token=slots * c.n_ff_exp) for name in ("gate", "up"))
        if source.norm is not None:
            chosen = scratch["chosen"]
            gated_linear(program, gate, up, source.view, hidden, source.norm, chosen=chosen, used=slots)
        else:
            for weight, y in ((gate, hidden), (up, beside)):
                routed_linear(
                    program, weight, source.view, y, tokens=tokens, used=slots, routing=routing, params=params
                )
            self._silu_mul(program, scratch, tokens, "gate", slots * c.n_ff_exp)
        if self._apart:
            width = c.n_expert_shared * c.n_ff_exp
            shared = self._hidden(program, scratch, tokens, source, "_shexp", width, "shared_hidden")
        if tokens == 1:
            shares = scratch["expert_weights"]
            summed_linear(program, down, hidden, x, used=slots, chosen=scratch["chosen"], shares=shares)
        else:
            out = View(scratch["routed"], batch=c.n_embd, token=slots * c.n_embd)
            routed_linear(program, down, hidden, out, tokens=tokens, used=slots, routing=routing, params=params)
        if self._apart:
            to = x if tokens == 1 else View(scratch["shared"], token=c.n_embd)
            weight = self.weights["ffn_down_shexp"]
            linear(program, weight, shared, to, tokens=tokens, params=params, accumulate=tokens == 1)
        if tokens > 1:
            self._sum(program, scratch, tokens)

    def _sum(self, program: Program, scratch: Scratch, tokens: int) -> None:
        c = self.config
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
            push={"width": c.n_embd, "used": self._slots, "has_shared": int(self._apart)},
        )


def route_constants(config: ModelConfig, lanes: int, shared: int = 0) -> tuple[dict[str, int], dict[str, int | float]]:
    """Specialization and push constants of shaders/include/expert_choice.glsl on subgroups of ``lanes``; every token is
    sent to the ``shared`` experts behind the routed ones, too."""
    c = config
    spec = {
        "PER_LANE": -(-c.n_expert // lanes),
        "GROUP": c.n_expert // c.n_group if c.n_group > 1 else 0,
        "GROUPS_PER_LANE": -(-c.n_group // lanes),
    }
    push = {
        "used": c.n_expert_used,
        "always": shared,
        "sigmoid_gate": int(c.gating == "sigmoid"),
        "normalise": int(c.norm_topk),
        "scale": float(c.expert_scale),
        "groups_used": c.n_group_used,
        "group_best": GROUP_BEST[c.gating],
    }
    return spec, push
