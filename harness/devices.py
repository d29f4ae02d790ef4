"""`latentvk devices`: every Vulkan device, with what decides how well it runs these models."""

import argparse

from harness import options

HELP = "list the Vulkan devices, and which one the other commands choose"
EXAMPLE = "latentvk devices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--device and --json, which every command has, are all: --device shows what a selector chooses."""


def run(args: argparse.Namespace) -> int:
    import os

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from harness.units import bytes_text
    from vkbackend.device import list_devices, select_device

    devices = list_devices()
    chosen = select_device(devices, args.device or os.environ.get("LATENTVK_DEVICE"))
    options.emit_json(args, [info.as_dict() | {"chosen": info is chosen} for info in devices])
    if options.json_to_stdout(args):
        return 0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("", "device", "kind", "driver", "Vulkan", "memory", "subgroup", "largest binding"):
        table.add_column(heading, justify="right" if heading in ("memory", "subgroup", "largest binding") else "left")
    for info in devices:
        table.add_row(
            f"{'*' if info is chosen else ' '} {info.index}",
            info.name,
            info.kind,
            f"{info.driver} {info.driver_version}",
            info.api_version,
            bytes_text(info.memory) + (" shared" if info.unified else ""),
            str(info.subgroup_size),
            bytes_text(info.max_storage_buffer_range),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print("* is used unless --device names another", style="dim")
    return 0
