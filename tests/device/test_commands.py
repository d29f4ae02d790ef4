"""Every command that runs a model, end to end on the embedded one: what it prints, writes and returns."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest

from harness.cli import main
from harness.options import embedded_model_path
from harness.regress_run import ROOT, take_turns
from model.config import ModelConfig
from model.gguf_file import GGUFFile
from model.layout import PATHS, cache_bytes_per_token
from model.tokenizer import Tokenizer
from vkbackend.errors import DeviceError, InputError
from vkbackend.physical import list_devices

try:
    list_devices()
except DeviceError as reason:
    pytest.skip(str(reason), allow_module_level=True)

Captured = pytest.CaptureFixture[str]
TOKENS = [3, 700, 41, 2047, 0, 99, 99, 1500, 8, 12, 640, 77, 1024]  # 13: no multiple of any chunk below
LIST = ",".join(map(str, TOKENS))


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_logits(*options: str) -> np.ndarray:
    assert main(["logits", f"--tokens={LIST}", "-o", "out.npz", *options]) == 0
    with np.load("out.npz") as found:
        assert found["tokens"].tolist() == TOKENS
        assert found["logits"].dtype == np.float32
        logits: np.ndarray = found["logits"]
    return logits


def test_devices_marks_the_one_that_is_chosen(capsys: Captured) -> None:
    assert main(["devices", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [device["chosen"] for device in found].count(True) == 1
    assert all(device["memory"] > 0 and device["subgroup_size"] >= 4 for device in found)
    assert main(["devices"]) == 0
    assert found[0]["name"].split("(")[0].strip() in capsys.readouterr().out
    assert main(["devices", "--device", "no such chip"]) == 3


@pytest.mark.parametrize("chunk", ["1", "5", "64"])
def test_logits_do_not_depend_on_the_chunk(chunk: str, capsys: Captured) -> None:
    whole = run_logits()
    assert whole.shape == (len(TOKENS), ModelConfig.from_gguf(GGUFFile.open(embedded_model_path())).n_vocab)
    cut = run_logits("--chunk", chunk)
    # Sums of f32 in another order: 2^-24 a step, some thousands of steps deep, on logits of the size of their spread.
    assert np.abs(cut - whole).max() < 2e-3 * np.abs(whole).max()
    assert (cut.argmax(axis=1) == whole.argmax(axis=1)).all()


def test_logits_of_the_paths_agree() -> None:
    latent = run_logits("--path", "mla")
    for name in ("mla-v", "mha"):
        other = run_logits("--path", name)
        # The fallback rounds keys and values to f16, the latent paths the latent: 2^-11 of each, a few layers deep.
        assert np.abs(other - latent).max() < 1e-2 * np.abs(latent).max()


def test_an_f32_cache_from_the_command_line(capsys: Captured) -> None:
    """On two paths the same to f32's rounding, which an f16 cache's is far above."""
    latent, others = run_logits("--cache", "f32"), run_logits("--path", "mha", "--cache", "f32")
    assert np.abs(others - latent).max() < 1e-4 * np.abs(latent).max()
    assert np.abs(run_logits("--cache", "f16") - latent).max() > 1e-4 * np.abs(latent).max()
    assert main(["bench", "-p", "0", "-n", "2", "-r", "1", "--cache", "f32", "--no-peaks", "--json", "-"]) == 0
    capsys.readouterr()
    assert main(["logits", "--tokens", "1", "-o", "o.npz", "--cache", "q5_1"]) == 2
    error = "cache type 'q5_1' has no kernel, expected one of f16, f32, q8_0, q4_0; choose one with --cache"
    assert capsys.readouterr().err == f"latentvk: error: {error}\n"


def test_logits_from_a_file_and_the_summary_as_json(capsys: Captured) -> None:
    Path("ids.txt").write_text("\n".join(map(str, TOKENS)))
    assert main(["logits", "--tokens-file", "ids.txt", "-o", "o.npz", "--json", "-"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["tokens"] == len(TOKENS)
    assert summary["logits_bytes"] == 4 * len(TOKENS) * summary["n_vocab"]


def test_logits_leave_nothing_behind_when_the_device_refuses(capsys: Captured, in_empty_folder: Path) -> None:
    assert main(["logits", "--tokens=1", "-o", "o.npz", "--device", "no such chip"]) == 3
    assert list(in_empty_folder.iterdir()) == []


def generated(capsys: Captured, *options: str) -> dict[str, object]:
    assert main(["generate", "-p", "The history of", "-n", "9", "--json", "-", *options]) == 0
    out, err = capsys.readouterr()
    assert "prompt tokens, first token after" in err
    found: dict[str, object] = json.loads(out)
    return found


def test_greedy_text_repeats_and_is_what_the_logits_say(capsys: Captured) -> None:
    first, second = generated(capsys, "--temp", "0"), generated(capsys, "--temp", "0")
    assert first["tokens"] == second["tokens"]
    ids = [*first["prompt_tokens"], *first["tokens"]]  # type: ignore[misc]
    assert main(["logits", f"--tokens={','.join(map(str, ids))}", "-o", "o.npz"]) == 0
    with np.load("o.npz") as found:
        logits = found["logits"]
    after = len(first["prompt_tokens"]) - 1  # type: ignore[arg-type]
    chosen = logits[after:-1][np.arange(len(ids) - after - 1), ids[after + 1 :]]
    # Greedy, up to ties within rounding.
    assert (chosen >= logits[after:-1].max(axis=1) - 1e-2).all()


def test_paths_and_chunks_generate_the_same_text(capsys: Captured) -> None:
    base = generated(capsys)["text"]
    for options in (["--path", "mla-v"], ["--path", "mha"], ["--chunk", "2"]):
        assert generated(capsys, *options)["text"] == base


def test_sampled_text_repeats_by_its_seed(capsys: Captured) -> None:
    options = ["--temp", "1.5", "--top-k", "50"]
    texts = [generated(capsys, *options, "--seed", seed)["tokens"] for seed in ("7", "7", "8")]
    assert texts[0] == texts[1] != texts[2]


def test_a_choice_that_changes_nothing_is_the_devices(capsys: Captured) -> None:
    """The host's greedy choice, forced by a bias of nothing, is the one made on the device."""
    assert generated(capsys, "--logit-bias", "3+0")["tokens"] == generated(capsys)["tokens"]


