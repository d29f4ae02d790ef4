"""One frozen description of a ``deepseek2`` model (GLM-4.7-Flash, DeepSeek V2 and V3), read and checked from a GGUF.

Keys and tensor shapes are llama.cpp's convention for the architecture (src/models/deepseek2.cpp, gguf-py constants.py).
Shape letters: D n_embd, H heads, Q q_lora, R kv_lora, N qk_nope, P qk_rope, V v_head, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from model.gguf_file import GGUFFile
from model.metadata import RECONVERT, TypedKeys
from model.tensors import SUPPORTED_TYPES, check_tensors, expected_tensors, require_supported
from vkbackend.errors import InputError, quoted, shown

__all__ = [
    "ARCHITECTURE",
    "KEYS",
    "PRESETS",
    "SUPPORTED_TYPES",
    "ModelConfig",
    "Yarn",
    "expected_tensors",
    "get_preset",
    "require_supported",
]

ARCHITECTURE = "deepseek2"
MAX_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS; also keeps a damaged count from building an endless tensor list

# Field -> GGUF key, after "deepseek2.". n_layer, qk_nope, qk_rope and v_head are derived: see _read.
KEYS = {
    "n_layer": "block_count",
    "n_dense": "leading_dense_block_count",
    "n_embd": "embedding_length",
    "n_vocab": "vocab_size",
    "n_head": "attention.head_count",
    "q_lora": "attention.q_lora_rank",
    "kv_lora": "attention.kv_lora_rank",
    "qk_nope": "attention.key_length_mla",
    "qk_rope": "rope.dimension_count",
    "v_head": "attention.value_length_mla",
    "n_ff": "feed_forward_length",
    "n_expert": "expert_count",
    "n_expert_used": "expert_used_count",
    "n_expert_shared": "expert_shared_count",
    "n_ff_exp": "expert_feed_forward_length",
    "gating": "expert_gating_func",
    "norm_topk": "expert_weights_norm",
    "expert_scale": "expert_weights_scale",
    "n_group": "expert_group_count",
    "n_group_used": "expert_group_used_count",
    "rope_theta": "rope.freq_base",
    "rms_eps": "attention.layer_norm_rms_epsilon",
    "n_ctx_train": "context_length",
    "n_nextn": "nextn_predict_layers",
    "yarn": "rope.scaling.type",
}
GATING_FUNCTIONS = {1: "softmax", 2: "sigmoid"}  # gguf.ExpertGatingFuncType
# Files converted before the key existed are softmax models, but for GLM-4.7-Flash, with or without its MTP block.
SIGMOID_WITHOUT_KEY = {(47, 154_880), (48, 154_880)}  # (block_count, n_vocab), as llama.cpp


@dataclass(frozen=True)
class Yarn:
    """YaRN context extension (arXiv 2309.00071). ``log_multiplier`` is stored as 0.1 * DeepSeek's mscale_all_dim."""

    factor: float
    n_ctx_orig: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """The model's dimensions and switches. Values that contradict each other are an InputError naming the field."""

    name: str
    n_layer: int  # without the MTP layers
    n_dense: int  # leading layers with a dense feed-forward
    n_embd: int
    n_vocab: int
    n_head: int
    q_lora: int  # 0: queries come straight from n_embd
    kv_lora: int
    qk_nope: int
    qk_rope: int
    v_head: int
    n_ff: int
    n_expert: int
    n_expert_used: int
    n_expert_shared: int
    n_ff_exp: int
    gating: str  # "sigmoid" or "softmax"
    norm_topk: bool
    expert_scale: float
    rope_theta: float
    rms_eps: float
    n_ctx_train: int
    n_group: int = 1
    n_group_used: int = 1
    n_nextn: int = 0  # MTP layers, stored after the others
    yarn: Yarn | None = None
    expert_bias: bool = True  # exp_probs_b, which takes part in choosing experts only
    tied_output: bool = False  # no output.weight: token_embd serves as the output matrix
    split_kv_b: bool = True  # attn_k_b and attn_v_b; False: the older joint attn_kv_b
    arch: str = ARCHITECTURE

    def __post_init__(self) -> None:
        for field, found, ok, expected in self._rules():
            if not ok:
                raise _BadValue(self.name, field, found, expected)

    def _rules(self) -> list[tuple[str, Any, bool, str]]:
        positive = (
            "n_embd",
            "n_vocab",
            "n_head",
            "kv_lora",
            "qk_nope",
            "v_head",
            "n_ctx_train",
            "rope_theta",
            "rms_eps",
        )
        rules = [(name, getattr(self, name), getattr(self, name) > 0, "more than 0") for name in positive]
        rules += [
            ("n_layer", self.n_layer, 1 <= self.n_layer <= MAX_LAYERS, f"1 to {MAX_LAYERS}"),
            ("n_nextn", self.n_nextn, 0 <= self.n_nextn <= MAX_LAYERS, f"0 to {MAX_LAYERS}"),
            ("n_dense", self.n_dense, 0 <= self.n_dense <= self.n_layer, f"0 to n_layer ({self.n_layer})"),
            ("q_lora", self.q_lora, self.q_lora >= 0, "0 (none) or more"),
            ("qk_rope", self.qk_rope, self.qk_rope > 0 and self.qk_rope % 2 == 0, "an even number more than 0"),
            ("n_ff", self.n_ff, self.n_ff > 0 or self.n_dense == 0, "more than 0, as there are dense layers"),
            ("gating", self.gating, self.gating in GATING_FUNCTIONS.values(), "sigmoid or softmax"),
            ("n_expert_shared", self.n_expert_shared, self.n_expert_shared >= 0, "0 or more"),
        ]
        if self.n_dense < self.n_layer:
            rules += [
                ("n_expert", self.n_expert, self.n_expert > 0, "more than 0, as there are mixture layers"),
                ("n_ff_exp", self.n_ff_exp, self.n_ff_exp > 0, "more than 0, as there are mixture layers"),
                (
                    "n_expert_used",
                    self.n_expert_used,
                    0 < self.n_expert_used <= self.n_expert,
                    f"1 to n_expert ({self.n_expert})",
                ),
                (
                    "n_group",
                    self.n_group,
                    self.n_group > 0 and self.n_expert % self.n_group == 0,
                    f"a divisor of n_expert ({self.n_expert})",
                ),
                (
                    "n_group_used",
                    self.n_group_used,
                    0 < self.n_group_used <= self.n_group,
                    f"1 to n_group ({self.n_group})",
                ),
            ]
        return rules

    @property
    def key_dim(self) -> int:
        """Width of one head's query and key: N + P."""
        return self.qk_nope + self.qk_rope

    @property
    def latent_dim(self) -> int:
        """Width of one latent cache row: R + P."""
        return self.kv_lora + self.qk_rope

    @property
    def attn_scale(self) -> float:
        """What attention scores are multiplied by: 1/sqrt(key_dim), times YaRN's (1 + log_multiplier * ln factor)^2."""
        scale = 1 / math.sqrt(self.key_dim)
        if self.yarn is not None:
            scale *= (1 + self.yarn.log_multiplier * math.log(self.yarn.factor)) ** 2
        return scale

    def is_moe(self, layer: int) -> bool:
        """Whether ``layer`` (from 0) routes to experts; the leading ``n_dense`` layers do not."""
        return layer >= self.n_dense

    @classmethod
    def from_gguf(cls, gguf: GGUFFile) -> ModelConfig:
        """Read the keys, then check that every tensor of the architecture is there with its shape.

        Raises InputError naming file, key or tensor, what was found, what was expected, and the remedy.
        """
        try:
            config = cls(**_read(gguf))
        except _BadValue as bad:
            key = KEYS[bad.field]
            raise InputError(
                f"{gguf.path}: key {ARCHITECTURE}.{key} gives {bad.field} = {bad.found!r}, expected {bad.expected}; "
                f"{RECONVERT}"
            ) from None
        check_tensors(config, gguf)
        return config


