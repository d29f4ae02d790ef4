"""Tables of anyone's speeds: every format by value, every complaint by its whole text."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.measurements import Measurements, parse_measurements, read_measurements
from vkbackend.errors import InputError

EXPECTED = (
    "expected a table of context and tok/s: CSV, llama-bench's csv, json, jsonl or md, or sweep-bench's table or jsonl"
)
# As llama-bench b11434 prints it (tools/llama-bench/llama-bench.cpp).
LLAMA_BENCH_MD = """\
ggml_vulkan: Found 1 Vulkan devices:
| model                          |       size |     params | backend    | ngl |            test |                  t/s |
| ------------------------------ | ---------: | ---------: | ---------- | --: | --------------: | -------------------: |
| deepseek2 30B.A3B Q4_K         |  16.88 GiB |    29.94 B | Vulkan     |  99 |           pp512 |        333.20 ± 1.45 |
| deepseek2 30B.A3B Q4_K         |  16.88 GiB |    29.94 B | Vulkan     |  99 |           tg128 |         70.90 ± 0.59 |
| deepseek2 30B.A3B Q4_K         |  16.88 GiB |    29.94 B | Vulkan     |  99 |   tg128 @ d8192 |         50.50 ± 0.60 |
| deepseek2 30B.A3B Q4_K         |  16.88 GiB |    29.94 B | Vulkan     |  99 |     pp512+tg128 |         90.50 ± 0.60 |

build: 8cf427ff (5163)
"""
# As ik_llama.cpp's sweep-bench prints it (examples/sweep-bench/sweep-bench.cpp).
SWEEP_TABLE = """\
main: n_kv_max = 8704, n_batch = 2048, n_ubatch = 512, flash_attn = 0, n_gpu_layers = -1

