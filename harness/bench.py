"""`latentvk bench`: prompt and decode speed at given depths, in records with llama-bench's field names."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from harness import options
from vkbackend.errors import DeviceError, DeviceLostError, InputError

if TYPE_CHECKING:
    import numpy as np

    from harness.roofline import Peaks
    from model.config import ModelConfig
    from model.engine import Model, Session
    from model.gguf_file import GGUFFile
    from model.layout import Path

HELP = "time prompts and decoding at given depths; --startup: start to first token, and peak memory"
EXAMPLE = "latentvk bench -p 128 -n 32 -d 0,1024 --json -"

SCHEMA, SCHEMA_VERSION = "latentvk.bench", 1
READY = "ready"
FORMATS = ("table", "md", "csv", "json", "jsonl")
# Ten repeats a side tell up to 4618 metrics apart in a rank test corrected for them; five only 6 (harness/judging.py).
REPETITIONS = 10
_SEED = 1
_WARM_UPS = 3  # a program's first run learns how long it takes, the second records it, the third may record it better


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    add = parser.add_argument
    add("-p", "--n-prompt", type=options.non_negative_ints, default=[128], metavar="N,...", help="default 128; 0: none")
    add("-n", "--n-gen", type=options.non_negative_ints, default=[32], metavar="N,...", help="default 32; 0: none")
    add("-pg", type=_pair, action="append", default=[], metavar="P,N", help="also P prompt tokens, then N decoded ones")
    add("-d", "--n-depth", type=options.non_negative_ints, default=[0], metavar="N,...", help="tokens cached before")
    add(
        "-r",
        "--repetitions",
        type=options.positive_int,
        default=REPETITIONS,
        metavar="N",
        help=f"samples of each, the tests in turns (default {REPETITIONS})",
    )
    add("--startup", action="store_true", help="instead: in a fresh process, time to the first token and peak memory")
    add("-o", "--output", choices=FORMATS, default="table", help="what is printed, as llama-bench's -o (default table)")
    # `regress --run` says when each turn begins, which takes this many repeats of every test.
    add("--step", type=options.positive_int, metavar="N", help=argparse.SUPPRESS)
    options.add_path(parser)
    options.add_cache(parser)
    add("-ctk", "--cache-type-k", metavar="TYPE", help="llama-bench's spelling of --cache; -ctv must say the same")
    add("-ctv", "--cache-type-v", metavar="TYPE", help=argparse.SUPPRESS)
    options.add_chunk(parser, "-ub", "--ubatch-size")
    add(
        "--no-peaks",
        action="store_true",
        help="leave the device's peaks unmeasured, and unsaid what shares are reached",
    )
    options.add_memory(parser)


def _pair(text: str) -> tuple[int, int]:
    """'512,128' -> (512, 128)."""
    parts = [options.positive_int(part) for part in text.split(",")]
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"found '{text}', expected prompt and decoded tokens such as 512,128")
    return parts[0], parts[1]


def _cache_type(args: argparse.Namespace) -> str:
    """Raises InputError where -ctk and -ctv differ: a latent row is keys and values at once."""
    given = dict.fromkeys(name for name in (args.cache_type_k, args.cache_type_v) if name)
    if len(given) > 1:
        raise InputError(
            f"-ctk {args.cache_type_k} and -ctv {args.cache_type_v}, expected one type, as keys and values share a "
            "cache row; give the same to both"
        )
    return next(iter(given), args.cache)


def run(args: argparse.Namespace) -> int:
    from harness.roofline import best_peaks
    from harness.running import load_model, open_file
    from model.layout import get_path
    from vkbackend.device import open_device

    if not args.startup and not any(args.n_prompt + args.n_gen) and not args.pg:
        raise InputError("-p 0 and -n 0 leave nothing to run, expected one of them above 0; give a length")
    if args.output != "table" and options.json_to_stdout(args):
        raise InputError(f"-o {args.output} and --json - both write to standard output, expected one; leave one out")
    args.cache = _cache_type(args)
    path = get_path(args.path, args.cache)
    gguf, config = open_file(args)
    if args.startup:
        from harness.startup import measure_startup

        return measure_startup(args, gguf.path)
    from harness.machine import Watch
    from vkbackend.peaks import measure_peaks

    device = open_device(args.device, memory_fraction=args.memory_fraction)
    peaks_before = None if args.no_peaks or args.step else measure_peaks(device)
    model = load_model(gguf, config, device)
    watch = Watch(device.info.pci_address)
    rows, lost = [], None
    try:
        for row in measure(model, config, path, args):
            rows.append(row)
    except DeviceLostError as error:
        lost = error
    facts = about(model, gguf, config, path) | record_facts(model, gguf, args)
    facts |= {"state": watch.taken(), "incomplete": "" if lost is None else str(lost)}
    rows = [facts | row for row in rows]
    if peaks_before is not None:
        try:
            after = None if lost else measure_peaks(device)
        except DeviceError as error:  # the rows are worth more
            after = None
            print(f"latentvk: warning: the device's peaks could not be measured once more: {error}", file=sys.stderr)
        add_bounds(rows, model, config, path, *best_peaks(peaks_before, after))
    options.emit_json(args, rows)
    if rows and not options.json_to_stdout(args):
        from harness.bench_output import FORMATTED, show

        if args.output == "table":
            show(rows)
        else:
            sys.stdout.write(FORMATTED[args.output](rows))
    if lost is not None:
        raise lost
    return 0


@dataclass
class Test:
    """One test at one depth: what it runs, and the samples so far, in nanoseconds."""

    n_prompt: int
    n_gen: int
    depth: int
    started: str
    samples: list[int] = field(default_factory=list)
    token_times: list[list[int]] = field(default_factory=list)
    warm_up: int = 0
    longest_submission: float = 0.0

    def repeat(self, session: "Session", tokens: "np.ndarray") -> tuple[int, list[int]]:
        """One repeat from `depth` on: its time, and each decoded token's, of those decoded in one go the mean."""
        session.rewind(self.depth)
        prompt = tokens[self.depth : self.depth + self.n_prompt].tolist()
        token = int(tokens[self.depth + self.n_prompt])
        times: list[int] = []
        started = before = perf_counter_ns()
        if prompt:
            session.prompt(prompt, "last")
            before = perf_counter_ns()
        while len(times) < self.n_gen:
            several = session.decode_ahead(token, self.n_gen - len(times))
            now = perf_counter_ns()
            times += [(now - before) // len(several)] * len(several)
            token, before = several[-1], now
        return before - started, times


def measure(model: "Model", config: "ModelConfig", path: "Path", args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record for each test: every prompt length, decode length and pair, at every depth. Tokens are drawn.

    The tests of a depth take turns, so that a drift of the machine's speed falls on all of them and shows in the spread
    of each. Each test's first run is kept apart, as a warm-up.
    """
    import numpy as np

    from harness.metadata import now
    from harness.running import open_session

    kinds = [(n, 0) for n in args.n_prompt if n] + [(0, n) for n in args.n_gen if n] + args.pg
    pace = model.device.pace
    rng = np.random.default_rng(_SEED)
    for depth in args.n_depth:
        longest = depth + max(n_prompt + n_gen for n_prompt, n_gen in kinds)
        session = open_session(model, path, longest, args.chunk)
        try:
            tokens = rng.integers(config.n_vocab, size=longest + 1, dtype=np.int32)
            _fill(session, tokens, depth)
            tests = [Test(n_prompt, n_gen, depth, now()) for n_prompt, n_gen in kinds]
            for test in tests:
                test.warm_up = test.repeat(session, tokens)[0]
            at_once = args.step or 1
            for turn in range(0, args.repetitions, at_once):
                if args.step:
                    _await_step()
                for test in tests:
                    for _ in range(at_once):
                        pace.forget_longest()
                        total, times = test.repeat(session, tokens)
                        test.longest_submission = max(test.longest_submission, pace.longest_s)
                        test.samples.append(total)
                        test.token_times.append(times)
                    if turn + at_once >= args.repetitions:
                        yield _record(test) | _counts(model, session)
        finally:
            session.close()


def _await_step() -> None:
    """Say on standard output that a turn may begin, and begin it when a line comes on standard input."""
    print(READY, flush=True)
    if not sys.stdin.readline():
        raise InputError("--step: standard input ended, expected a line for each turn; it is made for `regress --run`")


def _fill(session: "Session", tokens: "np.ndarray", depth: int) -> None:
    """Warm up both programs, then cache `depth` tokens."""
    for _ in range(_WARM_UPS):
        session.prompt(tokens[: min(session.chunk, len(tokens) - 1)].tolist(), "last")
        session.rewind(0)
        session.decode(int(tokens[0]))
        session.rewind(0)
    if depth:
        session.prompt(tokens[:depth].tolist(), "none")


def _counts(model: "Model", session: Any) -> dict[str, Any]:
    """What does not vary from run to run: cache bytes, launches, and what the device has allocated at this moment."""
    heaps = model.device.companion.heaps()
    return {
        "cache_bytes": session.cache_bytes,
        "chunk": session.chunk,
        "launches": session.launch_counts(),
        "device_bytes": sum(heap.live for heap in heaps),
        "device_allocations": sum(heap.allocations for heap in heaps),
    }


def add_bounds(
    rows: list[dict[str, Any]],
    model: "Model",
    config: "ModelConfig",
    path: "Path",
    peaks: "Peaks",
    samples: dict[str, list[float]],
) -> None:
    """Complete rows with what the device can do at most, the least time that this allows, and the share reached."""
    from dataclasses import asdict

    from harness.roofline import Weights, run_bound
    from model.tensors import expected_tensors

    tensors = model.gguf.tensors
    total = sum(tensors[name].nbytes for name in expected_tensors(config))
    weights = Weights(total, model.active_weight_bytes, "the file's own tensors")
    for row in rows:
        numbers = row["n_prompt"], row["n_gen"], row["n_depth"], row["chunk"]
        bound = run_bound(config, weights, path, *numbers, peaks)
        row["peaks"], row["peak_samples"] = asdict(peaks), samples
        row["bound"] = asdict(bound) | {"seconds": bound.seconds, "governs": bound.governs}
        row["bytes_per_token"] = bound.bytes_read / (row["n_prompt"] + row["n_gen"])
        row["governs"], row["roofline_share"] = bound.governs, bound.seconds / (row["avg_ns"] / 1e9)


def _record(test: Test) -> dict[str, Any]:
    from harness.stats import deviation, mean

    tokens = test.n_prompt + test.n_gen
    rates = [1e9 * tokens / sample for sample in test.samples]
    parts = [f"pp{test.n_prompt}"] * bool(test.n_prompt) + [f"tg{test.n_gen}"] * bool(test.n_gen)
    record = {
        "test": "+".join(parts) + (f" @ d{test.depth}" if test.depth else ""),
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.depth,
        "test_time": test.started,
        "avg_ns": round(mean(test.samples)),
        "stddev_ns": round(deviation(test.samples)),
        "avg_ts": mean(rates),
        "stddev_ts": deviation(rates),
        "samples_ns": test.samples,
        "samples_ts": rates,
        "warmup_ns": test.warm_up,
        "longest_submission_ns": round(1e9 * test.longest_submission),
    }
    return record | ({"samples_token_ns": test.token_times} if test.n_gen else {})


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
        "host": host,
        "software": software,
    }


def record_facts(model: "Model", gguf: "GGUFFile", args: argparse.Namespace) -> dict[str, Any]:
    """What `compare`'s records say of themselves, under the same names."""
    from harness import metadata

    chosen = ("n_prompt", "n_gen", "pg", "n_depth", "repetitions", "path", "cache", "chunk")
    settings = {name: getattr(args, name) for name in chosen}
    settings |= {f"override {key}": value for found in args.override_kv for key, value in found.items()}
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "command": "latentvk " + " ".join(sys.argv[1:]),
        "device": model.device.as_dict(),
        "model": metadata.model_file(*gguf.paths),
        "settings": settings,
    }