def test_bias_and_penalties_hold_for_the_greedy_choice(capsys: Captured) -> None:
    tokens = generated(capsys, "-n", "40")["tokens"]
    assert isinstance(tokens, list) and len(set(tokens)) < len(tokens)
    forbidden = generated(capsys, "--logit-bias", f"{tokens[0]}-inf", "-n", "40")["tokens"]
    assert isinstance(forbidden, list) and tokens[0] not in forbidden
    apart = generated(capsys, "--presence-penalty", "1000", "--repeat-last-n", "-1", "-n", "40")["tokens"]
    assert isinstance(apart, list) and len(set(apart)) == len(apart)


def test_stop_texts_end_the_text_before_them(capsys: Captured) -> None:
    whole = generated(capsys, "-n", "40")
    text = whole["text"]
    assert isinstance(text, str) and whole["finish"] == "length"
    stop = text[20:24]
    found = generated(capsys, "-n", "40", "--stop", stop, "--stop", "no such text")
    assert found["finish"] == "stop" and found["text"] == text[: text.find(stop)]
    assert main(["generate", "-p", "The history of", "-n", "40", "--stop", stop]) == 0
    assert capsys.readouterr().out == f"{found['text']}\n"


def test_an_end_token_ends_the_text_unless_it_is_ignored(capsys: Captured) -> None:
    tokenizer = Tokenizer.from_gguf(GGUFFile.open(embedded_model_path()))
    end = tokenizer.eos
    assert generated(capsys, "--logit-bias", f"{end}+1000")["finish"] == "end"
    assert generated(capsys, "--logit-bias", f"{end}+1000")["tokens"] == []
    ignored = generated(capsys, "--logit-bias", f"{end}+1000", "--ignore-eos")
    assert ignored["finish"] == "length" and ignored["tokens"] == generated(capsys)["tokens"]
    user = tokenizer.control_token("<|user|>")
    assert user is not None and user not in tokenizer.eog
    assert generated(capsys, "--logit-bias", f"{user}+1000", "--stop", "<|user|>")["finish"] == "end"


