"""Keys made to break a config: sizes and counts beyond any model, numbers that are none, each refused in one line."""

import math
from pathlib import Path

import pytest
from gguf import GGUFValueType as V

from harness import cli
from model.config import ModelConfig, require_supported
from model.gguf_file import GGUFFile
from tests.fuzz.seeds import seeds
from tests.null.gguf_bytes import Value, number, numbers, string, u32
from vkbackend.errors import InputError

RECONVERT = "convert the model again with a current llama.cpp"
LOWEST, HIGHEST = number(V.INT64, -(2**63)), number(V.UINT64, 2**64 - 2)
PLAIN, YARN = seeds()[0][0], seeds()[3][0]


def changed(folder: Path, key: str, value: Value) -> Path:
    part = (YARN if key.startswith("rope.scaling") else PLAIN).copy()
    part.raw.keys[f"deepseek2.{key}"] = value
    part.write(folder)
    return folder / part.name


def message(folder: Path, key: str, value: Value) -> str:
    path = changed(folder, key, value)
    with pytest.raises(InputError) as caught:
        file = GGUFFile.open(path)
        require_supported(ModelConfig.from_gguf(file), file)
    assert str(caught.value).startswith(f"{path}: ") and str(caught.value).isprintable()
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("count", [0, -1, 513, 2**31, 2**63])
def test_layer_counts(tmp_path: Path, count: int) -> None:
    """513 and more would build a list of tensors as long as the file says."""
    value = number(V.INT32, count) if count < 0 else number(V.UINT64, count)
    assert message(tmp_path, "block_count", value) == (
        f"key deepseek2.block_count gives n_layer = {count}, expected 1 to 512; {RECONVERT}"
    )


@pytest.mark.parametrize(
    ("key", "field", "expected"),
    [
        ("embedding_length", "n_embd", "more than 0"),
        ("attention.head_count", "n_head", "more than 0"),
        ("attention.kv_lora_rank", "kv_lora", "more than 0"),
        ("attention.value_length_mla", "v_head", "more than 0"),
        ("rope.dimension_count", "qk_rope", "an even number more than 0"),
        ("feed_forward_length", "n_ff", "more than 0, as there are dense layers"),
        ("expert_count", "n_expert", "more than 0, as there are mixture layers"),
        ("expert_used_count", "n_expert_used", "1 to n_expert (9)"),
        ("expert_feed_forward_length", "n_ff_exp", "more than 0, as there are mixture layers"),
        ("context_length", "n_ctx_train", "more than 0"),
    ],
)
def test_sizes_of_zero_and_below(tmp_path: Path, key: str, field: str, expected: str) -> None:
    for name, value in (("0", u32(0)), (str(-(2**63)), LOWEST)):
        folder = tmp_path / name
        folder.mkdir()
        assert message(folder, key, value) == (
            f"key deepseek2.{key} gives {field} = {name}, expected {expected}; {RECONVERT}"
        )


@pytest.mark.parametrize(
    ("key", "tensor", "found", "expected"),
    [
        ("embedding_length", "token_embd", [40, 64], [40, 2**64 - 2]),
        ("attention.head_count", "blk.0.attn_q_b", [320, 32], [(2**64 - 2) * 64, 32]),
        ("attention.kv_lora_rank", "blk.0.attn_kv_a_mqa", [96, 64], [2**64 + 30, 64]),
        ("feed_forward_length", "blk.0.ffn_gate", [96, 64], [2**64 - 2, 64]),
        ("expert_count", "blk.1.ffn_gate_inp", [9, 64], [2**64 - 2, 64]),
    ],
)
def test_sizes_beyond_the_tensors(tmp_path: Path, key: str, tensor: str, found: list[int], expected: list[int]) -> None:
    assert message(tmp_path, key, HIGHEST) == (
        f"tensor {tensor}.weight has shape {found}, expected {expected} (NumPy order) from the file's keys; {RECONVERT}"
    )


@pytest.mark.parametrize(
    "key", ["rope.freq_base", "attention.layer_norm_rms_epsilon", "expert_weights_scale", "rope.scaling.factor"]
)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e39, -1e300])
def test_numbers_that_are_none_in_f32(tmp_path: Path, key: str, value: float) -> None:
    assert message(tmp_path, key, number(V.FLOAT64, value)) == (
        f"key deepseek2.{key} is {value!r}, expected a number; {RECONVERT}"
    )


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (number(V.FLOAT32, 2), "2.0"),
        (number(V.BOOL, 1), "True"),
        (string("2"), "'2'"),
        (string("\x1b[31m"), "'\\x1b[31m'"),
        (numbers(V.UINT32, [2]), "an array of 1"),
    ],
)
def test_counts_of_another_type(tmp_path: Path, value: Value, found: str) -> None:
    for key in ("block_count", "expert_count", "attention.head_count"):
        folder = tmp_path / key
        folder.mkdir()
        assert message(folder, key, value) == f"key deepseek2.{key} is {found}, expected an integer; {RECONVERT}"


def test_a_vocabulary_of_no_size(tmp_path: Path) -> None:
    part = PLAIN.copy()
    del part.raw.keys["tokenizer.ggml.tokens"]
    for name, size in (("low", LOWEST), ("minus", number(V.INT32, -1)), ("zero", u32(0))):
        part.raw.keys["deepseek2.vocab_size"] = size
        folder = tmp_path / name
        folder.mkdir()
        part.write(folder)
        path, n = folder / part.name, int.from_bytes(size[1], "little", signed=True)
        with pytest.raises(InputError) as caught:
            ModelConfig.from_gguf(GGUFFile.open(path))
        assert str(caught.value) == (
            f"{path}: key deepseek2.vocab_size gives n_padding = {40 - n}, expected 0 to less than n_vocab (40); "
            f"{RECONVERT}"
        )


def test_a_context_beyond_any_memory_is_only_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(tmp_path, "context_length", number(V.UINT64, 2**63))
    assert cli.main(["inspect", str(path), "--memory", "96GiB"]) == 0
    assert f"{2**63:,}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["[/bold]", "[link=https://example.org]x", "\x1b]0;owned\x07", "x" * 10**6])
def test_a_name_is_only_text(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    part = PLAIN.copy()
    part.raw.keys["general.name"] = string(name)
    part.write(tmp_path)
    assert cli.main(["inspect", str(tmp_path / part.name)]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert out.startswith("\\x1b]0;owned\\x07 " if name[0] == "\x1b" else name[:50])
