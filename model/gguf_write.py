"""Writing a ``deepseek2`` GGUF: a config's keys in llama.cpp's convention, and tensors streamed one after another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from model.config import ARCHITECTURE, GATING_FUNCTIONS, KEYS, ModelConfig
from model.gguf_file import DEFAULT_ALIGNMENT
from model.layout import tensor_bytes
from model.tensors import file_tensors


def config_keys(config: ModelConfig) -> dict[str, Any]:
    """The ``deepseek2.*`` keys of ``config``: what ``ModelConfig.from_gguf`` reads and what llama.cpp wants besides."""
    same = ["n_dense", "n_embd", "n_vocab", "n_head", "kv_lora", "qk_rope", "n_ff", "n_expert", "n_expert_used"]
    same += ["n_expert_shared", "n_ff_exp", "norm_topk", "n_group", "n_group_used", "n_ctx_train"]
    floats = ("expert_scale", "rope_theta", "rms_eps")
    keys: dict[str, Any] = {KEYS[field]: getattr(config, field) for field in same}
    keys |= {KEYS[field]: float(getattr(config, field)) for field in floats}
    keys[KEYS["n_layer"]] = config.n_layer + config.n_nextn
    keys[KEYS["gating"]] = next(n for n, name in GATING_FUNCTIONS.items() if name == config.gating)
    if config.q_lora:
        keys[KEYS["q_lora"]] = config.q_lora
    if config.n_nextn:
        keys[KEYS["n_nextn"]] = config.n_nextn
    if not config.n_expert:  # llama.cpp allows no groups of no experts
        del keys[KEYS["n_group"]], keys[KEYS["n_group_used"]]
    keys |= _head_keys(config)
    if config.yarn is not None:
        keys[KEYS["yarn"]] = "yarn"
        keys |= {
            "rope.scaling.factor": float(config.yarn.factor),
            "rope.scaling.original_context_length": config.yarn.n_ctx_orig,
            "rope.scaling.yarn_beta_fast": float(config.yarn.beta_fast),
            "rope.scaling.yarn_beta_slow": float(config.yarn.beta_slow),
            "rope.scaling.yarn_log_multiplier": float(config.yarn.log_multiplier),
        }
    return {f"{ARCHITECTURE}.{key}": value for key, value in keys.items()}


def _head_keys(config: ModelConfig) -> dict[str, int]:
    """Head sizes. With split k_b and v_b the plain keys describe the latent cache: one head of R + P, values of R."""
    if not config.split_kv_b:
        plain = (config.n_head, config.key_dim, config.v_head)
        real = {}
    else:
        plain = (1, config.latent_dim, config.kv_lora)
        real = {KEYS["qk_nope"]: config.key_dim, KEYS["v_head"]: config.v_head}
    names = ("attention.head_count_kv", "attention.key_length", "attention.value_length")
    return dict(zip(names, plain, strict=True)) | real


def write_model(
    stream: BinaryIO,
    config: ModelConfig,
    types: Mapping[str, GGMLQuantizationType],
    kv: Mapping[str, Any],
    tensor_data: Callable[[str], Iterable[np.ndarray]],
) -> int:
    """Write a whole file to ``stream`` and return its size in bytes.

    ``types`` gives every tensor's type, ``kv`` the keys beyond the config's (general.*, tokenizer.*), and
    ``tensor_data(name)`` yields that tensor's encoded bytes (arrays) in pieces, of which one at a time is held.
    """
    shapes = file_tensors(config)
    written = stream.write(_header(config_keys(config) | dict(kv), {n: (types[n], s) for n, s in shapes.items()}))
    for name, shape in shapes.items():
        written += stream.write(bytes(-written % DEFAULT_ALIGNMENT))
        start = written
        for piece in tensor_data(name):
            written += stream.write(np.ascontiguousarray(piece).data.cast("B"))
        if written - start != tensor_bytes(shape, types[name]):
            raise ValueError(f"{name}: {written - start} bytes given, {tensor_bytes(shape, types[name])} expected")
    return written + stream.write(bytes(-written % DEFAULT_ALIGNMENT))


def file_bytes(config: ModelConfig, types: Mapping[str, GGMLQuantizationType]) -> int:
    """Size of the tensor section with its padding; the header comes on top."""
    sizes = (tensor_bytes(shape, types[name]) for name, shape in file_tensors(config).items())
    return sum(size + -size % DEFAULT_ALIGNMENT for size in sizes)


def _header(kv: Mapping[str, Any], tensors: Mapping[str, tuple[GGMLQuantizationType, tuple[int, ...]]]) -> bytes:
    """Everything before the tensor section, by gguf-py's writer; it only writes to a path, hence the detour."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        writer = GGUFWriter(path, ARCHITECTURE)
        for key, value in kv.items():
            _add(writer, key, value)
        for name, (kind, shape) in tensors.items():
            writer.add_tensor_info(name, shape, np.dtype(np.float32), tensor_bytes(shape, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return path.read_bytes()


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
