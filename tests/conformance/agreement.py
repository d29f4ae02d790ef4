"""What the conformance tests share: random-weight files, prompts that no rounding reroutes, and the measure."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Q

from harness.synth import write_synthetic
from model.config import ModelConfig, Yarn
from model.gguf_file import GGUFFile
from model.presets import PRESETS
from model.reference import Reference
from model.reference.ops import routing_margin

# Rows are whole K-quant blocks wherever the architecture allows, and epsilon is the 1e-6 that transformers fixes for
# the q_a and kv_a norms.
SIZES: dict[str, Any] = {
    "n_layer": 3,
    "n_dense": 1,
    "n_embd": 256,
    "n_vocab": 600,
    "n_head": 4,
    "kv_lora": 256,
    "qk_nope": 96,
    "qk_rope": 32,
    "v_head": 64,
    "n_ff": 512,
    "n_expert": 16,
    "n_expert_used": 4,
    "n_ff_exp": 256,
    "n_nextn": 0,
    "rms_eps": 1e-6,
}
GLM = replace(PRESETS["glm-4.7-flash"], **SIZES, q_lora=256)
# llama.cpp tells uncompressed queries by the layer count alone; few of them route, so that no tie is near.
LITE = replace(PRESETS["deepseek-v2-lite"], **SIZES | {"n_layer": 27, "n_dense": 25})
GROUPS: dict[str, Any] = {"n_group": 4, "n_group_used": 2}
V3 = replace(PRESETS["deepseek-v3"], **SIZES, **GROUPS, q_lora=256, yarn=Yarn(40.0, 64, log_multiplier=0.1))
CONFIGS: dict[str, ModelConfig] = {
    "glm": GLM,
    "v2-lite": LITE,
    "v3": V3,
    "v2": replace(PRESETS["deepseek-v2"], **SIZES, **GROUPS, q_lora=256, yarn=Yarn(40.0, 64, log_multiplier=0.0707)),
    "glm joint": replace(GLM, split_kv_b=False, fused_gate_up=True),
    "v3 dense": replace(V3, n_dense=3, tied_output=True),
}
PROMPT_LENGTHS = (7, 64, 300)
MARGIN = 1e-4  # between router scores; f32 moves them by some 1e-6


def nmse(found: np.ndarray, truth: np.ndarray) -> float:
    """Normalised mean square error: the error's energy over the truth's, all positions together."""
    difference = found.astype(np.float64) - truth
    return float(np.square(difference).sum() / np.square(truth.astype(np.float64)).sum())


@dataclass(frozen=True)
class RandomFile:
    """A synthetic GGUF and the reference that reads it."""

    path: Path
    gguf: GGUFFile
    reference: Reference

    @property
    def config(self) -> ModelConfig:
        return self.reference.config

    def weights(self) -> dict[str, np.ndarray]:
        """Every tensor dequantised to float32, under its GGUF name."""
        return {name: np.asarray(self.reference.weights[name]) for name in self.gguf.tensors}


OpenFile = Callable[..., RandomFile]  # of ``random_file``'s arguments after the folder, each file written once


def random_file(folder: Path, family: str, mix: str, overrides: tuple[tuple[str, Q], ...] = ()) -> RandomFile:
    """Write and open a file of one of ``CONFIGS``."""
    folder.mkdir()
    path = folder / f"{family.replace(' ', '-')}.gguf"
    write_synthetic(CONFIGS[family], path, mix, 1, overrides)
    gguf = GGUFFile.open(path)
    return RandomFile(path, gguf, Reference.from_gguf(gguf))


def settled_prompt(reference: Reference, length: int, seed: int = 0, margin: float = MARGIN) -> list[int]:
    """Random tokens, each drawn again while its routing is nearer than ``margin`` to another choice of experts."""
    rng = np.random.default_rng(seed)
    state, tokens = reference.start(), []
    found: list[float] = []

    def keep(name: str, layer: int, logits: np.ndarray) -> None:
        if name == "ffn_moe_logits":
            found.append(float(routing_margin(logits, reference.selection_bias(layer), reference.config)[0]))

    for _ in range(100 * length):
        found.clear()
        token = int(rng.integers(0, reference.config.n_vocab))
        reference.step([token], state, keep)
        if min(found, default=1.0) >= margin:
            tokens.append(token)
        state.rewind(len(tokens))
        if len(tokens) == length:
            return tokens
    raise AssertionError(f"no prompt of {length} tokens with routing margins of {margin}")