def test_streamed_text_is_the_text(capsys: Captured) -> None:
    expected = generated(capsys)["text"]
    assert main(["generate", "-p", "The history of", "-n", "9"]) == 0
    assert capsys.readouterr().out == f"{expected}\n"


def test_prompt_from_standard_input_and_chat(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"Hello")))
    assert main(["generate", "-p", "-", "--chat", "-n", "2", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    tokenizer = Tokenizer.from_gguf(GGUFFile.open(embedded_model_path()))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert found["prompt_tokens"] == tokenizer.encode(text)


@pytest.mark.alone
def test_bench_has_llama_benchs_fields(capsys: Captured) -> None:
    assert main(["bench", "-p", "16", "-n", "3", "-d", "0,40", "-r", "2", "--path", "mha", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["test"] for row in rows] == ["pp16", "tg3", "pp16 @ d40", "tg3 @ d40"]
    for row in rows:
        assert len(row["samples_ns"]) == len(row["samples_ts"]) == 2
        tokens = row["n_prompt"] + row["n_gen"]
        assert row["samples_ts"] == [1e9 * tokens / sample for sample in row["samples_ns"]]
        assert row["avg_ts"] == pytest.approx(sum(row["samples_ts"]) / 2)
        assert row["path"] == "mha"
        assert 0 < row["longest_submission_ns"] < 1e9
        assert (row["schema"], row["schema_version"]) == ("latentvk.bench", 1)
        assert row["launches"]["decode"] > 10 and row["device_bytes"] > row["cache_bytes"] > 0
        assert row["device"]["name"] == row["gpu_info"] and row["model"]["file"] == row["model_filename"]
        assert row["state"]["others_busy"] >= 0 and len(row["state"]["before"]["load_average"]) == 3
        peaks, bound = row["peaks"], row["bound"]
        for name, key in (("bandwidth", "bandwidth"), ("flops", "arithmetic")):
            measured = [row["peak_samples"][f"{key} {when}"] for when in ("before", "after")]
            assert peaks[name] == max(median(samples) for samples in measured)
        assert bound["memory_seconds"] == bound["bytes_read"] / peaks["bandwidth"]
        assert bound["compute_seconds"] == bound["flops"] / peaks["flops"]
        assert bound["seconds"] == max(bound["memory_seconds"], bound["compute_seconds"])
        assert row["governs"] == bound["governs"] in ("memory", "compute")
        assert row["roofline_share"] == pytest.approx(1e9 * bound["seconds"] / row["avg_ns"])
        assert row["bytes_per_token"] == bound["bytes_read"] / tokens
        assert row["chunk"] == row["n_depth"] + 16  # 512, or what there is to cache
        if row["n_gen"]:  # the mean token meets the second one's row
            rows_met = row["n_depth"] + 2
            expected = row["weight_bytes_per_token"] + rows_met * row["cache_bytes_per_token"]
            assert row["bytes_per_token"] == expected
    assert [len(repeat) for repeat in rows[1]["samples_token_ns"]] == [3, 3]


def test_bench_prints_llama_benchs_formats(capsys: Captured) -> None:
    tests = ["-p", "0", "-n", "2", "-pg", "8,2", "-r", "2"]
    run = ["bench", *tests, "-ctk", "f32", "-ctv", "f32", "-ub", "4", "--no-peaks"]
    assert main(run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["path", "test", "tok/s", "GB/s", "bound", "of", "it"]
    assert lines[2].split()[-2:] == ["n/a", "n/a"]
    assert lines[4].startswith("deepseek2 6.01M Q4_K_M on ") and len(lines) == 5  # no line of peaks
    run += ["-o"]
    assert main([*run, "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(row["chunk"] == 4 and "peaks" not in row and "roofline_share" not in row for row in rows)
    assert [(row["test"], row["type_k"]) for row in rows] == [("tg2", "f32"), ("pp8+tg2", "f32")]
    assert main([*run, "csv"]) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["n_prompt"] for row in found] == ["0", "8"]
    assert all(float(row["avg_ts"]) > 0 and row["model_filename"] == "latentvk-tiny.gguf" for row in found)
    assert all(row["roofline_share"] == row["governs"] == "" for row in found)
    assert main([*run, "md"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| model | size | params | backend | path | test | t/s |"
    assert lines[2].startswith("| deepseek2 6.01M Q4_K_M | 4.27 MiB | 6.01 M | latentvk Vulkan | mla | tg2 | ")


def test_what_does_not_vary_is_the_same_in_every_run(capsys: Captured) -> None:
    found = []
    for count in ("2", "3"):
        assert main(["bench", "-p", "16", "-n", "3", "-d", "0,40", "-r", count, "--no-peaks", "--json", "-"]) == 0
        found.append([
            {name: row[name] for name in ("cache_bytes", "launches", "device_bytes", "device_allocations")}
            for row in json.loads(capsys.readouterr().out)
        ])  # fmt: skip
    assert found[0] == found[1]


def test_two_processes_take_turns() -> None:
    words = ["bench", "-p", "16", "-n", "2"]
    one, two = take_turns((ROOT, ROOT), (words, words), 3, ("one", "two"))
    assert [len(metric.seconds) for side in (one, two) for metric in side.timed.values()] == [3] * 4
    assert one.exact == two.exact and one.model == two.model
    with pytest.raises(InputError) as raised:
        take_turns((ROOT, ROOT), (["bench", "-p", "0", "-n", "0"], words), 3, ("one", "two"))
    assert str(raised.value).startswith("one: -p 0 and -n 0 leave nothing to run")


def test_a_record_is_measured_again_and_judged_by_its_exact_figures(capsys: Captured) -> None:
    run = ["bench", "-p", "16", "-n", "2", "-r", "2", "--json", "base.json"]
    assert main(run) == 0
    capsys.readouterr()
    assert main(["regress", "base.json", "--run", "--exact-only"]) == 0
    assert "launches (8).\nno regression: 14 equal" in capsys.readouterr().out  # of four kinds of program, at two tests
    rows = json.loads(Path("base.json").read_text())
    rows[0]["launches"]["decode"] -= 1
    Path("base.json").write_text(json.dumps(rows))
    assert main(["regress", "base.json", "--run", "--exact-only"]) == 1
    assert "launches of decode at" in capsys.readouterr().out


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
def test_a_revision_is_measured_beside_this_code(capsys: Captured) -> None:
    run = ["regress", "HEAD", "--run", "--turns", "1", "--exact-only", "--bench", "-p 8 -n 2", "--json", "-"]
    assert main(run) in (0, 1)  # 1 where what is not yet committed takes more launches
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert (found["base"]["label"], found["new"]["label"]) == ("HEAD", "this code")
    assert [len(runs[0]) for side in ("base", "new") for runs in found[side]["seconds"].values()] == [1] * 4
    assert "launches of decode at tg2" in {finding["name"] for finding in found["findings"]}
    listed = subprocess.run(["git", "-C", str(ROOT), "worktree", "list"], capture_output=True, text=True, check=True)
    assert "latentvk-regress" not in listed.stdout
    assert main([*run[:-4], "--bench=--frob"]) == 2
    assert capsys.readouterr().err == (
        "latentvk: error: HEAD: unrecognized arguments: --frob; see `latentvk bench --help`\n"
    )


def test_bench_startup_reports_stages_and_memory(capsys: Captured) -> None:
    assert main(["bench", "--startup", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    stages = list(found["seconds"].values())
    assert stages == sorted(stages)
    assert list(found["seconds"])[-1] == "first token"
    assert found["peak_resident_bytes"] > found["weight_bytes"]


@pytest.mark.alone
def test_compare_measures_caches_and_writes_its_reports(capsys: Captured, in_empty_folder: Path) -> None:
    options = ["--contexts", "64,128", "--decode", "3", "--repeats", "2", "--predict", "780m", "-o", "reports"]
    assert main(["compare", *options]) == 0
    out = capsys.readouterr().out
    files = sorted((in_empty_folder / "reports").iterdir())
    assert [file.suffix for file in files] == [".html", ".json", ".md"]
    assert f"report: reports/{files[2].name}\nwith charts: reports/{files[0].name}\n" in out
    found = json.loads(files[1].read_text())
    measured, predicted = found["tables"]
    assert (measured["kind"], predicted["kind"]) == ("measured", "predicted")
    config = ModelConfig.from_gguf(GGUFFile.open(embedded_model_path()))
    for row in measured["rows"]:
        expected = row["context"] * cache_bytes_per_token(config, PATHS[row["path"]].layout)
        assert row["cache_bytes"] == row["cache_bytes_formula"] == expected
        assert [len(repeat) for repeat in row["decode_seconds"]] == [3, 3]
        assert row["score"]["questions"] == row["context"] // 16
        assert row["decode_bound"]["governs"] in ("memory", "compute")
    ratio = {row["path"]: row["ratio_to_mla"]["cache_bytes"]["value"] for row in measured["rows"]}
    assert ratio["mha"] == pytest.approx(160 / 9)  # 17.78
    scores = {row["path"]: row["perplexity"] for row in measured["rows"] if row["context"] == 128}
    assert scores["mla-v"] == pytest.approx(scores["mla"], rel=1e-3)
    assert scores["mha"] == pytest.approx(scores["mla"], rel=1e-2)
    assert found["device"]["name"] == measured["device"]
    assert 0 < found["longest_submission_seconds"] < 1
    assert "| longest submission | " in files[2].read_text()
    assert all(len(samples) > 1 for samples in found["peak_samples"].values())


def test_compare_does_not_try_what_does_not_fit(capsys: Captured) -> None:
    argv = ["compare", "--contexts", "64", "--decode", "2", "--repeats", "2", "--paths", "mla,mha", "--json", "-"]
    assert main(argv) == 0
    needed = json.loads(capsys.readouterr().out)["tables"][0]["rows"][1]["needed_bytes"]
    assert main([*argv, "--memory", str(needed - 1)]) == 0
    latent, fallback = json.loads(capsys.readouterr().out)["tables"][0]["rows"]
    assert latent["not_run"] == ""
    assert (fallback["not_run"], fallback["cache_bytes"]) == ("does not fit", None)
    assert fallback["needed_bytes"] == needed


def test_inspect_measures_the_caches_where_vulkan_allocates(capsys: pytest.CaptureFixture[str]) -> None:
    """The published shape's caches, but for the one that --memory-fraction forbids."""
    arguments = ["inspect", "--preset", "glm-4.7-flash", "--context", "1000", "--measure", "--memory-fraction", "0.01"]
    assert main([*arguments, "--json", "-"]) == 0
    facts = json.loads(capsys.readouterr().out)
    rows = {row["path"]: row for row in facts["cache"] if row["type"] == "f16"}
    for path, buffers in (("mla", 47), ("mla-v", 94)):
        formula = 1024 * rows[path]["bytes_per_token"]
        assert formula <= rows[path]["allocated_bytes"] <= formula + buffers * 4096
        assert rows[path]["not_allocated"] is None
    assert rows["mha"]["allocated_bytes"] is None
    assert rows["mha"]["not_allocated"].startswith(f"needs {1024 * 962_560} bytes, ")
    assert " left under --memory-fraction 0.01 of the host's " in rows["mha"]["not_allocated"]
    assert main(arguments) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "allocated" in out and "mha was not allocated: needs" in out
