"""Synthetic files: they read back as asked for, run through the reference, and are written whole or not at all."""

import json
import shutil
import tracemalloc
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q

from harness import cli, synth
from harness.synth import shaped, write_synthetic
from harness.synth_tokenizer import CONTROL_TOKENS, SMALLEST, tokenizer_keys
from harness.units import bytes_text
from model.config import ModelConfig, require_supported
from model.gguf_file import GGUFFile, dequantize
from model.gguf_write import file_bytes
from model.mix import MIXES, mix_types
from model.presets import PRESETS
from model.reference.forward import Reference
from model.tokenizer import Tokenizer
from tests.null.random_model import BASE, CONFIGS
from vkbackend.errors import InputError

GLM = PRESETS["glm-4.7-flash"]
# GLM's proportions with K-quant rows, k_b rows that fit no K-quant, and three layers.
SMALL = replace(
    GLM,
    n_layer=3,
    n_vocab=600,
    n_embd=256,
    q_lora=256,
    kv_lora=256,
    qk_nope=96,
    qk_rope=32,
    v_head=64,
    n_head=4,
    n_ff=512,
    n_expert=8,
    n_ff_exp=256,
    n_nextn=0,
)


def same_but_rounded(config: ModelConfig) -> ModelConfig:
    """Floats as a GGUF's float32 holds them, and the name that a synthetic file carries."""
    yarn = config.yarn and replace(config.yarn, log_multiplier=float(np.float32(config.yarn.log_multiplier)))
    return replace(
        config,
        name=f"{config.name} (random weights)",
        expert_scale=float(np.float32(config.expert_scale)),
        rms_eps=float(np.float32(config.rms_eps)),
        expert_bias=config.expert_bias and config.n_dense < config.n_layer,
        yarn=yarn,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_awkward_shapes_read_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.gguf"
    assert write_synthetic(CONFIGS[name], path) == path.stat().st_size
    assert ModelConfig.from_gguf(GGUFFile.open(path)) == same_but_rounded(CONFIGS[name])
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("mix", MIXES)
def test_mixes(tmp_path: Path, mix: str) -> None:
    path = tmp_path / "m.gguf"
    write_synthetic(SMALL, path, mix)
    file = GGUFFile.open(path)
    config = ModelConfig.from_gguf(file)
    require_supported(config, file)
    assert {name: t.type for name, t in file.tensors.items()} == mix_types(SMALL, mix)
    assert [t.name for t in gguf.GGUFReader(path).tensors] == list(file.tensors)
    assert file.kv["general.file_type"] == int(MIXES[mix][1])


def test_activations_stay_sane(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_synthetic(SMALL, path)
    file = GGUFFile.open(path)
    trace: dict[tuple[str, int], float] = {}

    def keep(name: str, layer: int, values: np.ndarray) -> None:
        trace[name, layer] = float(np.sqrt(np.mean(values**2)))

    reference = Reference.from_gguf(file)
    tokens = list(range(0, 600, 25))
    hidden = reference.step(tokens, reference.start(), keep)
    logits = reference.head(hidden)
    assert np.isfinite(logits).all()
    assert logits.std() == pytest.approx(synth.LOGIT_STD, rel=0.1)
    assert len(set(logits.argmax(axis=1).tolist())) > len(tokens) // 2  # not one favourite token
    assert all(0.05 < size < 5 for size in trace.values()), trace
    assert reference.routing_margins(tokens).min() > 0


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    contents = []
    for index, seed in enumerate((3, 3, 4)):
        path = tmp_path / f"{index}.gguf"
        write_synthetic(BASE, path, seed=seed)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_norms_and_bias(tmp_path: Path) -> None:
    write_synthetic(SMALL, tmp_path / "m.gguf")
    tensors = GGUFFile.open(tmp_path / "m.gguf").tensors
    norm = dequantize(tensors["blk.1.ffn_norm.weight"])
    assert norm.mean() == pytest.approx(1, abs=0.05) and 0.05 < norm.std() < 0.2
    assert (dequantize(tensors["blk.1.exp_probs_b.bias"]) != 0).all()


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "PIECE_BYTES", 1 << 20)
    tracemalloc.start()
    size = write_synthetic(replace(SMALL, n_expert=96), tmp_path / "m.gguf", "q8_0")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 32 << 20
    assert peak < 8 << 20


def test_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("what was there before")

    def interrupt(n_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(BASE, path, report=interrupt)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["what was there before"]


def test_disk_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 10 << 20))
    path = tmp_path / "m.gguf"
    with pytest.raises(InputError) as caught:
        write_synthetic(GLM, path)
    needed = file_bytes(GLM, mix_types(GLM, "q4_k_m"))
    assert str(caught.value) == (
        f"{path}: {bytes_text(10 << 20)} are free there, expected at least {bytes_text(needed)}; "
        "choose another disk, fewer --layers or a smaller --mix"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_vocab", [SMALLEST, 101, 263, 264, 1000, 66_000])
def test_tokenizer(n_vocab: int) -> None:
    kv = tokenizer_keys(n_vocab)
    tokens = kv["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == len(kv["tokenizer.ggml.token_type"]) == n_vocab
    tokenizer = Tokenizer(kv, "synthetic")
    if n_vocab >= 264:  # every byte has a token
        assert tokenizer.encode("<|user|>") == [tokens.index("<|user|>")]
        text = "The quick brown fox, 12,345 na\u00efve \U0001f600s\n\tand a tab"
        assert tokenizer.decode(tokenizer.encode(text)) == text
    if n_vocab > 1000:
        assert len(tokenizer.encode("The quick brown fox")) < 12
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "A"}])
    assert chat == "[gMASK]<sop><|user|>\nA<|assistant|>\n"