|    PP |     TG |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |
|-------|--------|--------|----------|----------|----------|----------|
|   512 |    128 |      0 |    1.100 |   465.51 |    2.311 |    55.38 |
|   512 |    128 |    512 |    1.183 |   432.97 |    1.895 |    67.55 |
|   512 |    128 |   1024 |    1.305 |   392.38 |    2.071 |    61.81 |
"""


def record(**changes: object) -> dict[str, object]:
    fields = {"model_filename": "a.gguf", "type_k": "q8_0", "type_v": "q8_0", "n_prompt": 0, "n_gen": 32, "n_depth": 0}
    return fields | {"avg_ts": 20.5, "stddev_ts": 0.2, "samples_ts": [20.3, 20.7, 20.4, 20.6]} | changes


def pairs(found: Measurements) -> list[tuple[float, float, float]]:
    return [(point.context, point.rate, round(point.rounding, 9)) for point in found.points]


@pytest.mark.parametrize(
    "text",
    [
        "# a remark\ncontext,tok/s\n4K,7.3\n\n16384,2.10\n128K,oom\n",
        "4096,7.3\n16384,2.10\n131072,out of memory\n",
        "context\ttok/s\tnote\n4K\t7.3\tcold\n16K\t2.10\twarm\n128K\tOOM\t-\n",
        'name;t/s;depth\nx;7.3;"4,096"\ny;2.10;16_384\nz;oom;131072\n',
    ],
)
def test_csv(text: str) -> None:
    found = parse_measurements(text, "t.csv")
    assert pairs(found) == [(4096, 7.3, 0.05), (16384, 2.1, 0.005)]
    assert found.out_of_memory == (131072,)
    assert (found.format, found.cache_type) == ("CSV", None)


def test_a_whole_rate_is_known_to_a_half() -> None:
    found = parse_measurements("512,10\n1024,9\n", "t")
    assert pairs(found) == [(512, 10, 0.5), (1024, 9, 0.5)]
    assert found.points[0].known_error == pytest.approx(0.05 / math.sqrt(3))


def test_llama_bench_markdown_takes_the_tg_tests_at_their_mean_context() -> None:
    found = parse_measurements(LLAMA_BENCH_MD, "t.md")
    assert pairs(found) == [(64.5, 70.9, 0.005), (8192 + 64.5, 50.5, 0.005)]
    assert [point.deviation for point in found.points] == [0.59, 0.6]


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_llama_bench_records(form: str) -> None:
    rows = [record(n_prompt=512, n_gen=0), record(), record(n_depth=4096, avg_ts=9.25), record(n_prompt=64)]
    if form == "json":
        text = json.dumps(rows, indent=2)
    elif form == "jsonl":
        text = "\n".join(json.dumps(row) for row in rows)
    else:
        rows = [{key: value for key, value in row.items() if key != "samples_ts"} for row in rows]
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
        text = "\n".join(lines) + "\n"
    found = parse_measurements(text, "t")
    assert pairs(found) == [(16.5, 20.5, 0.05), (4096 + 16.5, 9.25, 0.005)]
    # Four samples were averaged; the CSV does not say so.
    assert found.points[0].deviation == pytest.approx(0.2 if form == "csv" else 0.1)
    assert (found.format, found.cache_type) == ("llama-bench", "q8_0")


@pytest.mark.parametrize(
    ("backends", "layers", "processor"),
    [("CPU", -1, "cpu"), ("BLAS,CPU", 99, "cpu"), ("Vulkan", 99, "gpu"), ("CUDA,CPU", 0, "cpu"), ("", 9, None)],
)
def test_llama_bench_tells_what_ran(backends: str, layers: int, processor: str | None) -> None:
    found = parse_measurements(json.dumps([record(backends=backends, n_gpu_layers=layers)]), "t")
    assert found.processor == processor
    if backends:
        text = f"| backend | ngl | test | t/s |\n| {backends} | {layers} | tg9 | 3.0 ± 0.1 |\n"
        assert parse_measurements(text, "t").processor == processor


def test_caches_of_two_types_name_none() -> None:
    assert parse_measurements(json.dumps([record(type_v="f16")]), "t").cache_type is None


@pytest.mark.parametrize("form", ["table", "jsonl"])
def test_sweep_bench_leaves_its_warm_up_out(form: str) -> None:
    text = SWEEP_TABLE
    if form == "jsonl":
        rows = [(0, 55.38), (512, 67.55), (1024, 61.81)]
        text = "".join(
            f'{{"n_kv_max": 8704, "pp": 512, "tg": 128, "n_kv": {n}, "speed_tg": {rate:f} }}\n' for n, rate in rows
        )
    found = parse_measurements(text, "t")
    rounding = 0.005 if form == "table" else 5e-7
    assert pairs(found) == [(512 + 64.5, 67.55, round(rounding, 9)), (1024 + 64.5, 61.81, round(rounding, 9))]
    assert found.notes == ("sweep-bench's first line, at 0, was left out: it is measured while the runtime warms up.",)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", f"t: nothing in it, {EXPECTED}; fill it"),
        ("# only\n", f"t: nothing in it, {EXPECTED}; fill it"),
        ("hello\n", f"t: line 1: found 'hello', {EXPECTED}; correct it"),
        ("4096,7.3\n9000,fast\n", "t: line 2: tok/s 'fast', expected a number, such as 7.3; correct it"),
        ("4096,7.3\n9000,nan\n", "t: line 2: tok/s 'nan', expected a number, such as 7.3; correct it"),
        ("4096,7.3\n9000,-1\n", "t: line 2: tok/s '-1', expected a number, such as 7.3; correct it"),
        (
            "4096,7.3\n9000,0.0\n",
            "t: line 2: tok/s '0.0', expected a rate above 0, or oom where memory ran out; correct it",
        ),
        ("context,tok/s\nfour,1\n", "t: line 2: context 'four', expected tokens, such as 4096 or 4K; correct it"),
        ("4096,7.3\n9000\n", "t: line 2: 1 cells, expected 2, as its first line has; correct it"),
        (
            "model,speed\na,1\n",
            "t: line 1: columns model, speed, expected one of context, ctx, n_ctx, depth, n_depth, n_kv, tokens and "
            "one of tok/s, t/s, tokens/s, tok_s, tokens_per_second, rate, tg; rename them",
        ),
        ('4096,"7\n', f"t: CSV with a quote that does not close, {EXPECTED}; correct it"),
        ("4096,oom\n", f"t: CSV without a decode test, {EXPECTED}; measure token generation (tg)"),
        (
            '[{"n_gen": 1},\n',
            "t: line 2: JSON that does not parse, expected llama-bench's whole array; let llama-bench finish",
        ),
        ("[3]", "t: found 3, expected records of llama-bench or sweep-bench; correct it"),
        ('{"n_gen": 1\n', "t: line 1: JSON that does not parse, expected one record a line; remove the line"),
        (
            '{"n_gen": "x", "n_prompt": 0}\n',
            "t: line 1: n_gen 'x', expected a whole number of tokens; correct it",
        ),
        ("| a | b |\n|---|---|\n", f"t: line 1: a table without a column t/s or S_TG t/s, {EXPECTED}; correct it"),
        ("| test | t/s |\n| tg1 |\n", "t: line 2: 1 cells, expected 2, as its heading has; correct it"),
        (
            "| test | t/s |\n| tx1 | 3 |\n",
            "t: line 2: test 'tx1', expected pp512, tg128 or tg128 @ d4096; correct it",
        ),
        (
            "| PP | TG | B | N_KV | S_TG t/s |\n| 1 | 1 | 1 | 2 | 3.0 |\n",
            f"t: a table of PP, TG, B, N_KV, S_TG t/s, {EXPECTED}; give one of these",
        ),
        (
            "| test | t/s |\n| tg1 | 3 |\n| N_KV | TG | S_TG t/s |\n",
            "t: line 3: a second table with other columns, expected one table; split the file",
        ),
        (
            json.dumps([record(), record(model_filename="b.gguf")]),
            "t: tests of model_filename 'a.gguf' and 'b.gguf', expected one set-up; leave the others out",
        ),
        (
            "| model | test | t/s |\n| a | tg1 | 3 |\n| b | tg1 @ d9 | 3 |\n",
            "t: tests of model 'a' and 'b', expected one set-up; leave the others out",
        ),
    ],
)
def test_complaints_name_file_and_line(text: str, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_measurements(text, "t")
    assert str(caught.value) == complaint


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(InputError) as caught:
        read_measurements(str(path))
    assert str(caught.value) == (
        f"{path}: cannot be read (No such file or directory); expected a file of measured speeds; check the path"
    )
    path.write_bytes(b"\xef\xbb\xbf4096,7.3\r\n16384,2.1\r\n")  # as a spreadsheet saves it
    assert pairs(read_measurements(str(path))) == [(4096, 7.3, 0.05), (16384, 2.1, 0.05)]
    path.write_bytes(b"4096,\xff")
    with pytest.raises(InputError) as caught:
        read_measurements(str(path))
    assert str(caught.value) == f"{path}: byte 5 is no UTF-8; {EXPECTED}; choose another file"


@given(st.text(max_size=200) | st.text(alphabet='0123456789,.|[]{}":\n ktgpN_VKoSs/-', max_size=200))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        found = parse_measurements(text, "t")
    except InputError as error:
        assert str(error).startswith("t: ")
    else:
        assert all(point.rate > 0 and point.context >= 0 for point in found.points)