class _BadValue(InputError):
    def __init__(self, name: str, field: str, found: Any, expected: str) -> None:
        super().__init__(f"{name}: {field} is {found!r}, expected {expected}; correct the value")
        self.field, self.found, self.expected = field, found, expected


def _read(gguf: GGUFFile) -> dict[str, Any]:
    """The constructor's arguments from the metadata; tensors are looked at only for which variant they are."""
    arch = gguf.kv.get("general.architecture")
    if arch != ARCHITECTURE:
        found = "missing" if arch is None else quoted(arch)
        raise InputError(
            f"{gguf.path}: key general.architecture is {found}, expected {ARCHITECTURE!r}; "
            "use a GGUF of GLM-4.7-Flash, DeepSeek-V2 or DeepSeek-V3"
        )
    keys = TypedKeys(gguf, ARCHITECTURE)
    direct: dict[str, tuple[type, Any]] = {
        "n_dense": (int, 0),
        "n_embd": (int, None),
        "n_head": (int, None),
        "kv_lora": (int, None),
        "qk_rope": (int, None),
        "n_ff": (int, None),
        "n_expert": (int, None),
        "n_expert_used": (int, None),
        "n_expert_shared": (int, 0),
        "n_ff_exp": (int, None),
        "norm_topk": (bool, False),
        "expert_scale": (float, 1.0),
        "n_group": (int, 1),
        "n_group_used": (int, 1),
        "rope_theta": (float, 10_000.0),
        "rms_eps": (float, None),
        "n_ctx_train": (int, None),
        "n_nextn": (int, 0),
    }
    values = {field: keys.get(KEYS[field], kind, default) for field, (kind, default) in direct.items()}
    values["expert_scale"] = values["expert_scale"] or 1.0  # llama.cpp leaves 0 for "unscaled"
    n_blocks = keys.get(KEYS["n_layer"], int)
    if keys.get("attention.temperature_scale", float, 0.0):
        raise InputError(
            f"{gguf.path}: key {ARCHITECTURE}.attention.temperature_scale is set, expected none; "
            "use a GGUF of GLM-4.7-Flash, DeepSeek-V2 or DeepSeek-V3"
        )
    tokens = gguf.kv.get("tokenizer.ggml.tokens")
    n_vocab = len(tokens) if isinstance(tokens, list) else keys.get(KEYS["n_vocab"], int)

    has_joint, has_split = _has(gguf, "attn_kv_b.weight"), _has(gguf, "attn_k_b.weight")
    split = has_split or not has_joint  # neither: the check of the tensors says what is missing
    if split or f"{ARCHITECTURE}.{KEYS['qk_nope']}" in gguf.kv:
        key_dim, v_head = keys.get(KEYS["qk_nope"], int), keys.get(KEYS["v_head"], int)
    else:  # files with attn_kv_b only: the plain keys are the per-head sizes
        key_dim, v_head = keys.get("attention.key_length", int), keys.get("attention.value_length", int)
    values["q_lora"] = 0 if _has(gguf, "attn_q.weight") else keys.get(KEYS["q_lora"], int)
    return values | {
        "name": shown(str(gguf.kv.get("general.name", gguf.path.stem))),
        "n_layer": n_blocks - values["n_nextn"],
        "n_vocab": n_vocab,
        "qk_nope": key_dim - values["qk_rope"],
        "v_head": v_head,
        "gating": _gating(keys, n_blocks, n_vocab),
        "yarn": _yarn(keys),
        "expert_bias": _has(gguf, "exp_probs_b.bias"),
        "tied_output": "output.weight" not in gguf.tensors,
        "split_kv_b": split,
    }


