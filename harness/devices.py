"""`latentvk devices`: every Vulkan device, with what decides how well it runs these models."""

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness import options
from harness.units import bytes_text, significant

if TYPE_CHECKING:
    from vkbackend.gtt import Gtt
    from vkbackend.peaks import Peaks
    from vkbackend.physical import DeviceInfo, Heap

HELP = "list the Vulkan devices, what they are and allow, and which one the other commands choose"
EXAMPLE = "latentvk devices --measure"

_LABEL = 12  # columns of a line's first word


@dataclass(frozen=True)
class Opened:
    """What only an open device tells: the features that are on, and its peaks."""

    features: tuple[str, ...]
    peaks: "Peaks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--measure",
        action="store_true",
        help="open every device, or the one that --device names, and measure the memory bandwidth and arithmetic that "
        "it reaches; a few seconds each",
    )


def run(args: argparse.Namespace) -> int:
    from vkbackend.errors import DeviceError
    from vkbackend.gtt import read_gtt
    from vkbackend.physical import list_devices, require_usable, select_device

    devices = list_devices()
    wanted = args.device or os.environ.get("LATENTVK_DEVICE")
    reasons: dict[int, DeviceError] = {}
    for info in devices:
        try:
            require_usable(info)
        except DeviceError as error:
            reasons[info.index] = error
    usable = [info for info in devices if info.index not in reasons]
    chosen = select_device(devices if wanted else usable, wanted) if wanted or usable else None
    opened: dict[int, Opened] = {}
    if args.measure:
        for info in [chosen] if wanted and chosen else usable:
            try:
                opened[info.index] = _measure(info)
            except DeviceError as error:
                reasons[info.index] = error
    found = [(info, read_gtt(info), opened.get(info.index), reasons.get(info.index)) for info in devices]
    options.emit_json(args, [_as_dict(*one) | {"chosen": one[0] is chosen} for one in found])
    if not options.json_to_stdout(args):
        for one in found:
            _print_device(*one, mark="*" if one[0] is chosen else " ")
        print("* is used unless --device names another" if chosen else "none of them can be used")
    if args.measure and not opened:
        raise reasons[(chosen or devices[0]).index]
    return 0


def _measure(info: "DeviceInfo") -> Opened:
    """Raises DeviceError when the device cannot be opened or computes wrongly."""
    from vkbackend.device import open_device
    from vkbackend.peaks import measure_peaks

    if sys.stderr.isatty():
        print(f"latentvk: measuring {info.name}", file=sys.stderr)
    device = open_device(str(info.index))
    try:
        return Opened(tuple(sorted(device.companion.features)), measure_peaks(device))
    finally:
        device.close()


def _as_dict(info: "DeviceInfo", gtt: "Gtt | None", opened: Opened | None, reason: Exception | None) -> dict[str, Any]:
    return {
        **info.as_dict(),
        "gtt": None if gtt is None else asdict(gtt),
        "unusable": None if reason is None else str(reason),
        "features_on": None if opened is None else opened.features,
        "measured": None if opened is None else asdict(opened.peaks),
    }


def _print_device(
    info: "DeviceInfo", gtt: "Gtt | None", opened: Opened | None, reason: Exception | None, mark: str
) -> None:
    print(f"{mark} {info.index}  {info.name}")
    width = shutil.get_terminal_size().columns
    for label, text in _lines(info, gtt, opened, reason):
        start = f"     {label:<{_LABEL}}"
        wrapped = textwrap.wrap(
            text,
            max(width, 60),
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_long_words=False,
            break_on_hyphens=False,
        )
        print("\n".join(wrapped))


