"""`latentvk shaders stats`: what RADV's compiler makes of the kernels for an AMD chip, which need not be there."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import options
from vkbackend.errors import InputError

if TYPE_CHECKING:
    from harness.chips import Chip
    from harness.shader_row import Row
    from vkbackend.offline import OfflineCompiler

HELP = "registers, spills, instructions and predicted bounds on AMD chips, without the chip"
EXAMPLE = "latentvk shaders stats matvec --chip phoenix"


class _Module(argparse.Action):
    """--spirv FILE: one more module, without constants yet."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), (values, "")))


class _Spec(argparse.Action):
    """--spec CONSTANTS: of the module named last."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        modules = getattr(namespace, self.dest)
        if not modules or modules[-1][1]:
            raise InputError(f"--spec {values!r} follows no --spirv without one; give it after its module")
        setattr(namespace, self.dest, (*modules[:-1], (modules[-1][0], values)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("kernels", metavar="KERNEL", nargs="*", help="kernels or beginnings of variants' names (left out: all)")
    add("--chip", type=options.names, default=["phoenix"], metavar="A,B", help="as RADV names them (default phoenix)")
    add("--subgroup", type=int, choices=(32, 64), default=64, help="required subgroup size (default 64)")
    add("--preset", default="glm-4.7-flash", metavar="NAME", help="the model shape whose variants are compiled")
    add("--mix", default="q4_k_m", metavar="NAME", help="types of its weights; all other types are added")
    add("--disasm", action="store_true", help="print the chip's instructions of every variant")
    add(
        "--spirv",
        action=_Module,
        dest="modules",
        default=(),
        metavar="FILE",
        help="a module of anyone's in place of kernels; repeatable",
    )
    add(
        "--spec",
        action=_Spec,
        dest="modules",
        default=(),
        metavar="0=64,1=2",
        help="specialization constants of the --spirv before it, by id, or in order of the ids: 64,2,1",
    )
    add("--against", type=Path, metavar="FILE", help="print what is worse than in this baseline; exit 1 if anything is")
    add("--exact", action="store_true", help="with --against: print whatever differs, not only what is worse")
    add("--save", type=Path, metavar="FILE", help="write the figures as a baseline")


def run(args: argparse.Namespace) -> int:
    from harness.chips import find_chip
    from harness.shader_row import row_json
    from vkbackend.offline import OfflineCompiler

    if args.modules and args.kernels:
        raise InputError("both KERNEL and --spirv were given, expected one kind; leave one out")
    if (args.save or args.against) and len(args.chip) != 1:
        raise InputError(f"a baseline is of one chip, --chip names {len(args.chip)}; name one")
    code = 0
    result: list[dict[str, Any]] = []
    for name in args.chip:
        chip = find_chip(name)
        with OfflineCompiler(chip.family if chip else name) as compiler:
            rows = _modules(args, compiler, chip) if args.modules else _variants(args, compiler, chip)
            driver = compiler.info.driver_version
            entry: dict[str, Any] = {"chip": compiler.chip, "device": compiler.info.name, "driver": driver}
            result.append(entry | {"rows": [row_json(row) for row in rows]})
            if args.against is None and not options.json_to_stdout(args):
                from harness.shader_tables import print_stats

                print_stats(compiler.info.name, driver, chip, rows)
            if args.against is not None:
                from harness.shader_baseline import judge

                code = max(code, judge(args.against, compiler.chip, driver, rows, args.exact))
            if args.save is not None:
                from harness.shader_baseline import save

                save(args.save, compiler.chip, driver, rows)
    options.emit_json(args, result)
    return code


def _variants(args: argparse.Namespace, compiler: OfflineCompiler, chip: Chip | None) -> list[Row]:
    from harness.shader_row import compile_row
    from harness.shader_variants import find_variants
    from model.presets import get_preset

    info = replace(compiler.info, subgroup_size=args.subgroup)
    rows = []
    for variant in find_variants(get_preset(args.preset), args.mix, info, args.kernels, alternatives=True):
        row, assembly = compile_row(variant, compiler, chip, args.subgroup)
        rows.append(row)
        if args.disasm and not options.json_to_stdout(args):
            print(f"{variant.name}\n{assembly}")
    return rows


def _modules(args: argparse.Namespace, compiler: OfflineCompiler, chip: Chip | None) -> list[Row]:
    from harness.shader_row import make_row

    rows = []
    for text, constants in args.modules:
        path = Path(text)
        try:
            module = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}), expected a SPIR-V file; check the path"
            ) from None
        spec = _parse_spec(constants) if constants else {}
        compiled = compiler.compile(module, spec, subgroup=args.subgroup, disassemble=args.disasm, name=str(path))
        rows.append(make_row(f"{path.name} {constants}".strip(), compiled, chip, None))
        if args.disasm and not options.json_to_stdout(args):
            print(f"{path}\n{compiled.assembly}")
    return rows


def _parse_spec(text: str) -> dict[int, int]:
    """'64,2' -> {0: 64, 1: 2}; '3=128' -> {3: 128}."""
    values: dict[int, int] = {}
    try:
        for position, part in enumerate(text.split(",")):
            number, _, value = part.rpartition("=")
            values[int(number) if number else position] = int(value, 0) & 0xFFFFFFFF
    except ValueError:
        raise InputError(f"--spec {text!r}: expected whole numbers such as 64,2,1 or 0=64,3=128; correct it") from None
    return values