def _has(gguf: GGUFFile, suffix: str) -> bool:
    """Whether any layer has the tensor."""
    return any(name.endswith(f".{suffix}") for name in gguf.tensors)


def _gating(keys: TypedKeys, n_blocks: int, n_vocab: int) -> str:
    default = 2 if (n_blocks, n_vocab) in SIGMOID_WITHOUT_KEY else 1
    number = keys.get(KEYS["gating"], int, default) or default  # 0 means "not set"
    return GATING_FUNCTIONS.get(number, f"function {number}")


def _yarn(keys: TypedKeys) -> Yarn | None:
    kind = keys.get(KEYS["yarn"], str, "none")
    if kind == "none":
        return None
    if kind != "yarn":
        raise InputError(
            f"{keys.path}: key {ARCHITECTURE}.{KEYS['yarn']} is {quoted(kind)}, expected 'none' or 'yarn'; {RECONVERT}"
        )
    yarn = Yarn(
        factor=keys.get("rope.scaling.factor", float),
        n_ctx_orig=keys.get("rope.scaling.original_context_length", int),
        beta_fast=keys.get("rope.scaling.yarn_beta_fast", float, 32.0),
        beta_slow=keys.get("rope.scaling.yarn_beta_slow", float, 1.0),
        log_multiplier=keys.get("rope.scaling.yarn_log_multiplier", float, 0.0),
    )
    if yarn.factor < 1 or yarn.n_ctx_orig < 1:
        raise InputError(
            f"{keys.path}: key {ARCHITECTURE}.rope.scaling.factor is {yarn.factor} over a context of "
            f"{yarn.n_ctx_orig}, expected both at least 1; {RECONVERT}"
        )
    return yarn


