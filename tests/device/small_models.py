"""Small models to run whole: random ones of awkward shapes, over all formats and variants, and the embedded one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Q

from harness.synth import TypeOverride, write_synthetic
from model import tasks
from model.config import ModelConfig, Yarn
from model.data import EMBEDDED_MODEL
from model.engine import Model, Session
from model.gguf_file import GGUFFile
from model.layout import CacheLayout, get_path
from model.layout import Path as CachePath
from model.presets import PRESETS
from model.reference import Reference
from vkbackend.device import Device

# Widths that no subgroup divides, keys wider than values, and every format in a layer of each kind.
AWKWARD = replace(
    PRESETS["glm-4.7-flash"],
    name="awkward",
    n_layer=3,
    n_nextn=0,
    n_embd=256,
    n_vocab=301,
    n_head=10,
    q_lora=100,
    kv_lora=44,
    qk_nope=20,
    qk_rope=12,
    v_head=12,
    n_ff=512,
    n_expert=11,
    n_expert_used=3,
    n_expert_shared=2,
    n_ff_exp=256,
    n_ctx_train=4096,
)
# One head, no dense layer, no shared expert, all experts used, softmax gating without bias or renormalisation.
PLAIN = replace(
    AWKWARD,
    name="plain",
    n_layer=2,
    n_dense=0,
    n_embd=96,
    n_vocab=307,
    n_head=1,
    q_lora=32,
    kv_lora=64,
    qk_nope=24,
    qk_rope=8,
    v_head=20,
    n_expert=5,
    n_expert_used=5,
    n_expert_shared=0,
    n_ff_exp=32,
    gating="softmax",
    norm_topk=False,
    expert_scale=1.0,
    expert_bias=False,
)
# DeepSeek-V2's router (softmax, best groups by their best expert) without compressed queries, as V2-Lite; YaRN; an
# output tied to an embedding with rows that no token has; an odd number of heads, 37 experts a
# group, a key of no whole unit, keys and values of F16 in one tensor.
LITE = replace(
    PRESETS["deepseek-v2-lite"],
    name="lite",
    n_layer=2,
    n_embd=92,
    n_vocab=310,
    n_padding=5,
    n_head=3,
    kv_lora=36,
    qk_nope=20,
    qk_rope=8,
    v_head=28,
    n_ff=68,
    n_expert=111,
    n_expert_used=6,
    n_ff_exp=36,
    n_ctx_train=4096,
    n_group=3,
    n_group_used=2,
    yarn=Yarn(factor=40.0, n_ctx_orig=16, log_multiplier=0.0707),
    tied_output=True,
    split_kv_b=False,
)
# DeepSeek-V3's router (sigmoid and bias, best groups by their best two experts); YaRN without a log multiplier;
# gate and up in one tensor; an MTP layer that is not run.
GROUPED = replace(
    PRESETS["deepseek-v3"],
    name="grouped",
    n_layer=3,
    n_dense=1,
    n_nextn=1,
    n_embd=64,
    n_vocab=303,
    n_head=7,
    q_lora=28,
    kv_lora=32,
    qk_nope=16,
    qk_rope=12,
    v_head=16,
    n_ff=72,
    n_expert=24,
    n_expert_used=5,
    n_ff_exp=32,
    n_ctx_train=4096,
    n_group=6,
    n_group_used=3,
    yarn=Yarn(factor=8.0, n_ctx_orig=16, beta_fast=4.0),
    fused_gate_up=True,
)
# No mixture layer, and no values for one; attn_kv_b joint in a quantised type.
DENSE = replace(
    GROUPED,
    name="dense",
    n_layer=2,
    n_dense=2,
    n_expert=0,
    n_expert_used=0,
    n_expert_shared=0,
    n_ff_exp=0,
    n_group=1,
    n_group_used=1,
    expert_bias=False,
    yarn=None,
    n_nextn=0,
    split_kv_b=False,
    fused_gate_up=False,
)
CONFIGS = {config.name: config for config in (AWKWARD, PLAIN, LITE, GROUPED, DENSE)}
TYPES: dict[str, tuple[str, list[TypeOverride]]] = {
    "awkward": ("q4_k_m", [("ffn_gate", Q.Q6_K), ("ffn_up", Q.Q5_0), ("attn_kv_a_mqa", Q.Q8_0)]),
    "plain": ("q8_0", [("ffn_gate", Q.Q5_0), ("ffn_up", Q.F16), ("attn_q_a", Q.F32)]),
    "lite": ("f16", []),
    "grouped": ("q8_0", []),
    "dense": ("f32", [("attn_kv_b", Q.Q8_0)]),
}
NAMES = (*CONFIGS, "embedded")
N_CTX = 128


@dataclass(frozen=True)
class SmallModel:
    """One model on the device and as a reference, with a prompt on which both route alike."""

    name: str
    gguf: GGUFFile
    device: Device

    @cached_property
    def model(self) -> Model:
        return Model.load(self.gguf, self.device)

    @cached_property
    def reference(self) -> Reference:
        return Reference.from_gguf(self.gguf)

    @cached_property
    def _sessions(self) -> dict[tuple[str, int, str], Session]:
        return {}

    def session(self, path: str, chunk: int, cache: str = "f16") -> Session:
        """A session of N_CTX positions at position 0, kept for later tests: recording its programs takes a second."""
        key = path, chunk, cache
        if key not in self._sessions:
            self._sessions[key] = Session(self.model, get_path(path, cache), N_CTX, chunk)
        self._sessions[key].rewind(0)
        return self._sessions[key]

    def logits(self, path: str, chunk: int, cache: str = "f16") -> np.ndarray:
        """Logits at every position of ``prompt``."""
        found = self.session(path, chunk, cache).prompt(self.prompt, "all")
        assert found is not None
        return found

    @property
    def config(self) -> ModelConfig:
        return self.reference.config

    def draws(self, count: int, length: int) -> list[list[int]]:
        """Prompts of ``length`` tokens: held-out text for the embedded model, random ids for the others."""
        if self.name == "embedded":
            ids = self.model.tokenizer.encode(tasks.heldout_text())
            return [ids[i * 1000 : i * 1000 + length] for i in range(count)]
        rng = np.random.default_rng(len(self.name))
        return [[int(t) for t in rng.integers(0, self.config.n_vocab, length)] for _ in range(count)]

    @cached_property
    def prompt(self) -> list[int]:
        """Of 12 prompts of 29 tokens the one whose nearest routing decision is the least near."""
        return max(self.draws(12, 29), key=lambda tokens: self.reference.routing_margins(tokens).min())

    @cached_property
    def exact_f32(self) -> tuple[np.ndarray, float]:
        """Float64 logits of ``prompt`` with nothing rounded, and the most by which the same in f32 is off."""
        exact = Reference.from_gguf(self.gguf, np.float64).logits(self.prompt)
        return exact, float(np.abs(self.reference.logits(self.prompt) - exact).max())

    @cached_property
    def exact(self) -> Callable[[CachePath], tuple[np.ndarray, float]]:
        """For a path: float64 logits of ``prompt`` with a cache of its type, and the most that its rounding does.

        A device computes in f32, so that some cached numbers fall on the other neighbouring half: each such number is
        off by one rounding step more. As only few do, all together do less than rounding the whole cache did.
        """
        reference = Reference.from_gguf(self.gguf, np.float64)
        found: dict[tuple[str, str], tuple[np.ndarray, float]] = {}

        def of(path: CachePath) -> tuple[np.ndarray, float]:
            way = "expanded" if path.layout is CacheLayout.PER_HEAD else path.layout.value
            key = way, path.cache_type
            if key not in found:
                kind = np.float16 if path.cache_type == "f16" else path.kind
                rounded = reference.logits(self.prompt, way, cache_type=kind)
                effect = np.abs(rounded - reference.logits(self.prompt, way)).max()
                found[key] = rounded, float(effect)
            return found[key]

        return of


def open_small_model(name: str, folder: Path, device: Device) -> SmallModel:
    """The model called ``name``; a random one's file is written to ``folder``."""
    if name == "embedded":
        return SmallModel(name, GGUFFile.open(EMBEDDED_MODEL), device)
    file = folder / f"{name}.gguf"
    mix, overrides = TYPES[name]
    write_synthetic(CONFIGS[name], file, mix, 1, overrides)
    return SmallModel(name, GGUFFile.open(file), device)
