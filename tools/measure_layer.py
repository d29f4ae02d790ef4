"""What the companion layer costs and saves: recording and replay per dispatch with and without it, pipelines shared or
not. Prints medians; run it on an otherwise idle machine: `python tools/measure_layer.py MODEL.gguf`.

The model's decode program is created over and over until as many layers as a full model's were made, so that a file
with a few layers shows the pipelines of one with 47.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import kp
import numpy as np

from model.engine import Model, Session
from model.layout import get_path
from vkbackend.device import Device, open_device
from vkbackend.kernel import Kernel

_FILL = Kernel("fill_zero.comp", (("target", "w"),), ("EACH",), ("to", "count"))
_DISPATCHES = 500
_LAYERS = 47  # GLM-4.7-Flash


def median_us(repeats: int, run: Callable[[], None], each: int) -> float:
    """Median microseconds of one of ``each`` parts of ``run``, after a warm-up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times) / each


def dispatches(manager: kp.Manager, lanes: int, replay: Callable[[kp.Sequence], object], repeats: int) -> str:
    """Costs of a small kernel through ``manager``."""
    tensor = manager.tensor_t(np.zeros(64, np.uint32), kp.TensorTypes.host)
    push = _FILL.pack_push({"to": 0, "count": 64})
    spec = _FILL.pack_spec(lanes, {"EACH": 1})
    algorithm = manager.algorithm([tensor], _FILL.spirv(), [1, 1, 1], spec, push)

    def record() -> kp.Sequence:
        sequence = manager.sequence()
        for _ in range(_DISPATCHES):
            sequence.record(kp.OpAlgoDispatch(algorithm))
        return sequence

    recording = median_us(repeats, lambda: record().destroy(), _DISPATCHES)
    sequence = record()
    replaying = median_us(repeats, lambda: replay(sequence) and None, _DISPATCHES)
    sequence.destroy()
    return f"record {recording:.2f} us, replay {replaying:.2f} us a dispatch ({_DISPATCHES} a submission)"


def pipelines(device: Device, model: Model, share: bool) -> str:
    """Time to make a full model's decode algorithms."""
    device.companion.share_pipelines(share)
    copies = -(-_LAYERS // model.config.n_layer)
    sessions = [Session(model, get_path("mla"), 64) for _ in range(copies)]
    before = device.companion.pipeline_counts()
    start = time.perf_counter()
    programs = [session._forward.decode for session in sessions]
    for program in programs:
        program._recorded = program._create()
    seconds = time.perf_counter() - start
    created, shared = (now - then for now, then in zip(device.companion.pipeline_counts(), before, strict=True))
    for session in sessions:
        session.close()
    device.companion.share_pipelines(True)
    return f"{created + shared} algorithms, {created} pipelines: {seconds:.3f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("-r", "--repeats", type=int, default=9)
    args = parser.parse_args()
    device = open_device()
    lanes = device.subgroup_size
    stock = kp.Manager(device.info.index)  # no layer: the variables stand only while a Device is made
    for _ in range(2):  # in turns, for a machine's speed drifts
        print("with the layer:   ", dispatches(device.manager, lanes, device.run, args.repeats))
        print("without the layer:", dispatches(stock, lanes, lambda s: s.eval(), args.repeats))
    stock.destroy()
    model = Model.load(args.model, device)
    for _ in range(2):
        print("pipelines shared:    ", pipelines(device, model, True))
        print("pipelines not shared:", pipelines(device, model, False))
    model.close()
    device.close()


if __name__ == "__main__":
    main()