PRESETS = {
    "glm-4.7-flash": ModelConfig(
        name="GLM-4.7-Flash",
        n_layer=47,
        n_dense=1,
        n_embd=2048,
        n_vocab=154_880,
        n_head=20,
        q_lora=768,
        kv_lora=512,
        qk_nope=192,
        qk_rope=64,
        v_head=256,
        n_ff=10_240,
        n_expert=64,
        n_expert_used=4,
        n_expert_shared=1,
        n_ff_exp=1536,
        gating="sigmoid",
        norm_topk=True,
        expert_scale=1.8,
        rope_theta=1e6,
        rms_eps=1e-5,
        n_ctx_train=202_752,
        n_nextn=1,
    ),
    "deepseek-v2-lite": ModelConfig(
        name="DeepSeek-V2-Lite",
        n_layer=27,
        n_dense=1,
        n_embd=2048,
        n_vocab=102_400,
        n_head=16,
        q_lora=0,
        kv_lora=512,
        qk_nope=128,
        qk_rope=64,
        v_head=128,
        n_ff=10_944,
        n_expert=64,
        n_expert_used=6,
        n_expert_shared=2,
        n_ff_exp=1408,
        gating="softmax",
        norm_topk=False,
        expert_scale=1.0,
        rope_theta=1e4,
        rms_eps=1e-6,
        n_ctx_train=163_840,
        yarn=Yarn(factor=40.0, n_ctx_orig=4096, log_multiplier=0.0707),
        expert_bias=False,
    ),
    "deepseek-v3": ModelConfig(
        name="DeepSeek-V3",
        n_layer=61,
        n_dense=3,
        n_embd=7168,
        n_vocab=129_280,
        n_head=128,
        q_lora=1536,
        kv_lora=512,
        qk_nope=128,
        qk_rope=64,
        v_head=128,
        n_ff=18_432,
        n_expert=256,
        n_expert_used=8,
        n_expert_shared=1,
        n_ff_exp=2048,
        gating="sigmoid",
        norm_topk=True,
        expert_scale=2.5,
        rope_theta=1e4,
        rms_eps=1e-6,
        n_ctx_train=163_840,
        n_group=8,
        n_group_used=4,
        n_nextn=1,
        yarn=Yarn(factor=40.0, n_ctx_orig=4096, log_multiplier=0.1),
    ),
}


def get_preset(name: str) -> ModelConfig:
    """The published model called ``name``. InputError listing the names when there is none."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown, expected one of {', '.join(PRESETS)}; choose one of them")
    return PRESETS[name]
