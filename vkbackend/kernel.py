"""A kernel's one declaration: its file, its bindings with their access, its constants.

The shader's own text is the other half: binding numbers, specialization ids and push-constant order follow the
order given here. Specialization constant 0 is always the workgroup's size, one subgroup of the device.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vkbackend.shader import compile_shader

ACCESSES = ("r", "w", "rw")


@dataclass(frozen=True)
class Kernel:
    """One ``.comp`` file and how to call it.

    Attributes:
        file: name below ``shaders/``.
        bindings: (name, access) in binding order; access is "r", "w" or "rw".
        spec: names of the specialization constants 1, 2, ... (u32).
        push: names of the push constants in order (u32, or f32 when the value is a float).
        texels: names of the bindings that the shader reads as a buffer of texels (``usamplerBuffer``, 16 bytes each).
        needs: names of the features, of ``vkbackend.physical.FEATURES``, that a device must have for it.
        macros: preprocessor definitions, what a format or a fused variant is chosen by.
        module: SPIR-V to run in place of what the file compiles to now, such as what it did before.
    """

    file: str
    bindings: tuple[tuple[str, str], ...]
    spec: tuple[str, ...] = ()
    push: tuple[str, ...] = ()
    macros: Mapping[str, str] = field(default_factory=dict)
    texels: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    module: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        wrong = [access for _, access in self.bindings if access not in ACCESSES]
        if wrong:
            raise ValueError(f"kernel {self.file} declares the access {wrong[0]!r}; expected one of {ACCESSES}")

    def variant(self, **macros: str) -> Kernel:
        """The same kernel with more macros defined."""
        return replace(self, macros={**self.macros, **macros})

    @property
    def texel_bindings(self) -> int:
        """The numbers of the bindings in ``texels``, bit i for binding i."""
        return sum(1 << number for number, (name, _) in enumerate(self.bindings) if name in self.texels)

    def spirv(self) -> bytes:
        """The compiled module."""
        return self.module or compile_shader(self.file, self.macros)

    def pack_spec(self, workgroup: int, values: Mapping[str, int]) -> NDArray[np.uint32]:
        """Specialization constants as u32, the workgroup's size first."""
        _check_names(self.file, "specialization constants", self.spec, values)
        return np.array([workgroup, *(values[name] for name in self.spec)], np.uint32)

    def pack_push(self, values: Mapping[str, int | float]) -> NDArray[np.uint32]:
        """Push constants as u32 words; floats keep their bits."""
        _check_names(self.file, "push constants", self.push, values)
        words = [
            struct.unpack("<I", struct.pack("<f", v))[0] if isinstance(v, float | np.floating) else int(v)
            for v in (values[name] for name in self.push)
        ]
        return np.array(words, np.uint32)


def _check_names(file: str, what: str, declared: tuple[str, ...], given: Mapping[str, object]) -> None:
    if set(declared) != set(given):
        raise ValueError(f"kernel {file} was launched with the {what} {sorted(given)}; expected {sorted(declared)}")
