"""The command line without a device: errors by full text, exit codes, the two streams, nothing left behind."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import cli, options
from harness.cli import main
from harness.logits import read_tokens
from vkbackend.errors import DeviceError, InputError

ROOT = Path(__file__).parents[2]
Captured = pytest.CaptureFixture[str]


def fails(capsys: Captured, argv: list[str], code: int, line: str) -> None:
    """The command ends with `code`, prints that one line on standard error and nothing on standard output."""
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert err == f"latentvk: error: {line}\n"
    assert out == ""


def test_unknown_command(capsys: Captured) -> None:
    names = ", ".join(cli.COMMANDS)
    fails(capsys, ["run"], 2, f"unknown command 'run', expected one of {names}; see `latentvk --help`")
    fails(capsys, ["--frob"], 2, f"unknown option '--frob', expected one of {names}; see `latentvk --help`")


def test_wrong_arguments_name_the_help(capsys: Captured) -> None:
    see = "; see `latentvk compare --help`"
    fails(capsys, ["compare", "--frob"], 2, f"unrecognized arguments: --frob{see}")
    found = "argument --contexts: found 'x', expected a whole number"
    fails(capsys, ["compare", "--contexts", "512,x"], 2, found + see)
    found = "argument --contexts: found '0', expected a whole number of at least 1"
    fails(capsys, ["compare", "--contexts", "0"], 2, found + see)
    found = "argument --memory: found '96 bananas', expected a size such as 96GiB or 64GB"
    fails(capsys, ["compare", "--memory", "96 bananas"], 2, found + see)
    found = "argument --paths: found 'mla,,mha', expected names with commas between them"
    fails(capsys, ["compare", "--paths", "mla,,mha"], 2, found + see)


def test_no_abbreviated_options(capsys: Captured) -> None:
    line = "unrecognized arguments: --pre glm-4.7-flash; see `latentvk compare --help`"
    assert main(["compare", "--pre=glm-4.7-flash"]) == 2
    assert capsys.readouterr().err == f"latentvk: error: {line.replace(' glm', '=glm')}\n"


@pytest.mark.parametrize("command", ["compare", "generate", "logits", "bench"])
def test_unknown_path_is_refused_before_anything_is_opened(command: str, capsys: Captured, tmp_path: Path) -> None:
    needed = {
        "compare": ["--paths", "fast"],
        "generate": ["-p", "x", "--path", "fast"],
        "logits": ["--tokens", "1", "-o", str(tmp_path / "o.npz"), "--path", "fast"],
        "bench": ["--path", "fast"],
    }
    line = "path 'fast' is unknown, expected one of mla, mla-v, mha; choose one with --path"
    fails(capsys, [command, "absent.gguf", *needed[command]], 2, line)


@pytest.mark.parametrize(
    "command", [["compare"], ["generate", "-p", "x"], ["logits", "--tokens", "1", "-o", "o"], ["bench"]]
)
def test_a_file_that_is_no_model(
    command: list[str], capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = "absent.gguf: cannot be read (No such file or directory); expected a GGUF file; check the path"
    argv = [command[0], "absent.gguf", *command[1:]]
    argv += ["--json", "out.json"] if command[0] == "compare" else []
    fails(capsys, argv, 2, line)
    assert list(tmp_path.iterdir()) == []


def test_compare_refuses_unknown_names(capsys: Captured) -> None:
    chips = "780m, 680m, 890m, 8060s, 7900xtx"
    fails(
        capsys,
        ["compare", "--preset", "glm-4.7-flash", "--predict", "gtx"],
        2,
        f"unknown chip 'gtx'; expected one of {chips}; choose one of them",
    )
    known = "glm-4.7-flash, deepseek-v2-lite, deepseek-v2, deepseek-v3, kimi-k2"
    fails(
        capsys,
        ["compare", "--preset", "glm"],
        2,
        f"preset 'glm' is unknown, expected one of {known}; choose one of them",
    )
    fails(
        capsys,
        ["compare", "--contexts", "16,512", "--decode", "16"],
        2,
        "--contexts 16 leaves no prompt before 16 decoded tokens; expected more than that; "
        "choose longer contexts or a smaller --decode",
    )


def test_compare_refuses_a_folder_it_cannot_make(capsys: Captured, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "deep" / "er"):
        fails(
            capsys,
            ["compare", "--preset", "glm-4.7-flash", "-o", str(folder)],
            2,
            f"{folder}: {file} is no folder, expected a place for the reports; choose another with -o",
        )


def test_compare_tries_the_folder_as_permissions_do_not_say_it_all(capsys: Captured) -> None:
    # Root may write to /proc, say its permissions; nothing can be made there.
    line = "/proc/x: /proc is not writable, expected a place for the reports; choose another with -o"
    fails(capsys, ["compare", "--preset", "glm-4.7-flash", "-o", "/proc/x"], 2, line)


@pytest.mark.parametrize(
    "command", [["compare"], ["generate", "-p", "x"], ["logits", "--tokens", "1", "-o", "o"], ["bench"], ["inspect"]]
)
def test_json_is_refused_before_the_model_is_opened(command: list[str], capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "absent" / "r.json"
    argv = [command[0], "absent.gguf", *command[1:], "--json"]
    line = "cannot write there (No such file or directory); choose a folder that exists and is writable"
    fails(capsys, [*argv, str(path)], 2, f"{path}: {line}")
    line = "/dev/full: is not a regular file, expected a path to write a file to; choose another"
    fails(capsys, [*argv, "/dev/full"], 2, line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [["logits", "--tokens", "1"], ["synth", "--layers", "1", "--vocab", "2048", "--shape", "n_expert=8"]]
)
def test_an_output_that_is_no_file_is_refused(command: list[str], capsys: Captured) -> None:
    line = "/dev/full: is not a regular file, expected a path to write a file to; choose another"
    fails(capsys, [*command, "-o", "/dev/full"], 2, line)
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ("1,x", "entry 1 is 'x', expected a token id from 0 to 2047; correct it"),
        ("1,2048", "entry 1 is '2048', expected a token id from 0 to 2047; correct it"),
        ("-1", "entry 0 is '-1', expected a token id from 0 to 2047; correct it"),
        ("1,,2", "entry 1 is '', expected a token id from 0 to 2047; correct it"),
        ("1,2,", "entry 2 is '', expected a token id from 0 to 2047; correct it"),
        ("1.5", "entry 0 is '1.5', expected a token id from 0 to 2047; correct it"),
        (" , ", "found no token ids, expected at least one; give them with commas between them"),
    ],
)
def test_logits_refuses_tokens(tokens: str, found: str, capsys: Captured, tmp_path: Path) -> None:
    argv = ["logits", f"--tokens={tokens}", "-o", str(tmp_path / "o.npz")]
    fails(capsys, argv, 2, f"--tokens: {found}")
    file = tmp_path / "ids.txt"
    file.write_text(tokens)
    fails(capsys, ["logits", "--tokens-file", str(file), "-o", str(tmp_path / "o.npz")], 2, f"{file}: {found}")
    assert list(tmp_path.iterdir()) == [file]


def test_logits_takes_commas_spaces_and_line_breaks(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text(" 1, 2 ,3\n4,\n 5\t6\n")
    args = argparse.Namespace(tokens=None, tokens_file=file)
    assert read_tokens(args, 7).tolist() == [1, 2, 3, 4, 5, 6]


def test_bench_refuses_to_run_nothing(capsys: Captured) -> None:
    line = "-p 0 and -n 0 leave nothing to run, expected one of them above 0; give a length"
    fails(capsys, ["bench", "-p", "0", "-n", "0"], 2, line)


def test_synth_refuses_a_type_for_no_tensor(capsys: Captured, tmp_path: Path) -> None:
    for pattern in ("nothing", "attn_norm"):  # norms are F32 in every mix
        line = (
            f"type pattern '{pattern}' matches no tensor whose type can be chosen, expected part of a name such as "
            "attn_v_b; correct it"
        )
        fails(capsys, ["synth", "--type", f"{pattern}=Q8_0", "-o", str(tmp_path / "m.gguf")], 2, line)
    assert list(tmp_path.iterdir()) == []


def test_logits_names_an_unreadable_token_file(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "absent.txt"
    fails(
        capsys,
        ["logits", "--tokens-file", str(path), "-o", str(tmp_path / "o.npz")],
        2,
        f"{path}: cannot be read (No such file or directory), expected a file of token ids; check it",
    )


def test_generate_refuses_an_empty_prompt_and_bad_sampling(capsys: Captured) -> None:
    fails(capsys, ["generate", "-p", ""], 2, "the prompt is empty, expected at least one token; give some text with -p")
    fails(
        capsys,
        ["generate", "-p", "x", "--top-p", "2"],
        2,
        "top-p is 2.0: give a probability above 0 and up to 1 (1 keeps all)",
    )


@pytest.mark.parametrize(
    "command", [["devices"], ["generate", "-p", "x"], ["bench"], ["logits", "--tokens", "1", "-o", "o"]]
)
def test_no_device_is_exit_code_3_with_a_remedy(command: list[str], tmp_path: Path) -> None:
    # A loader that is told of no driver finds no device, on any machine; in a child, as the loader reads it once.
    environment = os.environ | {"VK_DRIVER_FILES": "/dev/null", "VK_ICD_FILENAMES": "/dev/null"}
    found = subprocess.run(
        [sys.executable, "-m", "harness.cli", *command],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 3
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith("latentvk: error: ")
    assert "install" in found.stderr
    assert found.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", cli.every_command())
def test_each_command_explains_itself_with_an_example_that_parses(name: str, capsys: Captured) -> None:
    import shlex

    command = cli.load(name)
    assert main([*name.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert command.HELP in out
    assert f"example:\n  {command.EXAMPLE}" in out
    words = shlex.split(command.EXAMPLE)
    assert words[: 1 + len(name.split())] == ["latentvk", *name.split()]
    args = cli.build_parser(name, command).parse_args(words[2:])
    assert {"device", "json"} <= set(vars(args))


def test_overview_lists_every_command(capsys: Captured) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name:<10}" in out for name in cli.COMMANDS)
    assert main([]) == 2


def test_help_and_inspect_import_no_vulkan() -> None:
    probe = (
        "import sys; from harness.cli import main; code = main(sys.argv[1:]); "
        "print(sorted({'kp', 'vulkan'} & set(sys.modules)), code, file=sys.stderr)"
    )
    for argv in (
        ["--help"],
        ["inspect", "--preset", "glm-4.7-flash"],
        ["compare", "--preset", "glm-4.7-flash", "--json", "-"],
    ):
        found = subprocess.run([sys.executable, "-c", probe, *argv], capture_output=True, text=True)
        assert found.stderr == "[] 0\n"


def test_json_to_standard_output_is_all_there_is(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--preset", "glm-4.7-flash", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["schema"] == "latentvk.compare"
    assert err == ""
    assert list(tmp_path.iterdir()) == []


def test_errors_interrupts_and_closed_pipes_have_their_codes(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        HELP, EXAMPLE = "h", "e"
        error: BaseException

        def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

        def run(self, args: argparse.Namespace) -> int:
            raise self.error

    failing = Failing()
    monkeypatch.setattr(cli, "load", lambda name: failing)
    failing.error = DeviceError("two\nlines")
    fails(capsys, ["bench"], 3, "two lines")
    failing.error = InputError("bad")
    fails(capsys, ["bench"], 2, "bad")
    failing.error = KeyboardInterrupt()
    assert main(["bench"]) == 130
    assert capsys.readouterr().err == "latentvk: interrupted\n"


def test_sigterm_removes_the_temporary_file_and_exits_143(tmp_path: Path) -> None:
    # Hundreds of megabytes, so that it is still at it when the signal comes: at the first sight of a file.
    shape = ["--layers", "2", "--vocab", "32000"]
    command = [sys.executable, "-m", "harness.cli", "synth", *shape, "-o", str(tmp_path / "m.gguf")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        while child.poll() is None and not any(tmp_path.iterdir()):
            time.sleep(0.01)
        child.terminate()
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, out, err) == (cli.TERMINATED, "", "latentvk: terminated\n")
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "harness.cli", "compare", "--preset", "glm-4.7-flash", "--json", "-"]
        found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    finally:
        os.close(writer)
    assert found.stderr == ""
    assert found.returncode == cli.BROKEN_PIPE


@pytest.mark.parametrize(
    ("text", "value"), [("96GiB", 96 * 2**30), ("64 GB", 64 * 10**9), ("1.5gib", 3 * 2**29), ("12", 12), ("7B", 7)]
)
def test_sizes(text: str, value: int) -> None:
    assert options.size_bytes(text) == value


def test_lists_are_sorted_or_kept_in_order_and_each_entry_once() -> None:
    assert options.positive_ints("2048,512,512") == [512, 2048]
    assert options.names("mha, mla,mha") == ["mha", "mla"]
