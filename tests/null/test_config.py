"""ModelConfig: what a written config reads back as, published figures, one exact line for every kind of bad file."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q

from harness.running import note_gating
from model.config import (
    SUPPORTED_TYPES,
    ModelConfig,
    Yarn,
    expected_tensors,
    require_supported,
)
from model.gguf_file import GGUFFile
from model.gguf_write import config_keys
from model.presets import PRESETS, get_preset
from tests.null.random_model import BASE, CONFIGS
from vkbackend.errors import InputError

RECONVERT = "convert the model again with a current llama.cpp"
GLM = PRESETS["glm-4.7-flash"]


def write(
    path: Path,
    config: ModelConfig,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, tuple[int, ...] | None] | None = None,
    kinds: Mapping[str, Q] | None = None,
) -> GGUFFile:
    """A file of zeros for ``config`` with some keys or tensors replaced, added, or (None) left out; then opened."""
    all_keys: dict[str, Any] = {"general.name": config.name, **config_keys(config), **(keys or {})}
    writer = gguf.GGUFWriter(path, all_keys.pop("general.architecture", config.arch))
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in all_keys.items():
        if value is not None:
            add[type(value)](key, value)
    for name, shape in (expected_tensors(config) | dict(tensors or {})).items():
        if shape is None:
            continue
        kind = (kinds or {}).get(name, Q.F32)
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        data = np.zeros((*shape[:-1], shape[-1] // block * n_bytes), np.uint8)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile.open(path)


def error(file: GGUFFile) -> str:
    with pytest.raises(InputError) as caught:
        ModelConfig.from_gguf(file)
    return str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_reads_back_what_was_written(tmp_path: Path, name: str) -> None:
    config = replace(CONFIGS[name], rope_theta=5e5, rms_eps=2.0**-17, expert_scale=1.75, name="same")
    config = replace(config, expert_bias=config.expert_bias and config.n_dense < config.n_layer)
    if config.yarn is not None:  # values that float32 holds exactly
        config = replace(config, yarn=Yarn(40.0, 16, 31.0, 1.5, 0.0625))
    assert ModelConfig.from_gguf(write(tmp_path / "m.gguf", config)) == config


@pytest.mark.parametrize("key", [1, 0, None])
def test_mtp_layers_are_counted_apart(tmp_path: Path, key: int | None) -> None:
    """By the key that says so, else by their tensors; and blocks that no key counts are none of the model's."""
    config = replace(BASE, n_nextn=1)
    extra = {"blk.3.nextn.eh_proj.weight": (53, 106), "blk.3.attn_norm.weight": (53,), "blk.4.attn_norm.weight": (53,)}
    keys = {"deepseek2.nextn_predict_layers": key}
    read = ModelConfig.from_gguf(write(tmp_path / "m.gguf", config, keys, extra))
    assert (read.n_layer, read.n_nextn) == (3, 1)
    assert not any(name.startswith("blk.3.") for name in expected_tensors(read))


def test_joint_kv_b_beside_the_split_pair_is_redundant(tmp_path: Path) -> None:
    joint = {f"blk.{i}.attn_kv_b.weight": (5 * 18, 23) for i in range(3)}
    assert ModelConfig.from_gguf(write(tmp_path / "m.gguf", BASE, tensors=joint)).split_kv_b


@pytest.mark.parametrize("mla_keys", [True, False])
def test_heads_left_in_the_rows_are_the_same_tensor(tmp_path: Path, mla_keys: bool) -> None:
    """ik_llama.cpp's converter writes k_b and v_b of two dimensions, and the plain keys of per-head sizes."""
    flat: dict[str, tuple[int, ...] | None] = {}
    for i in range(3):
        flat |= {f"blk.{i}.attn_k_b.weight": (5 * 23, 7), f"blk.{i}.attn_v_b.weight": (5 * 11, 23)}
        flat[f"blk.{i}.attn_kv_b.weight"] = (5 * 18, 23)
    keys: dict[str, Any] = {} if mla_keys else config_keys(replace(BASE, split_kv_b=False))
    if not mla_keys:
        keys |= {"deepseek2.attention.key_length_mla": None, "deepseek2.attention.value_length_mla": None}
    read = ModelConfig.from_gguf(write(tmp_path / "m.gguf", BASE, keys, flat))
    assert (read.qk_nope, read.v_head, read.split_kv_b) == (7, 11, True)


