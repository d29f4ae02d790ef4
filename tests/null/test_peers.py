"""Other runtimes in turns with ours: fakes that print the documented formats, a fake server, imported results."""

import argparse
import json
import shlex
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from fake_compare import PEAKS, FakeSession, bench, lanes, record

from harness import report_tables
from harness.cli import main
from harness.compare_run import _Part, _table, measure_parts, measure_rows
from harness.measure import Prompt
from harness.measurements import parse_measurements
from harness.peer_ollama import Ollama
from harness.peers import (
    Job,
    PeerError,
    PeerSpec,
    PeerTurn,
    device_options,
    imported_rows,
    open_peers,
    peer_spec,
    peer_turns,
)
from harness.results import Row, ratios, to_json
from vkbackend.errors import InputError

FAKE = Path(__file__).with_name("fake_bench.py")
MODEL = Path("model.gguf")


def program(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The fake under that name, and its log."""
    path, log = folder / name, folder / f"{name}.log"
    script = f"import os, runpy\nos.environ['FAKE_BENCH'] = {name!r}\nrunpy.run_path({str(FAKE)!r})\n"
    (folder / f"{name}.py").write_text(script)
    # By way of sh: the first line of a script cannot name an interpreter in a folder with a space.
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(folder / name))}.py "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("FAKE_BENCH_LOG", str(log))
    return path, log


def law(context: float) -> float:
    return 0.01 + 1e-6 * context


@pytest.fixture
def llama_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    return program(tmp_path, "llama-bench", monkeypatch)


def test_specs() -> None:
    assert peer_spec("llama-bench=/a b/llama-bench -t 4") == PeerSpec("llama-bench", "/a b/llama-bench -t 4")
    assert peer_spec("ollama=glm:q4@http://x:1") == PeerSpec("ollama", "glm:q4@http://x:1")
    assert peer_spec("results.csv") == PeerSpec("", "results.csv")
    expected = "expected llama-bench=PROGRAM, sweep-bench=PROGRAM, ollama=MODEL[@URL] or a file of results"
    for text in ("vllm=x", "llama-bench=", ""):
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            peer_spec(text)
        assert str(caught.value) == f"found '{text}', {expected}"


def test_llama_bench_runs_the_same_file_device_and_cache(llama_bench: tuple[Path, Path]) -> None:
    path, log = llama_bench
    (peer,), _ = open_peers([PeerSpec("llama-bench", f"{path} -fa 1")], MODEL, "q8_0", "AMD Radeon 780M (RADV)")
    job = Job(1024, 16, lambda: "")
    point = peer.decode(job)
    assert point.context == 1008 + 8.5
    assert point.seconds == pytest.approx(law(1016.5))
    assert peer.prompt(job) == 500.0
    common = "-ctk q8_0 -ctv q8_0 -dev Vulkan0 -ngl 99 -fa 1"
    assert log.read_text().splitlines() == [
        "--list-devices",
        f"-m model.gguf -p 0 -n 16 -d 1008 -r 1 -o jsonl {common}",
        f"-m model.gguf -p 1024 -n 0 -r 1 -o jsonl {common}",
    ]
    assert peer.about() == (
        "llama-bench -dev Vulkan0 -ngl 99 -fa 1: build abc1234, backend Vulkan, on AMD Radeon 780M, layers on the GPU "
        "99"
    )


def test_a_device_that_it_does_not_list_is_left_to_it(llama_bench: tuple[Path, Path]) -> None:
    assert device_options(llama_bench[0], "llvmpipe (LLVM 15.0.6, 256 bits)") == []
    assert device_options(Path("/nonexistent"), "llvmpipe") == []


@pytest.mark.parametrize(("context", "batch", "n_kv"), [(1024, 504, 1008), (2048, 508, 2032), (40, 24, 24)])
def test_sweep_bench_sweeps_to_the_depth_in_equal_steps(
    context: int, batch: int, n_kv: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, log = program(tmp_path, "sweep-bench", monkeypatch)
    (peer,), _ = open_peers([PeerSpec("sweep-bench", str(path))], MODEL, "f16", "any")
    job = Job(context, 16, lambda: "")
    point = peer.decode(job)
    assert point.context == n_kv + 8.5
    assert point.seconds == pytest.approx(law(n_kv + 8.5))
    assert peer.prompt(job) is None
    assert f"-ub {batch} -n 16 --output-format jsonl" in log.read_text()


def test_a_peer_takes_turns_with_ours_and_stands_in_their_table(llama_bench: tuple[Path, Path]) -> None:
    path, log = llama_bench

    class Logged(FakeSession):
        def decode(self, token: int) -> int:
            with log.open("a") as stream:
                stream.write(f"{self.path.name}\n")
            return super().decode(token)

    peers, _ = open_peers([PeerSpec("llama-bench", str(path))], MODEL, "f16", "none")
    prompts = {c: Prompt(np.zeros(c, np.int32), None) for c in (16, 40)}
    turns = peer_turns(peers, {c: lambda: "" for c in prompts}, 4)
    part = _Part("a.gguf", "f16", 0, tuple(lanes(Logged, ["mla", "mha"])))
    (found,), lost = measure_parts([part], prompts, turns)
    assert lost is None
    runs = [line.split(" -o")[0].removeprefix("-m model.gguf ") for line in log.read_text().splitlines()[1:]]
    ours = ["mla"] * 4 + ["mha"] * 4
    of_16 = ["-p 16 -n 0 -r 1", *ours[:2], *ours[4:6]]  # the prompt, both warm-ups, then turns
    assert runs[: 5 + 18] == of_16 + [*ours, "-p 0 -n 4 -d 12 -r 1"] * 2
    rows = [row for row in found.rows if row.peer]
    assert [(row.path, row.context, row.decode_contexts) for row in rows] == [
        ("llama-bench", 16, (14,)),
        ("llama-bench", 40, (38,)),
    ]
    assert rows[0].decode_seconds == ((pytest.approx(law(14.5)),),) * 2
    assert rows[0].prompt_rate == pytest.approx(500)
    table = _table(found, "llvmpipe", PEAKS, several=False)
    assert [line.path for line in table.lines] == ["mla", "mha"]
    text = report_tables.markdown(record(table), "x.json")
    assert "| 16 | llama-bench | n/a | n/a | n/a |" in text
    plain = to_json(record(table))["tables"][0]["rows"][-1]
    assert plain["peer"] is True and plain["cache_bytes_formula"] is None
    assert set(plain["ratio_to_mla"]) == {"decode_rate", "prompt_rate"}


def test_a_peer_that_fails_is_a_row_with_its_last_words(
    llama_bench: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BENCH_FAIL", "30")
    peers, _ = open_peers([PeerSpec("llama-bench", str(llama_bench[0]))], MODEL, "f16", "none")
    prompts = {c: Prompt(np.zeros(c, np.int32), None) for c in (16, 40)}
    turns = peer_turns(peers, {c: lambda: "" for c in prompts}, 4)
    rows, _ = measure_rows(lanes(FakeSession, ["mla"]), prompts, turns)
    assert [row.ran for row in rows] == [True, True]
    small, large = (turns[c][0].row() for c in (16, 40))
    assert small.ran and len(small.decode_seconds) == 2
    assert large.not_run == "llama-bench ended with code 1 and said: ggml_vulkan: ErrorOutOfDeviceMemory"
    assert len(llama_bench[1].read_text().splitlines()) == 1 + 3 + 2  # after a failure its turns are skipped


def test_peers_that_are_not_there(tmp_path: Path) -> None:
    expected = "expected llama-bench=PROGRAM, sweep-bench=PROGRAM, ollama=MODEL[@URL] or a file of results"
    with pytest.raises(InputError) as caught:
        open_peers([PeerSpec("llama-bench", "/nonexistent/llama-bench -t 2")], MODEL, "f16", "x")
    assert str(caught.value) == f"--peer: /nonexistent/llama-bench is no program, {expected}; check the path"
    with pytest.raises(InputError) as caught:
        open_peers([PeerSpec("", str(tmp_path / "absent.csv"))], MODEL, "f16", "x")
    assert str(caught.value) == (
        f"{tmp_path / 'absent.csv'}: cannot be read (No such file or directory); expected a file of measured speeds; "
        "check the path"
    )


def test_results_of_a_peer_are_imported_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    tests = [{"n_prompt": 0, "n_gen": 128, "n_depth": depth, "avg_ts": 20.0 - depth / 1000} for depth in (0, 4096)]
    path.write_text("\n".join(map(json.dumps, tests)))
    running, (imported,) = open_peers([PeerSpec("llama-bench", str(path))], MODEL, "f16", "x")
    assert running == []
    assert (imported.name, imported.about()) == (
        "llama-bench",
        "llama-bench of bench.jsonl, measured elsewhere and not in turns with ours",
    )
    rows = imported_rows(imported.name, imported.found, [4096, 8192])
    assert [(row.context, row.decode_contexts) for row in rows] == [(64, (64,)), (4096, (4160,))]
    assert rows[1].decode_rate == pytest.approx(20.0 - 4.096)
    base = Row("mla", 4096, 1, decode_seconds=((0.1, 0.1),) * 3)
    assert ratios(rows[1], base)["decode_rate"].distinct is None  # single runs tell no difference
    names = open_peers([PeerSpec("", str(path)), PeerSpec("", str(path))], MODEL, "f16", "x")[1]
    assert [each.name for each in names] == ["bench", "bench 2"]


def test_an_imported_context_that_did_not_fit() -> None:
    rows = imported_rows("x", parse_measurements("4K,7.3\n128K,oom\n", "t"), [4096])
    assert [(row.context, row.not_run) for row in rows] == [(4096, ""), (131072, "out of memory")]


class Server(BaseHTTPRequestHandler):
    """Ollama's API as documented: counts and nanoseconds. What it answers may be changed by the test."""

    asked: ClassVar[list[dict[str, Any]]] = []
    answer: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        self._send({"version": "0.6.2"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        if body["model"] != "glm":
            self.send_error(404)
        elif self.path == "/api/show":
            self._send({"details": {"family": "deepseek2", "quantization_level": "Q4_K_M", "format": "gguf"}})
        else:
            prompt, count = len(body["prompt"].split()), body["options"]["num_predict"]
            found = {"prompt_eval_count": prompt, "prompt_eval_duration": 10**7 * prompt}
            self._send(found | {"eval_count": count, "eval_duration": 10**8 * count} | self.answer)

    def _send(self, found: dict[str, Any]) -> None:
        data = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked, Server.answer = [], {}
    with HTTPServer(("127.0.0.1", 0), Server) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_ollama_reports_its_own_counts(server: str) -> None:
    (peer,), _ = open_peers([PeerSpec("ollama", f"glm@{server}/")], MODEL, "f16", "x")
    turn = PeerTurn(peer, Job(100, 8, lambda: "word " * 92))
    turn.time_prompt()
    turn.time_decode()
    turn.time_decode()
    row = turn.row()
    assert row.decode_contexts == (round(93 + 4.5),)
    assert row.decode_seconds == ((pytest.approx(0.1),),) * 2
    assert row.prompt_rate == pytest.approx(100)
    assert peer.about() == "Ollama 0.6.2, model glm: deepseek2, Q4_K_M"
    asked = Server.asked[-1]
    assert asked["prompt"].startswith("100\nword ")
    assert (asked["raw"], asked["stream"]) == (True, False)
    assert asked["options"] == {"num_ctx": 164, "num_predict": 8, "temperature": 0}
    assert [body["options"]["num_predict"] for body in Server.asked[1:]] == [1, 8, 8]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"prompt_eval_count": 40}, "ollama read 40 tokens of a prompt of about 92, expected all of them"),
        ({"eval_count": 0}, "ollama reported eval_count 0, expected a count above 0"),
        ({"eval_duration": None}, "ollama reported eval_duration None, expected a count above 0"),
    ],
)
def test_ollama_that_cuts_a_prompt_is_told(server: str, answer: dict[str, Any], words: str) -> None:
    peer = Ollama.connect("ollama", f"glm@{server}")
    Server.answer = answer
    with pytest.raises(PeerError) as caught:
        peer.decode(Job(100, 8, lambda: "word " * 92))
    assert str(caught.value) == words


