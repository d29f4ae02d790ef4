"""`bench --startup`: start to first token and peak memory, in a fresh process so that nothing is warm but the disk.

The parent notes the clock, starts `python -m harness.startup`, and the child, having decoded one token, prints its
stage times against that clock and its memory as one JSON line. CLOCK_MONOTONIC is one clock for all processes.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import options
from harness.overrides import spelt
from vkbackend.errors import LatentvkError

_TOKEN = 1


def measure_startup(args: argparse.Namespace, model: Path) -> int:
    """Run the child and show what it found. Returns the child's exit code when that is not 0."""
    from harness.units import bytes_text, seconds_text

    command = [sys.executable, "-m", "harness.startup", "--path", args.path, "--cache", args.cache]
    command += ["--device", args.device] if args.device else []
    command += ["--memory-fraction", str(args.memory_fraction)] if args.memory_fraction else []
    command += ["--started", repr(time.clock_gettime(time.CLOCK_MONOTONIC)), str(model)]
    command += [f"--override-kv={spelt(found)}" for found in args.override_kv]
    # The child says itself, on standard error, what went wrong.
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if child.returncode:
        return child.returncode
    found: dict[str, Any] = json.loads(child.stdout)
    found["peak_over_file"] = found["peak_resident_bytes"] / found["file_bytes"]
    options.emit_json(args, found)
    if not options.json_to_stdout(args):
        for stage, seconds in found["seconds"].items():
            print(f"{stage:<16} after {seconds_text(seconds)}")
        peak, size = bytes_text(found["peak_resident_bytes"]), bytes_text(found["file_bytes"])
        print(f"peak resident memory {peak}, {found['peak_over_file']:.2f} of the file's {size}")
    return 0


def peak_resident_bytes() -> int:
    """The most memory this process had resident. VmHWM: getrusage's figure begins with the parent's after an exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM line, expected one on Linux")


def main() -> int:
    parser = argparse.ArgumentParser(prog="harness.startup")
    parser.add_argument("--path", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--device")
    options.add_memory(parser)
    parser.add_argument("--started", type=float, required=True)
    options.add_model(parser)
    args = parser.parse_args()
    args.chunk = None
    try:
        print(json.dumps(first_token(args)))
    except LatentvkError as error:
        print("latentvk: error: " + " ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    return 0


def first_token(args: argparse.Namespace) -> dict[str, Any]:
    """Open, load, decode one token; seconds since the parent's clock reading at the end of each stage."""
    seconds: dict[str, float] = {}

    def done(stage: str) -> None:
        seconds[stage] = time.clock_gettime(time.CLOCK_MONOTONIC) - args.started

    done("python started")
    from harness.running import load_model, open_file, open_session
    from model.layout import get_path
    from vkbackend.device import open_device

    gguf, config = open_file(args)
    done("file checked")
    model = load_model(gguf, config, open_device(args.device, memory_fraction=args.memory_fraction))
    done("model loaded")
    session = open_session(model, get_path(args.path, args.cache), 256, None)
    done("session ready")
    session.decode(_TOKEN)
    done("first token")
    session.close()
    return {
        "path": args.path,
        "device": model.device.info.name,
        "file_bytes": sum(path.stat().st_size for path in gguf.paths),
        "weight_bytes": model.weight_bytes,
        "seconds": seconds,
        "peak_resident_bytes": peak_resident_bytes(),
    }


if __name__ == "__main__":
    sys.exit(main())
