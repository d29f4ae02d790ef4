"""A GGUF as the rest of the program sees it: keys and tensors, from one file or from the parts of a split one."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from gguf.quants import dequantize as _dequantize_bytes

from model.gguf_parse import DEFAULT_ALIGNMENT, Metadata, TensorInfo, parse
from model.gguf_shards import other_parts
from vkbackend.errors import InputError, shown

__all__ = ["DEFAULT_ALIGNMENT", "GGUFFile", "Metadata", "TensorInfo", "dequantize", "drop_pages"]


@dataclass(frozen=True, eq=False)
class GGUFFile:
    """An opened GGUF. Its maps live as long as this object or any array taken from it.

    ``path`` is the file that was opened, the first where there are several; ``others`` are the remaining parts, whose
    tensors stand beside the first's in ``tensors``. The keys are the first part's.
    """

    path: Path
    kv: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    others: tuple[Path, ...] = ()

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Map ``path``, and the other parts where it is the first of several; tensor bytes stay on disk until touched.

        Raises InputError when a file is absent, not a GGUF, of another version or byte order, truncated, or
        inconsistent, or when the parts do not make up one model; the message names the file and the key or tensor.
        """
        path = Path(path)
        kv, tensors = parse(path)
        others = other_parts(path, kv, tensors)
        return cls(path, kv, MappingProxyType(tensors), others)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that this model lies in, the opened one first."""
        return (self.path, *self.others)


def dequantize(info: TensorInfo) -> np.ndarray:
    """The tensor's values as float32 of ``info.shape`` (by ``gguf.quants``). InputError for types it cannot decode."""
    row_bytes = info.nbytes // max(1, prod(info.shape[:-1]))
    try:
        values = _dequantize_bytes(info.data.reshape(-1, row_bytes), info.type)
    except NotImplementedError:
        raise InputError(
            f"tensor {shown(info.name)}: type {info.type.name} cannot be dequantised; expected a floating-point or "
            "quantised weight type; requantise the file"
        ) from None
    return values.reshape(info.shape)


def drop_pages(data: np.ndarray) -> None:
    """Let go of the resident pages of a memory map that lie wholly under ``data``; they are read again if touched."""
    base: Any = data
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if not isinstance(base, mmap.mmap):
        return  # an array in memory, as tests make them
    start = data.__array_interface__["data"][0] - np.frombuffer(base, np.uint8).__array_interface__["data"][0]
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        base.madvise(mmap.MADV_DONTNEED, first, last - first)