def _lines(
    info: "DeviceInfo", gtt: "Gtt | None", opened: Opened | None, reason: Exception | None
) -> Iterator[tuple[str, str]]:
    from vkbackend.gtt import PAGE, parameters
    from vkbackend.physical import FEATURES
    from vkbackend.tuning import load_tuning, tuning_file

    if reason is not None:
        yield "unusable", str(reason)
    ids = f"{info.vendor_id:04x}:{info.device_id:04x}" + (f" at {info.pci_address}" if info.pci_address else "")
    yield "kind", ", ".join(filter(None, (info.kind, info.chip and f"chip {info.chip}", ids)))
    yield "driver", f"{info.driver} {info.driver_version}, Vulkan {info.api_version}"
    owner = "shared with the host" if info.unified else "of its own"
    yield "memory", f"{bytes_text(info.memory)}, {owner}" if info.heaps else "none"
    for number, heap in enumerate(info.heaps):
        yield f"  heap {number}", _heap_text(heap)
    if gtt is not None:
        pages = (
            "" if gtt.pages_limit is None else f", {gtt.ttm}.pages_limit={gtt.pages_limit} ({bytes_text(PAGE)} each)"
        )
        size = "" if gtt.gttsize is None else f", amdgpu.gttsize={gtt.gttsize} MiB"
        limit = f"at most {bytes_text(gtt.total)} of the host's, {bytes_text(gtt.carved_out)} carved out"
        yield "  GTT", f"{limit}{pages}{size}; a model that needs more: boot Linux with {parameters(gtt)}"
    limits = [f"bindings of {bytes_text(info.max_storage_buffer_range)}"]
    limits += [f"allocations of {bytes_text(info.max_allocation)}"]
    limits += [] if info.max_buffer_size is None else [f"buffers of {bytes_text(info.max_buffer_size)}"]
    yield "at most", ", ".join(limits) + f"; bindings begin at multiples of {info.storage_buffer_alignment} B"
    sizes, counts = (" x ".join(f"{n:,}" for n in ns) for ns in (info.max_workgroup_size, info.max_workgroup_count))
    shared = f"{bytes_text(info.shared_memory)} shared"
    yield "workgroups", f"{info.max_workgroup_invocations:,} invocations ({sizes}), {counts} groups, {shared}"
    least, most = info.subgroup_sizes
    yield "subgroups", f"{info.subgroup_size}" + ("" if least == most else f", {least} to {most} on request")
    clock = f"{info.timestamp_bits} bits, {significant(info.timestamp_period_ns)} ns each"
    yield "timestamps", clock if info.timestamp_bits and info.timestamp_period_ns else "none"
    yield "features", ", ".join(info.features) or "none"
    if opened is not None:
        on = [name for name in FEATURES if name in opened.features]
        yield "  on", "all of these" if set(on) == set(info.features) else ", ".join(on) or "none"
    if missing := [name for name in FEATURES if name not in info.features]:
        yield "  missing", ", ".join(missing)
    if tuned := load_tuning(info).entries:
        yield "tuning", f"from {tuning_file()}, by `latentvk shaders bench`, for: {', '.join(sorted(tuned))}"
    if opened is not None:
        yield "measured", _samples_text("memory reads", opened.peaks.samples["bandwidth"], "GB/s")
        yield "", _samples_text("f32 arithmetic", opened.peaks.samples["arithmetic"], "GFLOP/s")


def _heap_text(heap: "Heap") -> str:
    """Its size and whose it is, and what the driver says of the budget and of what this process uses."""
    whose = "device-local" if heap.device_local else "the host's"
    mapped = ", mapped" if heap.host_visible else ""
    room = "budget unknown"
    if heap.budget is not None and heap.usage is not None:
        room = f"budget {bytes_text(heap.budget)}, {bytes_text(heap.usage)} in use"
    return f"{bytes_text(heap.size)} {whose}{mapped}; {room}"


def _samples_text(what: str, samples: list[float], unit: str) -> str:
    """The samples' median in 10^9 ``unit``s, and in brackets their range and number."""
    import statistics

    median, least, most = (significant(v / 1e9) for v in (statistics.median(samples), min(samples), max(samples)))
    return f"{what} {median} {unit} ({least} to {most}, {len(samples)} runs)"
