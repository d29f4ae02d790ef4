"""`latentvk devices`: every Vulkan device, with what decides how well it runs these models."""

import argparse

from harness import options

HELP = "list the Vulkan devices, and which one the other commands choose"
EXAMPLE = "latentvk devices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--device and --json, which every command has, are all: --device shows what a selector chooses."""


def run(args: argparse.Namespace) -> int:
    import os

    from harness.units import bytes_text
    from vkbackend.physical import list_devices, select_device

    devices = list_devices()
    chosen = select_device(devices, args.device or os.environ.get("LATENTVK_DEVICE"))
    options.emit_json(args, [info.as_dict() | {"chosen": info is chosen} for info in devices])
    if options.json_to_stdout(args):
        return 0
    for info in devices:
        shared = "shared with the host" if info.unified else "of its own"
        print(f"{'*' if info is chosen else ' '} {info.index}  {info.name}")
        print(f"     {info.kind}, {info.driver} {info.driver_version}, Vulkan {info.api_version}")
        print(
            f"     {bytes_text(info.memory)} {shared}, bindings of at most {bytes_text(info.max_storage_buffer_range)}"
        )
        print(f"     subgroups of {info.subgroup_size}, {bytes_text(info.shared_memory)} of shared memory a workgroup")
    print("* is used unless --device names another")
    return 0
