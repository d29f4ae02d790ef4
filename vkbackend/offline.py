"""Kernels compiled for an AMD chip that is not there: registers, spills, instruction counts, the instructions.

RADV's null device has the real compiler of every chip that RADV supports and no chip. A child process opens it, since
drivers are chosen by environment variables before the first Vulkan call, and a compiler's crash must end no caller.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vkbackend.child import Child, ChildClient, ChildEndedError
from vkbackend.errors import DeviceError, InputError
from vkbackend.kernel import Kernel
from vkbackend.physical import DeviceInfo
from vkbackend.reflection import reflect

TIMEOUT_S = 300.0  # of one pipeline; the slowest here takes seconds
_ICD = "radeon_icd*.json"
_FOLDERS = ("/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/usr/share/vulkan/icd.d")
_DESCRIPTOR_TYPES = {"storage buffer": 7, "uniform buffer": 6, "texel buffer": 4, "other": 2}  # other: sampled images


@dataclass(frozen=True)
class Request:
    """One pipeline to compile: a module, its layout, its specialization constants by id (u32)."""

    module: bytes
    entry: str
    bindings: tuple[tuple[int, int], ...]  # number, VkDescriptorType
    push_bytes: int
    spec: Mapping[int, int]
    subgroup: int  # required size, with full subgroups; 0: the driver's choice
    disassemble: bool


@dataclass(frozen=True)
class Compiled:
    """What the driver says of a pipeline: its statistics by the driver's names, and with ``disassemble`` its
    intermediate forms ("Assembly", ...). ``seconds`` is the compiler's time."""

    subgroup: int
    statistics: Mapping[str, int | float]
    representations: Mapping[str, str] = field(repr=False)
    seconds: float

    @property
    def assembly(self) -> str:
        """The chip's instructions as text; "" unless asked for."""
        return self.representations.get("Assembly", "")


def radv_icd() -> Path:
    """RADV's driver manifest. DeviceError when it is not installed."""
    shared = [f"{folder}/vulkan/icd.d" for folder in os.environ.get("XDG_DATA_DIRS", "").split(":") if folder]
    for folder in (*_FOLDERS, *shared):
        found = sorted(Path(folder).glob(_ICD))
        if found:
            return found[0]
    raise DeviceError(
        "no RADV driver manifest (radeon_icd*.json) on this machine; expected Mesa's AMD driver, which needs no AMD "
        "GPU to compile: install mesa-vulkan-drivers"
    )


class OfflineCompiler(ChildClient):
    """RADV's compiler for one chip, in a process of its own; a context manager.

    Args:
        chip: RADV's name of the family: phoenix, rembrandt, gfx1151, navi31, ...

    Raises:
        DeviceError: RADV is not installed or does not start.
        InputError: RADV does not know the chip.
    """

    def __init__(self, chip: str) -> None:
        self.chip = chip
        manifest = str(radv_icd())
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("VK_", "LATENTVK_VALIDATE"))}
        environment |= {"VK_DRIVER_FILES": manifest, "VK_ICD_FILENAMES": manifest, "RADV_FORCE_FAMILY": chip}
        environment["MESA_SHADER_CACHE_DISABLE"] = "1"  # what comes from the cache has no statistics
        self._child = Child("vkbackend.offline_worker", environment, TIMEOUT_S)
        try:
            self.info: DeviceInfo = self._child.start()
        except ChildEndedError as error:
            self.close()
            raise InputError(
                f"chip {chip!r}: RADV opens no null device for it (its start: RADV's compiler for {chip} {error}); "
                "expected a name that RADV knows, such as phoenix, rembrandt, gfx1151 or navi31; choose one"
            ) from None

    def compile(
        self,
        module: bytes,
        spec: Mapping[int, int] | None = None,
        *,
        subgroup: int = 0,
        disassemble: bool = False,
        name: str = "module",
    ) -> Compiled:
        """Compile ``module`` (SPIR-V) with specialization constants ``spec`` by id.

        Args:
            subgroup: required subgroup size, 32 or 64; 0 leaves it to the driver.

        Raises:
            InputError: the module is none, or uses descriptor sets other than 0.
            DeviceError: the compiler refused it, crashed, or did not end within TIMEOUT_S.
        """
        found = reflect(module, name)
        if any(binding.set for binding in found.bindings):
            raise InputError(f"{name}: uses descriptor sets besides 0, expected only that one; bind all there")
        bindings = tuple((binding.number, _DESCRIPTOR_TYPES[binding.descriptor]) for binding in found.bindings)
        request = Request(module, found.entry, bindings, found.push_bytes, dict(spec or {}), subgroup, disassemble)
        try:
            answer = self._child.ask(request)
        except ChildEndedError as error:
            raise DeviceError(f"{name}: RADV's compiler for {self.chip} {error}") from None
        if isinstance(answer, str):
            raise DeviceError(
                f"{name}: RADV does not compile it for {self.chip}: {answer}; run spirv-val on the module"
            )
        compiled: Compiled = answer
        return compiled

    def compile_kernel(
        self, kernel: Kernel, spec: Mapping[str, int], *, subgroup: int, disassemble: bool = False
    ) -> Compiled:
        """One of our kernels, its workgroup one subgroup, as a device would get it. Raises as ``compile``."""
        words = kernel.pack_spec(subgroup, spec).tolist()
        return self.compile(
            kernel.spirv(), dict(enumerate(words)), subgroup=subgroup, disassemble=disassemble, name=kernel.file
        )
