"""Synthetic files and the oracle against llama.cpp, through the prebuilt ``xllamacpp`` wheel. Skipped without it.

llama.cpp keeps an f16 cache and the files hold F32 weights, so what is compared differs by rounding of the cache alone:
2^-11 of each key and value, which moves log-probabilities by a few thousandths at these widths. Router ties could move
them more, so the prompts' margins are checked first.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.synth import write_synthetic
from model.config import PRESETS, ModelConfig
from model.gguf_file import GGUFFile
from model.reference import Reference

xllamacpp = pytest.importorskip("xllamacpp")

SIZES = {"n_vocab": 600, "n_embd": 256, "kv_lora": 256, "qk_nope": 96, "qk_rope": 32, "v_head": 64, "n_head": 4}
SIZES |= {"n_ff": 512, "n_expert": 16, "n_expert_used": 4, "n_ff_exp": 256, "n_nextn": 0, "n_dense": 1}
CASES = {
    "glm-4.7-flash": {"n_layer": 3, "q_lora": 256},
    # llama.cpp knows uncompressed queries by the layer count alone; few of the layers route, so that no tie is near
    "deepseek-v2-lite": {"n_layer": 27, "n_dense": 24},
    "deepseek-v3": {"n_layer": 4, "q_lora": 128},
}
PROMPT = [3, 50, 99, 222, 400, 511, 17]
TOLERANCE = 0.02


def config_of(name: str) -> ModelConfig:
    values: dict[str, Any] = SIZES | CASES[name]
    return replace(PRESETS[name], **values)


def llama_cpp_log_probs(path: Path) -> dict[int, float]:
    """Log-probabilities of the five likeliest tokens after PROMPT."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_gpu_layers, params.warmup, params.cpuparams.n_threads = 512, 0, False, 2
    request = {"prompt": PROMPT, "n_predict": 1, "temperature": 0, "n_probs": 5, "cache_prompt": False}
    answer = xllamacpp.Server(params).handle_completions(request)
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    return {row["id"]: row["logprob"] for row in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}


@pytest.mark.parametrize("name", CASES)
def test_same_log_probabilities(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.gguf"
    write_synthetic(config_of(name), path, "f32")
    reference = Reference.from_gguf(GGUFFile.open(path))
    assert reference.routing_margins(PROMPT).min() > 1e-4
    logits = reference.logits(PROMPT)[-1].astype(np.float64)
    ours = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    theirs = llama_cpp_log_probs(path)
    assert set(theirs) == set(np.argsort(-ours)[:5].tolist())
    np.testing.assert_allclose([ours[i] for i in theirs], list(theirs.values()), rtol=0, atol=TOLERANCE)
