"""A program that prints what llama-bench or sweep-bench, as FAKE_BENCH says, prints, for speeds by a known law.

Each run appends its arguments to the file that FAKE_BENCH_LOG names. FAKE_BENCH_FAIL: contexts from which it fails.
"""

import json
import os
import sys
from pathlib import Path


def option(name: str, default: int = 0) -> int:
    return int(sys.argv[sys.argv.index(name) + 1]) if name in sys.argv else default


def rate(context: float) -> float:
    return 1 / (0.01 + 1e-6 * context)


with Path(os.environ["FAKE_BENCH_LOG"]).open("a") as log:
    log.write(" ".join(sys.argv[1:]) + "\n")
if "--list-devices" in sys.argv:
    print("Available devices:\n  Vulkan0: AMD Radeon 780M (RADV PHOENIX) (16384 MiB, 16000 MiB free)")
    sys.exit()
if option("-d") + option("-c") >= int(os.environ.get("FAKE_BENCH_FAIL", "1000000000")):
    print("loading\nggml_vulkan: ErrorOutOfDeviceMemory", file=sys.stderr)
    sys.exit(1)
print("ggml_vulkan: Found 1 Vulkan devices:", file=sys.stderr)
if os.environ["FAKE_BENCH"] == "sweep-bench":
    step, tokens = option("-ub"), option("-n")
    for n_kv in range(0, option("-c"), step):
        speed = rate(n_kv + (tokens + 1) / 2)
        print(json.dumps({"pp": step, "tg": tokens, "n_kv": n_kv, "speed_pp": 1.0, "speed_tg": speed}))
else:
    n_prompt, n_gen, depth = option("-p"), option("-n"), option("-d")
    speed = rate(depth + (n_gen + 1) / 2) if n_gen else 500.0
    record = {"build_commit": "abc1234", "backends": "Vulkan", "gpu_info": "AMD Radeon 780M", "n_gpu_layers": 99}
    record |= {"n_prompt": n_prompt, "n_gen": n_gen, "n_depth": depth, "avg_ts": speed, "stddev_ts": 0.0}
    print(json.dumps(record))
