"""Codebooks of the IQ formats, as the device reads them: taken from gguf-py's tables, the one source of them."""

from __future__ import annotations

from functools import cache

import numpy as np
from gguf import GGMLQuantizationType
from gguf import quants as _quants
from numpy.typing import NDArray

Q = GGMLQuantizationType

_CLASSES = {
    Q.IQ1_S: _quants.IQ1_S,
    Q.IQ1_M: _quants.IQ1_M,
    Q.IQ2_XXS: _quants.IQ2_XXS,
    Q.IQ2_XS: _quants.IQ2_XS,
    Q.IQ2_S: _quants.IQ2_S,
    Q.IQ3_XXS: _quants.IQ3_XXS,
    Q.IQ3_S: _quants.IQ3_S,
}


def grid(kind: GGMLQuantizationType) -> NDArray[np.float32]:
    """The codebook of ``kind``: [entries, 8 or 4 consecutive weights]. KeyError for a type without one."""
    table = _CLASSES[kind]
    table.init_grid()
    assert table.grid is not None
    return table.grid[0, 0]


@cache
def codebook(kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """What stands before the blocks of ``kind`` on the device, whole words; empty for a type without a codebook.

    A byte a weight; the ternary entries of IQ1_S and IQ1_M take two signed bits a weight.
    """
    if kind not in _CLASSES:
        return np.empty(0, np.uint8)
    entries = grid(kind).astype(np.int8)
    if kind in (Q.IQ1_S, Q.IQ1_M):
        pairs = entries.view(np.uint8) & 3
        return np.bitwise_or.reduce(pairs.reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8), axis=1)
    return entries.view(np.uint8).reshape(-1)