def test_vocabulary_is_counted_when_there_are_tokens(tmp_path: Path) -> None:
    tokens = {"tokenizer.ggml.tokens": [str(i) for i in range(101)], "deepseek2.vocab_size": None}
    assert ModelConfig.from_gguf(write(tmp_path / "m.gguf", BASE, tokens)).n_vocab == 101


def test_rows_beyond_the_tokens_are_padding(tmp_path: Path) -> None:
    tokens = {"tokenizer.ggml.tokens": [str(i) for i in range(98)], "deepseek2.vocab_size": None}
    read = ModelConfig.from_gguf(write(tmp_path / "m.gguf", BASE, tokens))
    assert (read.n_vocab, read.n_tokens, read.n_padding) == (101, 98, 3)
    file = write(tmp_path / "m.gguf", BASE, tokens, {"output.weight": (98, 53)})
    assert error(file).startswith(f"{file.path}: tensor output.weight has shape [98, 53], expected [101, 53]")
    many = {"tokenizer.ggml.tokens": [str(i) for i in range(104)]}
    file = write(tmp_path / "m.gguf", BASE, many)
    assert error(file).startswith(f"{file.path}: tensor token_embd.weight has shape [101, 53], expected [104, 53]")


EXPERT_KEYS = ("expert_count", "expert_used_count", "expert_feed_forward_length", "expert_shared_count")
EXPERT_KEYS += ("expert_weights_scale", "expert_weights_norm", "expert_gating_func")


def test_models_without_mixture_layers_need_no_expert_keys(tmp_path: Path) -> None:
    dense = replace(CONFIGS["tied"], n_expert=0, n_expert_used=0, n_expert_shared=0, n_ff_exp=0, expert_bias=False)
    absent: dict[str, Any] = {f"deepseek2.{key}": None for key in (*EXPERT_KEYS, "leading_dense_block_count")}
    read = ModelConfig.from_gguf(write(tmp_path / "m.gguf", dense, absent))
    assert (read.n_dense, read.n_expert, read.gating) == (3, 0, "softmax")
    assert expected_tensors(read) == expected_tensors(dense)


def test_leading_dense_layers_are_counted_where_the_key_is_absent(tmp_path: Path) -> None:
    for n_dense in (0, 1, 2):
        config = replace(BASE, n_dense=n_dense)
        absent = {"deepseek2.leading_dense_block_count": None}
        assert ModelConfig.from_gguf(write(tmp_path / "m.gguf", config, absent)).n_dense == n_dense


def test_absent_keys_mean_what_llama_cpp_takes_them_for(tmp_path: Path) -> None:
    absent = ("expert_gating_func", "expert_weights_norm", "expert_weights_scale", "expert_group_count")
    absent += ("expert_group_used_count", "rope.freq_base")
    read = ModelConfig.from_gguf(write(tmp_path / "m.gguf", BASE, {f"deepseek2.{key}": None for key in absent}))
    assert (read.gating, read.norm_topk, read.expert_scale) == ("softmax", False, 1.0)
    assert (read.n_group, read.n_group_used, read.rope_theta) == (1, 1, 10_000.0)


@pytest.mark.parametrize(("n_blocks", "n_vocab", "gating"), [(47, 154_880, "sigmoid"), (47, 102_400, "softmax")])
def test_glm_files_without_a_gating_key_are_sigmoid(tmp_path: Path, n_blocks: int, n_vocab: int, gating: str) -> None:
    tiny = replace(BASE, n_embd=1, n_layer=n_blocks, n_vocab=n_vocab, q_lora=1, kv_lora=1, n_head=1, v_head=1, n_ff=1)
    file = write(tmp_path / "m.gguf", tiny, {"deepseek2.expert_gating_func": None})
    assert ModelConfig.from_gguf(file).gating == gating


