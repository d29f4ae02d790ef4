"""Float32 weights read from a GGUF when asked for, so that a file far larger than memory's share can be computed."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.gguf_file import GGUFFile, TensorInfo, dequantize

Index = int | slice | NDArray[np.integer]


class Tensor(Protocol):
    """What is asked of a weight: its shape, parts along the outermost axis, and ``np.asarray`` for the whole."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, index: Any, /) -> Any: ...
    def __array__(self) -> np.ndarray: ...


class _RecentlyUsed:
    """Dequantised arrays, the least recently used dropped once their bytes pass ``budget``."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.held = 0
        self._arrays: OrderedDict[tuple[str, object], np.ndarray] = OrderedDict()

    def get(self, key: tuple[str, object]) -> np.ndarray | None:
        array = self._arrays.get(key)
        if array is not None:
            self._arrays.move_to_end(key)
        return array

    def put(self, key: tuple[str, object], array: np.ndarray) -> None:
        if array.nbytes > self.budget:
            return
        self._arrays[key] = array
        self.held += array.nbytes
        while self.held > self.budget:
            self.held -= self._arrays.popitem(last=False)[1].nbytes


class QuantisedTensor:
    """One tensor of the file; indexing its outermost axis dequantises that part alone (one expert, some vocabulary
    rows).
    """

    def __init__(self, info: TensorInfo, recent: _RecentlyUsed) -> None:
        self._info = info
        self._recent = recent

    @property
    def shape(self) -> tuple[int, ...]:
        return self._info.shape

    def _rows(self, start: int, stop: int) -> np.ndarray:
        key = (self._info.name, (start, stop))
        found = self._recent.get(key)
        if found is None:
            row_bytes = self._info.nbytes // self.shape[0]
            data = self._info.data[start * row_bytes : stop * row_bytes]
            part = replace(self._info, shape=(stop - start, *self.shape[1:]), nbytes=data.nbytes, data=data)
            found = dequantize(part)
            self._recent.put(key, found)
        return found

    def __getitem__(self, index: Index) -> np.ndarray:
        if isinstance(index, slice):
            start, stop, step = index.indices(self.shape[0])
            return self._rows(start, max(start, stop))[::step]
        if isinstance(index, np.ndarray):
            return np.concatenate([self._rows(int(i), int(i) + 1) for i in index])
        return self._rows(index, index + 1)[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self._rows(0, self.shape[0])
        return whole if dtype is None else whole.astype(dtype, copy=False)


class DequantisedWeights(Mapping[str, QuantisedTensor]):
    """The tensors of a GGUF by name; at most ``budget`` bytes of dequantised arrays are kept for reuse (1 GiB)."""

    def __init__(self, gguf_file: GGUFFile, budget: int = 1 << 30) -> None:
        recent = _RecentlyUsed(budget)
        self._tensors = {name: QuantisedTensor(info, recent) for name, info in gguf_file.tensors.items()}

    def __getitem__(self, name: str) -> QuantisedTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
