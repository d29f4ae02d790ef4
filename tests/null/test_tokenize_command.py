"""`latentvk tokenize` on the embedded model and on files that hold a vocabulary alone: streams, files, errors."""

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from gguf import GGUFWriter
from small_vocabulary import trained

from harness.cli import main
from model.gguf_file import GGUFFile
from model.tokenizer import Tokenizer

Captured = pytest.CaptureFixture[str]


def vocabulary_file(path: Path, arch: str = "gpt2") -> Path:
    """A GGUF without tensors, of an architecture that nothing else here runs."""
    kv = trained("gpt-2")
    writer = GGUFWriter(path, arch)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(kv["tokenizer.ggml.tokens"])
    writer.add_token_types(kv["tokenizer.ggml.token_type"])
    writer.add_token_merges(kv["tokenizer.ggml.merges"])
    writer.add_bos_token_id(kv["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(kv["tokenizer.ggml.eos_token_id"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def run(capsys: Captured, *argv: str) -> list[list[int]]:
    assert main(["tokenize", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [json.loads(line) for line in out.splitlines()]


def test_one_list_per_text_in_the_order_given(capsys: Captured, tmp_path: Path) -> None:
    model = str(vocabulary_file(tmp_path / "v.gguf", "falcon"))
    tokenizer = Tokenizer.from_gguf(GGUFFile.open(model))
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_bytes(b"a\r\nb\n")
    two.write_bytes("\u4e16\0".encode())
    bos, eos = tokenizer.bos, tokenizer.eos
    plain = [tokenizer.encode(text, add_bos=False) for text in ("x", "a\r\nb\n", "\u4e16\0", "<|user|>", "")]
    argv = ["-p", "x", "--file", str(one), str(two), "-p", "<|user|>", "-p", ""]
    assert run(capsys, model, *argv) == [[bos, *ids, eos] for ids in plain]
    assert run(capsys, model, *argv, "--no-bos") == plain
    untrusted = run(capsys, model, *argv, "--no-bos", "--no-parse-special")
    assert untrusted[3] == tokenizer.encode("<|user|>", add_bos=False, parse_special=False) != plain[3]
    assert main(["tokenize", model, *argv, "--no-bos", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == plain


def test_the_embedded_model_and_standard_input(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"The history of\r\n")))
    assert run(capsys, "-p", "-", "-p", "The history of\r\n") == [[432, 357, 90, 761, 274, 208, 205]] * 2


def test_no_device_is_touched() -> None:
    """Not even the module that could is loaded."""
    code = (
        "import sys; from harness.cli import main; assert main(['tokenize', '-p', 'a']) == 0; "
        "print(sorted(m for m in sys.modules if m in ('kp', 'vulkan', 'vkbackend.device', 'model.engine')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[71]\n[]\n"


def test_errors(capsys: Captured, tmp_path: Path) -> None:
    def fails(line: str, *argv: str) -> None:
        assert main(["tokenize", *argv]) == 2
        assert capsys.readouterr() == ("", f"latentvk: error: {line}\n")

    fails("no text was given, expected at least one; give it with -p or --file")
    file = tmp_path / "f"
    fails(
        f"{file}: cannot be read (No such file or directory), expected a file of UTF-8 text; check the path",
        *("--file", str(file)),
    )
    file.write_bytes(b"ab\xff")
    fails(f"{file}: byte 0xff at offset 2 is no UTF-8, expected UTF-8 text; convert the file", "--file", str(file))
    model = tmp_path / "m.gguf"
    writer = GGUFWriter(model, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    fails(
        f"{model}: key tokenizer.ggml.model is missing, expected a vocabulary; convert the model again with its "
        "tokenizer",
        *(str(model), "-p", "x"),
    )


def test_bytes_without_a_token_are_told(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    writer = GGUFWriter(path, "gpt2")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "aa"])
    writer.add_token_merges(["a a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert main(["tokenize", str(path), "-p", "aba\u00e9"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == [0, 0]
    assert err == (
        f"latentvk: warning: {path} has no token for 0x62, 0xa9, 0xc3: what the text has of them is left out\n"
    )
