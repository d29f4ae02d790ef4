"""`latentvk shaders check`: every kernel variant compiled, validated, held against its declaration and its oracle."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from harness import options
from vkbackend.errors import DeviceError

if TYPE_CHECKING:
    from queue import SimpleQueue

    from harness.oracles.client import OracleRunner
    from harness.shader_variants import Variant
    from vkbackend.kernel import Kernel
    from vkbackend.physical import DeviceInfo

HELP = "compile, validate, and run every kernel against its oracle"
EXAMPLE = "latentvk shaders check matvec --validate"
_LANES_WITHOUT_DEVICE = 64
# A CPU's driver compiles on one core, so that a second process halves the time; it is worth its start for this many.
_PROCESSES_CPU, _VARIANTS_WORTH_TWO = 2, 9


@dataclass(frozen=True)
class Module:
    """What is known of a kernel without a device: what stopped it, a line or an excerpt each."""

    compiled: tuple[str, ...] = ()  # the compiler's errors and warnings
    valid: tuple[str, ...] = ()  # spirv-val's
    declared: tuple[str, ...] = ()  # differences between the declaration and the module

    @property
    def wrong(self) -> tuple[str, ...]:
        return (*self.compiled, *self.valid, *self.declared)


@dataclass(frozen=True)
class Row:
    """One variant. ``cases`` is None where its oracle did not run; ``share``: largest error over its tolerance."""

    name: str
    module: Module
    cases: int | None
    share: float
    failures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not (self.module.wrong or self.failures)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("kernels", metavar="KERNEL", nargs="*", help="kernels or beginnings of variants' names (left out: all)")
    add("--validate", action="store_true", help="under the Khronos validation layer, whose messages are failures")
    add("--seed", type=options.non_negative_int, default=0, metavar="N", help="of the random inputs (default 0)")
    add("--preset", default="glm-4.7-flash", metavar="NAME", help="the model shape whose variants are checked")
    add("--mix", default="q4_k_m", metavar="NAME", help="types of its weights; all other types are added")


def run(args: argparse.Namespace) -> int:
    from vkbackend.shader import compiler
    from vkbackend.spirv_val import require_validator

    compiler()
    require_validator()
    say: Callable[[str], None] = (lambda line: None) if options.json_to_stdout(args) else print
    try:
        runner = _open_runner(args)
    except DeviceError as reason:
        if args.device or args.validate:
            raise  # of what was asked for by name
        rows = _check(args, _info_without_device(), None, say)
        missing = f"the oracles did not run: {reason}"
    else:
        with runner:
            rows = _check(args, runner.info, runner, say)
        missing = ""
    bad = [row for row in rows if not row.ok]
    say(_summary(rows, bad))
    options.emit_json(args, {"seed": args.seed, "rows": [asdict(row) | {"ok": row.ok} for row in rows]})
    if bad:
        return 1
    if missing:
        raise DeviceError(missing)
    return 0


def _open_runner(args: argparse.Namespace) -> OracleRunner:
    from harness.oracles.client import OracleRunner

    return OracleRunner(args.device, validate=args.validate)


def _info_without_device() -> DeviceInfo:
    """A device of what Vulkan guarantees, to plan for: its variants are those of wide subgroups."""
    from vkbackend.physical import DeviceInfo

    return DeviceInfo(
        index=0,
        name="no device",
        kind="discrete",
        driver="none",
        driver_version="0",
        api_version="1.1.0",
        vendor_id=0,
        device_id=0,
        chip=None,
        pci_address=None,
        heaps=(),
        memory_types=(),
        host_heap=None,
        subgroup_size=_LANES_WITHOUT_DEVICE,
        subgroup_sizes=(_LANES_WITHOUT_DEVICE, _LANES_WITHOUT_DEVICE),
        subgroup_operations=0,
        features=(),
        max_storage_buffer_range=2**27,
        max_texels=2**16,
        storage_buffer_alignment=256,
        max_allocation=2**30,
        max_buffer_size=None,
        shared_memory=16384,
        max_workgroup_count=(65535, 65535, 65535),
        max_workgroup_size=(128, 128, 64),
        max_workgroup_invocations=128,
        timestamp_bits=0,
        timestamp_period_ns=0.0,
    )


def _check(
    args: argparse.Namespace, info: DeviceInfo, runner: OracleRunner | None, say: Callable[[str], None]
) -> list[Row]:
    """Every row, said in order as soon as it is known. Modules are made by threads ahead of the device."""
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import ExitStack
    from queue import SimpleQueue

    from harness.shader_variants import Shape, find_variants
    from model.presets import get_preset
    from vkbackend.tuning import load_tuning

    shape = Shape(tuning=load_tuning(info))
    variants = find_variants(get_preset(args.preset), args.mix, info, args.kernels, everything=True, shape=shape)
    rows = []
    with ExitStack() as stack:
        runners = [runner] if runner else []
        if runner and info.kind == "cpu" and len(variants) >= _VARIANTS_WORTH_TWO:
            runners += [stack.enter_context(_open_runner(args)) for _ in range(_PROCESSES_CPU - 1)]
        idle: SimpleQueue[OracleRunner] = SimpleQueue()
        for each in runners:
            idle.put(each)
        pool = stack.enter_context(ThreadPoolExecutor())
        judges = stack.enter_context(ThreadPoolExecutor(max(1, len(runners))))
        modules = {key: pool.submit(check_module, kernel) for key, kernel in _kernels(variants).items()}

        def row(variant: Variant) -> Row:
            module = modules[_key(variant.launch.kernel)].result()
            return _row(variant, module, idle if runners else None, args.seed)

        made = [judges.submit(row, variant) for variant in variants]
        try:
            for future in made:
                rows.append(future.result())
                say(_line(rows[-1]))
        except BaseException:
            judges.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return rows


def _key(kernel: Kernel) -> tuple[str, ...]:
    return kernel.file, *sorted(kernel.macros)


def _kernels(variants: list[Variant]) -> dict[tuple[str, ...], Kernel]:
    """The modules that are made, of which several variants may be."""
    return {_key(v.launch.kernel): v.launch.kernel for v in variants}


def check_module(kernel: Kernel) -> Module:
    """Compile ``kernel`` with warnings as errors, validate it, compare what it declares.

    Raises:
        InputError: its source cannot be read.
        DeviceError: the compiler or spirv-val is missing.
    """
    from harness.shader_declaration import differences
    from vkbackend.reflection import reflect
    from vkbackend.shader import ShaderError, compile_strictly
    from vkbackend.spirv_val import validate

    try:
        module = compile_strictly(kernel.file, kernel.macros)
    except ShaderError as error:
        told = tuple(f"{d.place}: {d.severity}: {d.text.strip()}\n{d.excerpt()}" for d in error.diagnostics)
        return Module(compiled=told or (str(error),))
    said = validate(module)
    return Module(valid=(said,) if said else (), declared=tuple(differences(kernel, reflect(module, kernel.file))))


def _row(variant: Variant, module: Module, idle: SimpleQueue[OracleRunner] | None, seed: int) -> Row:
    row = Row(variant.name, module, None, 0.0, ())
    if idle is None or module.wrong:  # what is not as declared might read or write anywhere
        return row
    from harness.oracles.client import Job

    runner = idle.get()
    try:
        verdict = runner.judge(Job(variant.launch.kernel, variant.launch.spec, seed))
    finally:
        idle.put(runner)
    return replace(row, cases=verdict.cases, share=verdict.share, failures=verdict.failures)


def _line(row: Row) -> str:
    states = [
        "does not compile" if row.module.compiled else "compiled",
        "" if row.module.compiled else "invalid" if row.module.valid else "valid",
        "" if row.module.compiled else "not as declared" if row.module.declared else "as declared",
        "oracle not run" if row.cases is None else f"{row.cases} cases",
    ]
    if row.cases is not None and not row.failures:
        states.append(f"error {100 * row.share:.2g}% of tolerance" if row.share else "exact")
    if row.failures:
        states.append(f"{len(row.failures)} failures")
    line = f"{'ok  ' if row.ok else 'FAIL'}  {row.name}: {', '.join(filter(None, states))}"
    details = "\n".join((*row.module.wrong, *row.failures))
    return line + "".join(f"\n      {text}" for text in details.splitlines())


def _summary(rows: list[Row], bad: list[Row]) -> str:
    cases = sum(row.cases or 0 for row in rows)
    found = f"{len(bad)} of {len(rows)} variants fail" if bad else f"all {len(rows)} variants are ok"
    return f"{found}, {cases} cases run"