def test_vocabulary_too_small() -> None:
    with pytest.raises(InputError) as caught:
        tokenizer_keys(SMALLEST - 1)
    assert str(caught.value) == f"n_vocab is {len(CONTROL_TOKENS) + 1}, expected at least {SMALLEST}; raise --vocab"


def test_shaped() -> None:
    config = shaped(GLM, 1, 900, ["n_expert=8", "rope_theta=5e4", "norm_topk=false", "gating=softmax"])
    assert config == replace(
        GLM, n_layer=1, n_vocab=900, n_expert=8, rope_theta=5e4, norm_topk=False, gating="softmax", n_nextn=0
    )


SMALL_SHAPE = "n_embd=64 q_lora=32 kv_lora=32 qk_nope=16 qk_rope=16 v_head=16 n_head=2 n_ff=64 n_expert=4 n_ff_exp=32"


def run(*args: str) -> int:
    return cli.main(["synth", "--layers", "2", "--vocab", "300", "--shape", *SMALL_SHAPE.split(), *args])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.gguf"
    assert run("-o", str(path), "--mix", "q8_0", "--type", "attn_v_b=f16", "--seed", "5", "--json", "-") == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert err == ""
    assert (record["bytes"], record["seed"], record["mix"]) == (path.stat().st_size, 5, "q8_0")
    assert record["config"]["n_expert"] == 4
    file = GGUFFile.open(path)
    assert file.tensors["blk.1.attn_v_b.weight"].type is Q.F16
    assert file.tensors["blk.1.attn_k_b.weight"].type is Q.F16  # rows of 16 fit no block
    assert run("-o", str(path)) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{path}: ") and out.count("\n") == 1 and err == ""


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (
            ["--mix", "q2_k"],
            "mix 'q2_k' is unknown, expected one of q4_k_m, q5_k_m, q6_k, q8_0, bf16, f16, f32; choose one with --mix",
        ),
        (
            ["--preset", "llama"],
            "preset 'llama' is unknown, expected one of glm-4.7-flash, deepseek-v2-lite, deepseek-v2, deepseek-v3, "
            "kimi-k2; choose one of them",
        ),
        (
            ["--shape", "n_expert_used=5"],
            "GLM-4.7-Flash: n_expert_used is 5, expected 1 to n_expert (4); correct the value",
        ),
        (["--shape", "n_ff=big"], "--shape 'n_ff=big': the value is no int, expected a whole number; correct it"),
        (["--shape", "norm_topk=1"], "--shape 'norm_topk=1': the value is no bool, expected true or false; correct it"),
        (
            ["--type", "attn=Q9_9"],
            "--type 'attn=Q9_9': expected PATTERN=TYPE with a type of BF16, F16, F32, IQ1_M, IQ1_S, IQ2_S, IQ2_XS, "
            "IQ2_XXS, IQ3_S, IQ3_XXS, IQ4_NL, IQ4_XS, MXFP4, NVFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, "
            "Q6_K, Q8_0, TQ1_0, TQ2_0; correct it",
        ),
        (
            ["--type", "attn_k_b=q8_0"],
            "tensor blk.0.attn_k_b.weight has rows of 16, expected a multiple of 32 for Q8_0; "
            "choose another type for it",
        ),
        (["--type", "(=q8_0"], "--type '(=q8_0': '(' is no regular expression; correct it"),
    ],
)
def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], text: str) -> None:
    assert run("-o", str(tmp_path / "m.gguf"), *args) == 2
    assert capsys.readouterr().err == f"latentvk: error: {text}\n"
    assert list(tmp_path.iterdir()) == []


def test_unknown_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-o", str(tmp_path / "m.gguf"), "--shape", "heads=3") == 2
    err = capsys.readouterr().err
    assert err.startswith("latentvk: error: --shape 'heads=3': unknown field, expected FIELD=VALUE with one of name, ")
    assert err.endswith(", fused_gate_up; correct it\n")


def test_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "no" / "m.gguf"
    assert run("-o", str(path)) == 2
    assert capsys.readouterr().err == (
        f"latentvk: error: {path}: cannot write there (No such file or directory); "
        "choose a folder that exists and is writable\n"
    )


def test_every_variant_is_written_on_request(tmp_path: Path) -> None:
    """What a file's own form is, and the MTP layers that nothing runs."""
    path, settings = tmp_path / "m.gguf", ("split_kv_b=false", "tied_output=true", "fused_gate_up=true", "n_padding=7")
    sizes = ("n_embd=64", "n_head=2", "q_lora=32", "kv_lora=32", "qk_nope=32", "v_head=32", "n_ff=32", "n_ff_exp=32")
    shape = ("--shape", "n_nextn=1", "n_expert=16", *sizes, *settings)
    assert run("-o", str(path), "--preset", "deepseek-v3", "--layers", "4", "--vocab", "300", *shape) == 0
    file = GGUFFile.open(path)
    config = ModelConfig.from_gguf(file)
    assert (config.n_layer, config.n_nextn, config.n_vocab, config.n_tokens) == (4, 1, 300, 293)
    assert not config.split_kv_b and config.tied_output and config.fused_gate_up
    assert config.yarn is not None and (config.yarn.factor, config.yarn.n_ctx_orig) == (40.0, 4096)
    assert (config.n_group, config.n_group_used) == (8, 4)
    assert file.tensors["blk.4.nextn.eh_proj.weight"].shape == (64, 128)
    assert file.kv["deepseek2.block_count"] == 5
    require_supported(config, file)
    for absent in ("output.weight", "blk.4.ffn_up_exps.weight", "blk.0.attn_k_b.weight"):
        assert absent not in file.tensors
