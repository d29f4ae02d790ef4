"""One frozen description of a ``deepseek2`` model (GLM-4.7-Flash, DeepSeek V2 and V3), read and checked from a GGUF.

Keys and tensor shapes are llama.cpp's convention for the architecture (src/models/deepseek2.cpp, gguf-py constants.py).
Shape letters: D n_embd, H heads, Q q_lora, R kv_lora, N qk_nope, P qk_rope, V v_head, E experts.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from model.gguf_file import GGUFFile
from model.metadata import RECONVERT, TypedKeys
from model.tensors import SUPPORTED_TYPES, check_tensors, expected_tensors, require_supported
from vkbackend.errors import InputError, quoted, shown

__all__ = [
    "ARCHITECTURE",
    "KEYS",
    "SUPPORTED_TYPES",
    "ModelConfig",
    "Yarn",
    "expected_tensors",
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
# A group of experts is as good as this many of its best together: DeepSeek-V3's and V2's own code (see group_scores in
# model/reference/ops.py).
GROUP_BEST = {"sigmoid": 2, "softmax": 1}
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
    n_padding: int = 0  # last rows of the n_vocab that no token of the tokenizer has
    tied_output: bool = False  # no output.weight: token_embd serves as the output matrix
    split_kv_b: bool = True  # attn_k_b and attn_v_b; False: the older joint attn_kv_b
    fused_gate_up: bool = False  # ffn_gate_up_exps, gate rows first, in place of ffn_gate_exps and ffn_up_exps
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
            (
                "n_padding",
                self.n_padding,
                0 <= self.n_padding < self.n_vocab,
                f"0 to less than n_vocab ({self.n_vocab})",
            ),
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
            ]
            rules += self._group_rules()
        return rules

    def _group_rules(self) -> list[tuple[str, Any, bool, str]]:
        divides = self.n_group > 0 and self.n_expert % self.n_group == 0
        reach = self.n_group_used * (self.n_expert // self.n_group) if divides else 0
        return [
            ("n_group", self.n_group, divides, f"a divisor of n_expert ({self.n_expert})"),
            (
                "n_group_used",
                self.n_group_used,
                0 < self.n_group_used <= self.n_group,
                f"1 to n_group ({self.n_group})",
            ),
            (
                "n_expert_used",
                self.n_expert_used,
                self.n_expert_used <= reach,
                f"at most the {reach} experts of n_group_used ({self.n_group_used}) groups",
            ),
        ]

    @property
    def key_dim(self) -> int:
        """Width of one head's query and key: N + P."""
        return self.qk_nope + self.qk_rope

    @property
    def n_tokens(self) -> int:
        """Ids that stand for a token: 0 to n_tokens - 1."""
        return self.n_vocab - self.n_padding

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
            key = KEYS.get(bad.field, KEYS["n_vocab"])  # padding has none: it follows from the vocabulary
            numbers = " or ".join(f"{number} ({name})" for number, name in GATING_FUNCTIONS.items())
            remedy = (
                RECONVERT if bad.field != "gating" else f"set it with --override-kv {ARCHITECTURE}.{key}=int:{numbers}"
            )
            raise InputError(
                f"{gguf.path}: key {ARCHITECTURE}.{key} gives {bad.field} = {bad.found!r}, expected {bad.expected}; "
                f"{remedy}"
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
    _require_neutral(keys)
    n_blocks = keys.get(KEYS["n_layer"], int)
    n_nextn = keys.get(KEYS["n_nextn"], int, 0) or _mtp_blocks(gguf, n_blocks)
    values: dict[str, Any] = {"n_layer": n_blocks - n_nextn, "n_nextn": n_nextn}
    values["n_dense"] = keys.get(KEYS["n_dense"], int, _leading_dense(gguf, values["n_layer"]))
    moe = (
        None if values["n_dense"] < values["n_layer"] else 0
    )  # what a key that only mixture layers need may default to
    direct: dict[str, tuple[type, Any]] = {
        "n_embd": (int, None),
        "n_head": (int, None),
        "kv_lora": (int, None),
        "qk_rope": (int, None),
        "n_ff": (int, 0 if values["n_dense"] == 0 else None),
        "n_expert": (int, moe),
        "n_expert_used": (int, moe),
        "n_expert_shared": (int, 0),
        "n_ff_exp": (int, moe),
        "norm_topk": (bool, False),
        "expert_scale": (float, 1.0),
        "n_group": (int, 1),
        "n_group_used": (int, 1),
        "rope_theta": (float, 10_000.0),
        "rms_eps": (float, None),
        "n_ctx_train": (int, None),
    }
    values |= {field: keys.get(KEYS[field], kind, default) for field, (kind, default) in direct.items()}
    values["expert_scale"] = values["expert_scale"] or 1.0  # llama.cpp leaves 0 for "unscaled"
    for field in ("n_group", "n_group_used"):
        values[field] = values[field] or 1  # and for "no groups"
    tokens = gguf.kv.get("tokenizer.ggml.tokens")
    n_tokens = len(tokens) if isinstance(tokens, list) and tokens else keys.get(KEYS["n_vocab"], int)
    n_vocab = max(n_tokens, _rows(gguf, "token_embd.weight"))

    has_joint, has_split = _has(gguf, "attn_kv_b.weight"), _has(gguf, "attn_k_b.weight")
    split = has_split or not has_joint  # neither: the check of the tensors says what is missing
    # Files with attn_kv_b: the plain keys are the per-head sizes, where there are no others.
    of_heads = not has_joint or f"{ARCHITECTURE}.{KEYS['qk_nope']}" in gguf.kv
    key_dim = keys.get(KEYS["qk_nope"] if of_heads else "attention.key_length", int)
    v_head = keys.get(KEYS["v_head"] if of_heads else "attention.value_length", int)
    values["q_lora"] = 0 if _has(gguf, "attn_q.weight") else keys.get(KEYS["q_lora"], int)
    return values | {
        "name": shown(str(gguf.kv.get("general.name", gguf.path.stem))),
        "n_vocab": n_vocab,
        "n_padding": n_vocab - n_tokens,
        "qk_nope": key_dim - values["qk_rope"],
        "v_head": v_head,
        "gating": _gating(keys, n_blocks, n_tokens),
        "yarn": _yarn(keys),
        "expert_bias": _has(gguf, "exp_probs_b.bias"),
        "tied_output": "output.weight" not in gguf.tensors,
        "split_kv_b": split,
        "fused_gate_up": _has(gguf, "ffn_gate_up_exps.weight"),
    }


# Keys that change the mathematics in ways that no kernel here knows, and the value that changes nothing.
_NEUTRAL = {
    "attention.temperature_scale": 0.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
}


def _require_neutral(keys: TypedKeys) -> None:
    for key, neutral in _NEUTRAL.items():
        found = keys.get(key, float, neutral)
        if found != neutral:
            raise InputError(
                f"{keys.path}: key {ARCHITECTURE}.{key} is {found}, expected {neutral} or none; "
                "use a GGUF of GLM-4.7-Flash, DeepSeek-V2 or DeepSeek-V3"
            )


def _mtp_blocks(gguf: GGUFFile, n_blocks: int) -> int:
    """How many of the last blocks are MTP layers, by their nextn tensors: for files without the key that says so."""
    found = {int(match[1]) for name in gguf.tensors if (match := re.match(r"blk\.(\d{1,6})\.nextn\.", name))}
    count = 0
    while n_blocks - 1 - count in found:
        count += 1
    return count


def _leading_dense(gguf: GGUFFile, n_layer: int) -> int:
    """Layers before the first that has a router: for files without the key that says so."""
    routers = {int(match[1]) for name in gguf.tensors if (match := re.match(r"blk\.(\d{1,6})\.ffn_gate_inp\.", name))}
    return min(routers, default=n_layer)


def _rows(gguf: GGUFFile, name: str) -> int:
    """Rows of a matrix, 0 where the file lacks it."""
    return gguf.tensors[name].shape[0] if name in gguf.tensors else 0


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
    if min(yarn.beta_fast, yarn.beta_slow) <= 0 or keys.get(KEYS["rope_theta"], float, 10_000.0) <= 1:
        raise InputError(
            f"{keys.path}: YaRN has beta_fast {yarn.beta_fast} and beta_slow {yarn.beta_slow}, expected both more than "
            f"0, and a rope.freq_base more than 1; {RECONVERT}"
        )
    return yarn
