"""`latentvk bench`: prompt and decode speed at given depths, in records with llama-bench's field names."""

import argparse
from collections.abc import Iterator
from functools import partial
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any

from harness import options
from vkbackend.errors import DeviceLostError, InputError

if TYPE_CHECKING:
    import numpy as np

    from harness.measure import SessionLike
    from model.config import ModelConfig
    from model.engine import Model
    from model.gguf_file import GGUFFile
    from model.layout import Path

HELP = "time prompts and decoding at given depths; --startup: start to first token, and peak memory"
EXAMPLE = "latentvk bench -p 128 -n 32 -d 0,1024 --json -"

_SEED = 1
_WARM_UPS = 3  # a program's first run learns how long it takes, the second records it, the third may record it better


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    add = parser.add_argument
    add("-p", "--n-prompt", type=options.non_negative_ints, default=[128], metavar="N,...", help="default 128; 0: none")
    add("-n", "--n-gen", type=options.non_negative_ints, default=[32], metavar="N,...", help="default 32; 0: none")
    add("-d", "--n-depth", type=options.non_negative_ints, default=[0], metavar="N,...", help="tokens cached before")
    add("-r", "--repetitions", type=options.positive_int, default=3, metavar="N", help="samples of each (default 3)")
    add("--startup", action="store_true", help="instead: in a fresh process, time to the first token and peak memory")
    options.add_path(parser)
    options.add_cache(parser)
    options.add_chunk(parser)
    options.add_memory(parser)


def run(args: argparse.Namespace) -> int:
    from harness.running import load_model, open_file
    from model.layout import get_path
    from vkbackend.device import open_device

    if not args.startup and not any(args.n_prompt + args.n_gen):
        raise InputError("-p 0 and -n 0 leave nothing to run, expected one of them above 0; give a length")
    path = get_path(args.path, args.cache)
    gguf, config = open_file(args)
    if args.startup:
        from harness.startup import measure_startup

        return measure_startup(args, gguf.path)
    model = load_model(gguf, config, open_device(args.device, memory_fraction=args.memory_fraction))
    rows, lost = [], None
    try:
        for row in measure(model, config, path, args):
            rows.append(about(model, gguf, config, path) | row)
    except DeviceLostError as error:
        lost = error
    for row in rows:
        row["incomplete"] = "" if lost is None else str(lost)
    options.emit_json(args, rows)
    if rows and not options.json_to_stdout(args):
        show(rows)
    if lost is not None:
        raise lost
    return 0


