"""Write a checkpoint as the embedded GGUF: llama.cpp's names and keys for deepseek2, and a Q4_K_M-like mix of types.

python -m model.training.export --run run --out model/data/latentvk-tiny.gguf
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from gguf import GGUFWriter, LlamaFileType, TokenType

from model.config import ARCHITECTURE, GATING_FUNCTIONS, KEYS, ModelConfig
from model.mix import mix_types
from model.quantize import quantize
from model.tensors import expected_tensors
from model.training.bpe import SPECIALS
from model.training.torch_model import EMBEDDED

# What departs from Q4_K_M's own choice: the file has room for 8 bits in small tensors that every token depends on.
OVERRIDES = [
    (r"attn_kv_a_mqa|attn_q_b|attn_v_b|ffn_down_shexp|blk\.2\.ffn_down_exps", Q.Q8_0),
    (r"token_embd|blk\.0\.ffn_down", Q.Q6_K),
]

CHAT_TEMPLATE = (
    "[gMASK]<sop>"
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def gguf_name(parameter: str) -> str:
    """GGUF name of a TinyModel parameter: blocks.1.feed_forward.exp_probs_b -> blk.1.exp_probs_b.bias."""
    *path, leaf = parameter.split(".")
    suffix = "bias" if leaf == "exp_probs_b" else "weight"
    return f"blk.{path[1]}.{leaf}.{suffix}" if path else f"{leaf}.{suffix}"


def checkpoint_weights(path: Path) -> dict[str, np.ndarray]:
    """GGUF name -> float32 array of a checkpoint of train.py."""
    state = torch.load(path, weights_only=True)["model"]
    return {gguf_name(name): tensor.float().numpy() for name, tensor in state.items()}


def write_metadata(writer: GGUFWriter, config: ModelConfig) -> None:
    """Every key that llama.cpp and latentvk read; KEYS names the ones that are a field of the config."""
    key = f"{ARCHITECTURE}.{{}}".format
    for field in (
        "n_layer",
        "n_dense",
        "n_embd",
        "n_vocab",
        "n_head",
        "q_lora",
        "kv_lora",
        "qk_rope",
        "v_head",
        "n_ff",
    ):
        writer.add_uint32(key(KEYS[field]), getattr(config, field))
    for field in ("n_expert", "n_expert_used", "n_expert_shared", "n_ff_exp", "n_ctx_train"):
        writer.add_uint32(key(KEYS[field]), getattr(config, field))
    for field in ("expert_scale", "rope_theta", "rms_eps"):
        writer.add_float32(key(KEYS[field]), getattr(config, field))
    writer.add_uint32(key(KEYS["gating"]), {name: number for number, name in GATING_FUNCTIONS.items()}[config.gating])
    writer.add_bool(key(KEYS["norm_topk"]), config.norm_topk)
    writer.add_uint32(key(KEYS["qk_nope"]), config.key_dim)
    writer.add_uint32(key("attention.head_count_kv"), 1)
    writer.add_uint32(key("attention.key_length"), config.latent_dim)
    writer.add_uint32(key("attention.value_length"), config.kv_lora)


def write_tokenizer(writer: GGUFWriter, path: Path) -> None:
    """The tokenizer.json of bpe.py as tokenizer.ggml.* keys."""
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in SPECIALS else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokens.index("[gMASK]"))
    writer.add_eos_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def export(weights: dict[str, np.ndarray], config: ModelConfig, tokenizer: Path, out: Path) -> None:
    """Quantise and write under a temporary name, then rename."""
    partial = out.with_suffix(".partial")
    writer = GGUFWriter(partial, ARCHITECTURE)
    writer.add_name(config.name)
    writer.add_description("Trained from nothing for latentvk's tests and demonstration; see MODEL_CARD.md")
    writer.add_license("mit")
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_quantization_version(2)
    write_metadata(writer, config)
    write_tokenizer(writer, tokenizer)
    types = mix_types(config, "q4_k_m", OVERRIDES)
    for name, shape in expected_tensors(config).items():
        if weights[name].shape != shape:
            raise SystemExit(f"tensor {name} has shape {weights[name].shape} in the checkpoint, expected {shape}")
        if types[name] == Q.F32:
            writer.add_tensor(name, np.ascontiguousarray(weights[name], np.float32))
        elif types[name] == Q.F16:
            writer.add_tensor(name, weights[name].astype(np.float16))
        else:
            writer.add_tensor(name, quantize(weights[name], types[name]), raw_dtype=types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(out)


def main() -> None:
    """Export the run's checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder with checkpoint.pt and tokenizer.json")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    weights = checkpoint_weights(arguments.run / "checkpoint.pt")
    export(weights, EMBEDDED, arguments.run / "tokenizer.json", arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