def test_an_assumed_gating_function_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, plain = "deepseek2.expert_gating_func", replace(BASE, expert_bias=False)
    for number, note in ((2, False), (1, False), (0, True), (None, True)):
        file = write(tmp_path / f"{number}.gguf", plain, {key: number})
        note_gating(file, ModelConfig.from_gguf(file))
        line = f"latentvk: note: {file.path} does not set key {key}, softmax is assumed from its layer and "
        assert capsys.readouterr().err == (line + "vocabulary counts\n" if note else "")
    dense = replace(BASE, n_dense=BASE.n_layer)
    file = write(tmp_path / "dense.gguf", dense, {key: None})
    note_gating(file, ModelConfig.from_gguf(file))
    assert capsys.readouterr().err == ""


def test_a_gating_function_that_looks_wrong_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in early files of GLM-4.7-Flash: a selection bias, which no softmax router of the family has, and softmax."""
    key = "deepseek2.expert_gating_func"
    for number, lines in ((2, 0), (1, 1), (0, 2)):
        file = write(tmp_path / f"{number}.gguf", BASE, {key: number})
        note_gating(file, ModelConfig.from_gguf(file))
        told = capsys.readouterr().err.splitlines()
        assert len(told) == lines
        assert not told or told[0] == (
            f"latentvk: warning: {file.path} has exp_probs_b tensors, as models with sigmoid gating do, but runs with "
            f"softmax; if its text makes no sense, use --override-kv {key}=int:2"
        )


def test_other_architecture(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", BASE, {"general.architecture": "llama"})
    assert error(file) == (
        f"{file.path}: key general.architecture is 'llama', expected 'deepseek2'; "
        "use a GGUF of GLM-4.7-Flash, DeepSeek-V2 or DeepSeek-V3"
    )
    file.path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0))
    assert error(GGUFFile.open(file.path)) == (
        f"{file.path}: key general.architecture is missing, expected 'deepseek2'; "
        "use a GGUF of GLM-4.7-Flash, DeepSeek-V2 or DeepSeek-V3"
    )


def test_missing_keys(tmp_path: Path) -> None:
    required = ("block_count", "embedding_length", "attention.kv_lora_rank", "attention.key_length_mla", "expert_count")
    required += ("attention.q_lora_rank",)
    for key in required:
        file = write(tmp_path / "m.gguf", BASE, {f"deepseek2.{key}": None})
        assert error(file) == f"{file.path}: key deepseek2.{key} is missing, expected an integer; {RECONVERT}"
    file = write(tmp_path / "m.gguf", BASE, {"deepseek2.attention.layer_norm_rms_epsilon": None})
    assert error(file).endswith(f"layer_norm_rms_epsilon is missing, expected a number; {RECONVERT}")


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("attention.head_count", 5.0, "is 5.0, expected an integer"),
        ("attention.head_count", [5, 5, 5], "is an array of 3, expected an integer"),
        ("expert_weights_norm", 1, "is 1, expected true or false"),
        ("attention.layer_norm_rms_epsilon", float("nan"), "is nan, expected a number"),
        ("rope.scaling.type", "linear", "is 'linear', expected 'none' or 'yarn'"),
        ("attention.head_count", 0, "gives n_head = 0, expected more than 0"),
        ("block_count", 100_000, "gives n_layer = 100000, expected 1 to 512"),
        ("leading_dense_block_count", 4, "gives n_dense = 4, expected 0 to n_layer (3)"),
        ("rope.dimension_count", 5, "gives qk_rope = 5, expected an even number more than 0"),
        ("expert_used_count", 10, "gives n_expert_used = 10, expected 1 to n_expert (9)"),
        ("expert_group_count", 4, "gives n_group = 4, expected a divisor of n_expert (9)"),
        ("expert_group_count", 9, "gives n_expert_used = 3, expected at most the 1 experts of n_group_used (1) groups"),
        ("attention.key_length_mla", 6, "gives qk_nope = 0, expected more than 0"),
        ("nextn_predict_layers", 3, "gives n_layer = 0, expected 1 to 512"),
    ],
)
def test_bad_values(tmp_path: Path, key: str, value: Any, found: str) -> None:
    # n_layer is what block_count and nextn_predict_layers leave over, and too many groups leave too few experts.
    name = {"nextn_predict_layers": "block_count"}.get(key, "expert_used_count" if "n_expert_used" in found else key)
    file = write(tmp_path / "m.gguf", BASE, {f"deepseek2.{key}": value})
    assert error(file) == f"{file.path}: key deepseek2.{name} {found}; {RECONVERT}"


def test_an_unknown_gating_function_can_be_set_right(tmp_path: Path) -> None:
    key = "deepseek2.expert_gating_func"
    file = write(tmp_path / "m.gguf", BASE, {key: 3})
    assert error(file) == (
        f"{file.path}: key {key} gives gating = 'function 3', expected sigmoid or softmax; "
        f"set it with --override-kv {key}=int:1 (softmax) or 2 (sigmoid)"
    )


@pytest.mark.parametrize(
    ("key", "neutral"),
    [("attention.temperature_scale", 0.0), ("rope.scaling.attn_factor", 1.0), ("rope.scaling.yarn_attn_factor", 1.0)],
)
def test_keys_that_change_the_mathematics_are_refused(tmp_path: Path, key: str, neutral: float) -> None:
    assert ModelConfig.from_gguf(write(tmp_path / "neutral.gguf", BASE, {f"deepseek2.{key}": neutral})).n_layer == 3
    file = write(tmp_path / "m.gguf", BASE, {f"deepseek2.{key}": 0.5})
    assert error(file) == (
        f"{file.path}: key deepseek2.{key} is 0.5, expected {neutral} or none; "
        "use a GGUF of GLM-4.7-Flash, DeepSeek-V2 or DeepSeek-V3"
    )


def test_yarn_that_divides_by_zero_is_refused(tmp_path: Path) -> None:
    config = replace(CONFIGS["yarn"], yarn=Yarn(40.0, 16, 0.0, 1.0))
    file = write(tmp_path / "m.gguf", config)
    assert error(file) == (
        f"{file.path}: YaRN has beta_fast 0.0 and beta_slow 1.0, expected both more than 0, and a rope.freq_base more "
        f"than 1; {RECONVERT}"
    )


@pytest.mark.parametrize("name", expected_tensors(BASE))
def test_every_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    if name == "output.weight":
        pytest.skip("its absence means a tied output")
    file = write(tmp_path / "m.gguf", BASE, tensors={name: None})
    shape = list(expected_tensors(BASE)[name])
    assert error(file) == f"{file.path}: tensor {name} is missing, expected shape {shape}; {RECONVERT}"


@pytest.mark.parametrize("name", ["attn_q_a.weight", "attn_k_b.weight"])
def test_a_variant_s_tensors_missing_everywhere(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "m.gguf", BASE, tensors={f"blk.{i}.{name}": None for i in range(3)})
    assert f": tensor blk.0.{name} is missing, expected shape [" in error(file)


@pytest.mark.parametrize("name", expected_tensors(BASE))
def test_every_wrong_shape_is_named(tmp_path: Path, name: str) -> None:
    shape = expected_tensors(BASE)[name]
    wrong = (*shape[:-1], shape[-1] + 1)
    file = write(tmp_path / "m.gguf", BASE, tensors={name: wrong})
    assert error(file) == (
        f"{file.path}: tensor {name} has shape {list(wrong)}, expected {list(shape)} (NumPy order) from the "
        f"file's keys; {RECONVERT}"
    )


def test_unknown_tensor_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", BASE, tensors={"blk.1.attn_q_a.bias": (19,)})
    assert error(file) == (
        f"{file.path}: tensor blk.1.attn_q_a.bias has no part in the model as latentvk computes it, expected only "
        f"the {len(expected_tensors(BASE))} tensors of the architecture; use a file without it, or the result "
        "would be wrong"
    )


def test_contradicting_values_name_the_field() -> None:
    with pytest.raises(InputError) as caught:
        replace(BASE, n_expert_used=10)
    assert str(caught.value) == "random: n_expert_used is 10, expected 1 to n_expert (9); correct the value"


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("glm-4.7-flash", 29.943),
        ("deepseek-v2-lite", 15.706),
        ("deepseek-v2", 235.741),
        ("deepseek-v3", 671.026),
        ("kimi-k2", 1026.408),
    ],  # 30 B, 15.7 B, 236 B, 671 B, 1 T published
)
def test_presets_have_the_published_sizes(name: str, billions: float) -> None:
    total = sum(prod(shape) for shape in expected_tensors(get_preset(name)).values())
    assert total / 1e9 == pytest.approx(billions, abs=5e-4)


def test_attention_scales() -> None:
    assert GLM.attn_scale == 1 / 16
    # DeepSeek's own code: (0.1 * 0.707 * ln 40 + 1)^2 / sqrt(192), and the same with 1.0 for V3
    assert PRESETS["deepseek-v2-lite"].attn_scale == pytest.approx(0.1147213868, rel=1e-9)
    assert PRESETS["deepseek-v3"].attn_scale == pytest.approx(0.1352337789, rel=1e-9)


def test_unknown_preset() -> None:
    with pytest.raises(InputError) as caught:
        get_preset("glm-5")
    assert str(caught.value) == (
        "preset 'glm-5' is unknown, expected one of glm-4.7-flash, deepseek-v2-lite, deepseek-v2, deepseek-v3, "
        "kimi-k2; choose one of them"
    )


# Widths that are whole vectors of four, as kernels read them.
RUNNABLE = replace(BASE, q_lora=20, kv_lora=24, qk_nope=8, qk_rope=4, v_head=12, n_ff=64, n_ff_exp=32)


@pytest.mark.parametrize("kind", [Q.Q8_1, Q.Q8_K, Q.Q1_0, Q.I8, Q.F64], ids=lambda kind: kind.name)
def test_types_without_a_shader(tmp_path: Path, kind: Q) -> None:
    config = replace(RUNNABLE, n_embd=256)
    name = "blk.2.ffn_up_exps.weight"
    file = write(tmp_path / "m.gguf", config, kinds={name: kind})
    with pytest.raises(InputError) as caught:
        require_supported(ModelConfig.from_gguf(file), file)
    assert str(caught.value) == (
        f"{file.path}: tensor {name} has type {kind.name}, which has no shader, expected one of F32, F16, BF16, Q4_0, "
        "Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4, NVFP4, IQ1_S, IQ1_M, IQ2_XXS, "
        "IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, TQ1_0, TQ2_0; requantise the model, for example to Q4_K_M with llama-quantize"
    )


@pytest.mark.parametrize("kind", SUPPORTED_TYPES)
def test_types_with_a_shader(tmp_path: Path, kind: Q) -> None:
    config = replace(RUNNABLE, n_embd=256)
    file = write(tmp_path / "m.gguf", config, kinds={"output.weight": kind})
    require_supported(ModelConfig.from_gguf(file), file)
    require_supported(GLM)


@pytest.mark.parametrize(("field", "value"), [("qk_nope", 190), ("n_ff_exp", 1538)])
def test_widths_that_are_no_whole_vectors_are_refused(field: str, value: int) -> None:
    config = replace(GLM, **{field: value})
    with pytest.raises(InputError) as caught:
        require_supported(config)
    assert str(caught.value) == (
        f"GLM-4.7-Flash: {field} is {value}, expected a multiple of 4; use a model of other dimensions"
    )