def measure(model: "Model", config: "ModelConfig", path: "Path", args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record for each test: every prompt length, then every decode length, at every depth. Tokens are drawn."""
    import numpy as np

    from harness.running import open_session

    rng = np.random.default_rng(_SEED)
    for depth in args.n_depth:
        longest = depth + max(*args.n_prompt, *args.n_gen, 1)
        session = open_session(model, path, longest, args.chunk)
        try:
            tokens = rng.integers(config.n_vocab, size=longest, dtype=np.int32)
            _fill(session, tokens, depth)
            tests = [partial(_prompt_test, n_prompt=n) for n in filter(None, args.n_prompt)]
            tests += [partial(_decode_test, n_gen=n) for n in filter(None, args.n_gen)]
            for test in tests:
                model.device.pace.forget_longest()
                row = test(session, tokens, depth, count=args.repetitions)
                yield row | {"longest_submission_ns": round(1e9 * model.device.pace.longest_s)}
        finally:
            session.close()


def _fill(session: "SessionLike", tokens: "np.ndarray", depth: int) -> None:
    """Warm up both programs, then cache `depth` tokens."""
    for _ in range(_WARM_UPS):
        session.prompt(tokens[: session.chunk].tolist(), "last")
        session.rewind(0)
        session.decode(int(tokens[0]))
        session.rewind(0)
    if depth:
        session.prompt(tokens[:depth].tolist(), "none")


def _prompt_test(session: "SessionLike", tokens: "np.ndarray", depth: int, n_prompt: int, count: int) -> dict[str, Any]:
    samples = []
    prompt = tokens[depth : depth + n_prompt].tolist()
    test_time = _now()
    for _ in range(count):
        session.rewind(depth)
        started = perf_counter_ns()
        session.prompt(prompt, "last")
        samples.append(perf_counter_ns() - started)
    return _record(test_time, n_prompt, 0, depth, samples) | {"cache_bytes": session.cache_bytes}


def _decode_test(session: "SessionLike", tokens: "np.ndarray", depth: int, n_gen: int, count: int) -> dict[str, Any]:
    samples, token_times = [], []
    test_time = _now()
    for _ in range(count):
        session.rewind(depth)
        token = int(tokens[depth])
        times = []
        for _ in range(n_gen):
            started = perf_counter()
            token = session.decode(token)
            times.append(perf_counter() - started)
        samples.append(round(1e9 * sum(times)))
        token_times.append([round(1e9 * seconds) for seconds in times])
    record = _record(test_time, 0, n_gen, depth, samples)
    return record | {"samples_token_ns": token_times, "cache_bytes": session.cache_bytes}


def _record(test_time: str, n_prompt: int, n_gen: int, depth: int, samples_ns: list[int]) -> dict[str, Any]:
    from harness.stats import deviation, mean

    tokens = n_prompt + n_gen
    rates = [1e9 * tokens / sample for sample in samples_ns]
    name = f"pp{n_prompt}" if n_prompt else f"tg{n_gen}"
    return {
        "test": name + (f" @ d{depth}" if depth else ""),
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": depth,
        "test_time": test_time,
        "avg_ns": round(mean(samples_ns)),
        "stddev_ns": round(deviation(samples_ns)),
        "avg_ts": mean(rates),
        "stddev_ts": deviation(rates),
        "samples_ns": samples_ns,
        "samples_ts": rates,
    }


def about(model: "Model", gguf: "GGUFFile", config: "ModelConfig", path: "Path") -> dict[str, Any]:
    """The fields that say what ran where: llama-bench's names where it has one, then this project's own."""
    from gguf import LlamaFileType

    from harness import metadata
    from model.layout import cache_bytes_per_token, total_parameters

    parameters = total_parameters(config)
    try:
        type_name = LlamaFileType(gguf.kv.get("general.file_type", -1)).name.removeprefix("MOSTLY_")
    except ValueError:
        type_name = "mixed types"
    size = f"{parameters / 1e9:.2f}B" if parameters >= 1e8 else f"{parameters / 1e6:.2f}M"
    host, software, info = metadata.host(), metadata.software(), model.device.info
    return {
        "build_commit": software["commit"],
        "cpu_info": host["cpu"],
        "gpu_info": info.name,
        "backends": "latentvk Vulkan",
        "model_filename": gguf.path.name,
        "model_type": f"{config.arch} {size} {type_name}",
        "model_size": sum(tensor.nbytes for tensor in gguf.tensors.values()),
        "model_n_params": parameters,
        "type_k": path.cache_type,
        "type_v": path.cache_type,
        "flash_attn": path.fused,
        "path": path.name,
        "weight_bytes_per_token": model.active_weight_bytes,
        "cache_bytes_per_token": cache_bytes_per_token(config, path.layout, path.cache_type),
        "driver": f"{info.driver} {info.driver_version}",
        "latentvk": software["latentvk"],
        "load_average": host["load_average"],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """llama-bench's table with the bandwidth that decoding reached: bytes a token must read, times tokens a second."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from harness.units import significant

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("model", "path", "test", "tok/s", "GB/s"):
        table.add_column(heading, justify="left" if heading in ("model", "path", "test") else "right")
    for row in rows:
        rate = "n/a"
        if row["n_gen"]:
            rows_read = row["n_depth"] + (row["n_gen"] + 1) / 2
            per_token = row["weight_bytes_per_token"] + rows_read * row["cache_bytes_per_token"]
            rate = significant(per_token * row["avg_ts"] / 1e9)
        speed = f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"
        table.add_row(row["model_type"], row["path"], row["test"], speed, rate)
    Console(highlight=False).print(table)
    print(f"on {rows[0]['gpu_info']} ({rows[0]['driver']})")


def _now() -> str:
    from harness import metadata

    return metadata.now()
