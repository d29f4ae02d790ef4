"""The embedded GGUF is what its card says: structure, mix of types, tokenizer, and that it was trained."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q

from model import tasks
from model.config import ModelConfig, require_supported
from model.data import EMBEDDED_MODEL
from model.gguf_file import GGUFFile, dequantize
from model.layout import CacheLayout, cache_elements_per_token_layer
from model.reference.forward import Reference
from model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def gguf_file() -> GGUFFile:
    return GGUFFile.open(EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def config(gguf_file: GGUFFile) -> ModelConfig:
    return ModelConfig.from_gguf(gguf_file)


def test_size_is_within_eight_megabytes() -> None:
    assert EMBEDDED_MODEL.stat().st_size <= 8_000_000


def test_structure_is_that_of_glm_4_7_flash(config: ModelConfig, gguf_file: GGUFFile) -> None:
    require_supported(config, gguf_file)
    assert (config.n_layer, config.n_dense, config.n_head) == (3, 1, 20)
    assert (config.n_expert, config.n_expert_used, config.n_expert_shared) == (16, 4, 1)
    assert (config.gating, config.norm_topk) == ("sigmoid", True)
    assert config.expert_scale == pytest.approx(1.8)
    assert config.q_lora > 0
    assert config.n_ctx_train >= 16_384


def test_per_head_cache_is_1280_elements_to_72_latent(config: ModelConfig) -> None:
    per_head = cache_elements_per_token_layer(config, CacheLayout.PER_HEAD)
    latent = cache_elements_per_token_layer(config, CacheLayout.LATENT)
    assert (per_head, latent) == (1280, 72)
    assert round(per_head / latent, 2) == 17.78


def test_mix_of_types_reaches_every_decoder(gguf_file: GGUFFile) -> None:
    assert {info.type for info in gguf_file.tensors.values()} == {Q.F32, Q.F16, Q.Q8_0, Q.Q5_0, Q.Q4_K, Q.Q6_K}


@pytest.mark.parametrize("layer", [1, 2])
def test_selection_bias_differs_between_experts(gguf_file: GGUFFile, layer: int) -> None:
    bias = dequantize(gguf_file.tensors[f"blk.{layer}.exp_probs_b.bias"])
    assert bias.shape == (16,)
    assert np.ptp(bias) > 1e-3


def test_tokenizer_round_trips_the_heldout_text(gguf_file: GGUFFile, config: ModelConfig) -> None:
    tokenizer = Tokenizer.from_gguf(gguf_file)
    text = tasks.heldout_text()
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert max(tokens) < config.n_vocab
    assert len(tokens) > 2 * config.n_ctx_train  # long contexts need not repeat a stretch of it


def test_chat_template_marks_the_turns_with_control_tokens(gguf_file: GGUFFile) -> None:
    tokenizer = Tokenizer.from_gguf(gguf_file)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "What is a hacker?"}])
    assert prompt == "[gMASK]<sop><|user|>\nWhat is a hacker?<|assistant|>\n"
    assert tokenizer.encode(prompt)[:3] == [1, 2, 4]


def test_it_was_trained(gguf_file: GGUFFile, config: ModelConfig) -> None:
    """Far from chance on a short held-out document: a uniform guess has perplexity 2,048 and recall under 1 %."""
    document = tasks.build_document(Tokenizer.from_gguf(gguf_file), 384, seed=1)
    logits = Reference.from_gguf(gguf_file).logits(document.tokens.tolist())
    assert tasks.score_perplexity(document, logits) < 150
    assert tasks.score_recall(document, logits[document.answer_positions].argmax(1)) >= 50