def test_ollama_that_is_not_there(server: str) -> None:
    with pytest.raises(InputError) as caught:
        Ollama.connect("ollama", f"other@{server}")
    assert str(caught.value).startswith(f"--peer ollama=other@{server}: {server}/api/show answered 404 ")
    assert str(caught.value).endswith("; start it, or import the model's file there")
    with pytest.raises(InputError) as caught:
        Ollama.connect("ollama", "glm@file:///etc/passwd")
    assert str(caught.value) == (
        "--peer ollama=glm@file:///etc/passwd: found file:///etc/passwd, expected http://HOST:PORT; correct it"
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--preset", "glm-4.7-flash", "--peer", "x.csv"],
        ["--weights", "a.gguf", "b.gguf", "--peer", "x.csv"],
        ["--cache", "f16,f32", "--peer", "x.csv"],
    ],
)
def test_peers_want_one_model_that_runs(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *argv]) == 2
    assert capsys.readouterr().err == (
        "latentvk: error: --peer is given, expected one MODEL and one cache type to be run beside it; leave the others "
        "out\n"
    )


def test_a_peer_waits_for_lanes_that_are_refused_together(llama_bench: tuple[Path, Path]) -> None:
    peers, _ = open_peers([PeerSpec("llama-bench", str(llama_bench[0]))], MODEL, "f16", "none")
    turns = peer_turns(peers, {40: lambda: ""}, 4)
    one = 1000 + lanes(FakeSession, ["mha"])[0].planned(40).cache_bytes_formula
    apart = lanes(FakeSession, ["mla", "mha"], bench(budget=one))
    rows, _ = measure_rows(apart, {40: Prompt(np.zeros(40, np.int32), None)}, turns)
    assert all(row.ran for row in rows)
    assert len(turns[40][0].points) == 2  # once, with the first of the parts
