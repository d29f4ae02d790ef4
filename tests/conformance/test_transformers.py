"""The oracle and the device against Hugging Face transformers (5.x), written by others. Skipped without it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from agreement import CONFIGS, PROMPT_LENGTHS, OpenFile, RandomFile, nmse, settled_prompt
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q

from model import reference
from model.config import ModelConfig, Yarn
from model.engine import Model, Session
from model.layout import PATHS
from model.reference import Reference
from model.tensors import SUPPORTED_TYPES
from tests.null.random_model import BASE, random_tokens, random_weights
from vkbackend.device import Device

pytest.importorskip("torch")
pytest.importorskip("transformers")
from transformers_peer import TheirModel

# Odd sizes stay odd where transformers allows it: it wants a hidden size that is a multiple of the heads, and even rows
# for its complex rope.
COMMON = replace(BASE, n_embd=55, n_expert=12, kv_lora=24, qk_nope=8, rms_eps=1e-6)
LITE = replace(
    COMMON,
    q_lora=0,
    gating="softmax",
    norm_topk=False,
    expert_scale=1.0,
    expert_bias=False,
    n_expert_shared=2,
    yarn=Yarn(40.0, 16, log_multiplier=0.0707),
)
CASES: dict[str, tuple[str, ModelConfig]] = {
    "glm-4.7-flash": ("glm", replace(COMMON, rope_theta=1e6)),
    "deepseek-v3": (
        "v3",
        replace(COMMON, n_group=4, n_group_used=2, expert_scale=2.5, yarn=Yarn(40.0, 16, log_multiplier=0.1)),
    ),
    "deepseek-v2-lite": ("v2-lite", LITE),
    # Without mscale_all_dim, cosines and sines grow in place of the attention scale.
    "yarn without mscale": ("v3", replace(COMMON, yarn=Yarn(8.0, 16, beta_fast=4.0))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_oracle(name: str, seed: int) -> None:
    family, config = CASES[name]
    weights = random_weights(config, seed)
    ours, theirs = Reference(weights, config), TheirModel(family, config, weights)
    tokens = random_tokens(config, 40, seed)
    while ours.routing_margins(tokens).min() < 1e-4:  # nearer, rounding may choose other experts
        tokens = random_tokens(config, 40, tokens[0] + 1000 * tokens[1])
    want = theirs.logits(tokens)
    for path in reference.PATHS:
        assert float(np.abs(ours.logits(tokens, path) - want).max() / np.abs(want).max()) < 1e-5


# Bounds of the normalised mean square error. An f16 cache rounds each number by up to 2^-11 of it; weights that were
# quantised are the same numbers on both sides, so that f32 arithmetic alone is left.
PLAIN, F16_CACHE, QUANTISED = 1e-6, 1e-4, 1e-5
CHUNKS = (1, 7, 512)


@dataclass
class Case:
    """A file, and transformers' logits for its prompts."""

    file: RandomFile
    truths: list[tuple[list[int], np.ndarray]]


@pytest.fixture(scope="module")
def case(file: OpenFile) -> Callable[..., Case]:
    made: dict[tuple[object, ...], Case] = {}

    def get(family: str, mix: str, overrides: tuple[tuple[str, Q], ...] = ()) -> Case:
        key = family, mix, overrides
        if key not in made:
            found = file(*key)
            theirs = TheirModel(family, found.config, found.weights())
            prompts = [settled_prompt(found.reference, length) for length in PROMPT_LENGTHS]
            made[key] = Case(found, [(p, theirs.logits(p)) for p in prompts])
        return made[key]

    return get


def worst(device: Device, case: Case, path: str, cache: str) -> dict[int, float]:
    """For each chunk length the largest error over the prompts."""
    model = Model.load(case.file.gguf, device)
    found = {}
    for chunk in CHUNKS:
        session = Session(model, replace(PATHS[path], cache_type=cache), max(PROMPT_LENGTHS), chunk)
        errors = []
        for tokens, truth in case.truths:
            session.rewind(0)
            logits = session.prompt(tokens, "all")
            assert logits is not None
            errors.append(nmse(logits, truth))
        found[chunk] = max(errors)
        session.close()
    model.close()
    return found


@pytest.mark.parametrize("cache", ["f32", "f16"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mix", ["f32", "f16", "q4_k_m"])
@pytest.mark.parametrize("family", CONFIGS)
def test_device(
    device: Device,
    case: Callable[..., Case],
    row: Callable[[str], None],
    family: str,
    mix: str,
    path: str,
    cache: str,
) -> None:
    bound = F16_CACHE if cache == "f16" else PLAIN if mix in ("f32", "f16") else QUANTISED
    errors = worst(device, case(family, mix), path, cache)
    chunks = "  ".join(f"{error:.1e}" for error in errors.values())
    row(f"transformers  {family:10} {mix:8} {path:6} cache {cache}  chunks {CHUNKS}: {chunks}  bound {bound:.0e}")
    assert max(errors.values()) < bound


@pytest.mark.parametrize("kind", [k for k in SUPPORTED_TYPES if k not in (Q.F32, Q.F16)], ids=lambda k: k.name)
def test_every_type(device: Device, case: Callable[..., Case], row: Callable[[str], None], kind: Q) -> None:
    """All matrices in one type, but for k_b's short rows, which stay in what llama-quantize falls back to."""
    block = GGML_QUANT_SIZES[kind][0]
    pattern = "" if block <= 32 else "^(?!.*attn_k_b)"
    errors = worst(device, case("glm", "q4_k_m", ((pattern, kind),)), "mla", "f16")
    row(f"transformers  glm, {kind.name:8} mla cache f16: {max(errors.values()):.1e}  bound {QUANTISED:.0e}")
    assert max(errors.values()) < QUANTISED
