"""Synthetic files, the oracle and the device against llama.cpp's CPU library, through ``llama-cpp-python``.

llama.cpp rounds activations to 8 bits before a product with quantised weights, so that on such files it is itself off
by some 1e-3 of the logits' energy. On F32 files what differs is its f16 cache. Skipped where it is not installed.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from agreement import CONFIGS, PROMPT_LENGTHS, OpenFile, nmse, settled_prompt

from model.engine import Model, Session
from model.layout import PATHS
from vkbackend.device import Device

llama_cpp = pytest.importorskip("llama_cpp")

# F32 products are exact on both sides; quantised ones see llama.cpp's 8-bit activations, which leave each token 5e-4 to
# 1.3e-3 from the truth and move router scores by up to 0.014, so that prompts must keep farther from another choice of
# experts: a token that llama.cpp gives to other ones is 0.1 and more away.
MARGINS = {"f32": 1e-4, "q8_0": 0.02, "q4_k_m": 0.02}
BOUNDS = {"f32": 1e-4, "q8_0": 5e-3, "q4_k_m": 5e-3}


def llama_cpp_logits(path: Path, tokens: list[int]) -> np.ndarray:
    """f32 logits of every position: [T, n_vocab]."""
    model = llama_cpp.Llama(str(path), n_ctx=512, n_batch=512, n_gpu_layers=0, logits_all=True, verbose=False)
    model.eval(tokens)
    found: np.ndarray = np.array(model.scores[: len(tokens)])
    model.close()
    return found


@pytest.mark.parametrize("mix", BOUNDS)
@pytest.mark.parametrize("family", [name for name in CONFIGS if name != "v2"])  # it sums a group's two best for V2 too
def test_logits(device: Device, file: OpenFile, row: Callable[[str], None], family: str, mix: str) -> None:
    found = file(family, mix)
    prompts = [settled_prompt(found.reference, length, margin=MARGINS[mix]) for length in PROMPT_LENGTHS]
    truths = [llama_cpp_logits(found.path, tokens) for tokens in prompts]
    oracle = max(nmse(found.reference.logits(p), t) for p, t in zip(prompts, truths, strict=True))
    model = Model.load(found.gguf, device)
    errors = []
    for path in PATHS.values():
        session = Session(model, path, max(PROMPT_LENGTHS))
        for tokens, truth in zip(prompts, truths, strict=True):
            session.rewind(0)
            logits = session.prompt(tokens, "all")
            assert logits is not None
            errors.append(nmse(logits, truth))
        session.close()
    model.close()
    row(f"llama.cpp  {family:10} {mix:8} all paths: {max(errors):.1e}, oracle {oracle:.1e}, bound {BOUNDS[mix]:.0e}")
    assert max(errors) < BOUNDS[mix]
    assert oracle < BOUNDS[mix]
