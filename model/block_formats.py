"""What the device must know of GGUF's block formats: where the scale stands, and the codebooks of the IQ formats."""

from __future__ import annotations

from functools import cache

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf import quants as _quants
from numpy.typing import NDArray

Q = GGMLQuantizationType

# Types whose weights are signed integers of at most 8 bits by scales, with minima or without: what integer dot products
# take (PACKED_QUANTS of shaders/include/unit.glsl).
SMALL_INTEGERS = (Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K)

PLAIN = {Q.F32: 4, Q.F16: 2, Q.BF16: 2}  # bytes an element

# The bytes of a block's scale, first or last in it, where the rest, its payload, is whole words and the block is not.
SCALE = {
    **dict.fromkeys((Q.Q4_0, Q.Q5_0, Q.Q8_0, Q.IQ4_NL), slice(0, 2)),
    **dict.fromkeys((Q.IQ1_S, Q.IQ2_XXS, Q.IQ2_XS, Q.IQ2_S, Q.IQ3_XXS, Q.IQ3_S), slice(0, 2)),
    Q.MXFP4: slice(0, 1),
    Q.Q3_K: slice(108, 110),
    Q.Q6_K: slice(208, 210),
    Q.TQ1_0: slice(52, 54),
    Q.TQ2_0: slice(64, 66),
}

# Types whose payload is whole pieces of 16 bytes, for which weights.glsl has an interleaved layout.
PIECE = 16
IN_PIECES = (Q.Q4_0, Q.Q8_0, Q.Q4_K, Q.Q5_K, Q.Q6_K)
# Their order there, where it is not the file's: the one in which the format's shader reads them.
PIECE_ORDER = {Q.Q6_K: (12, 0, 8, 1, 9, 2, 3, 4, 10, 5, 11, 6, 7)}

_WITH_CODEBOOK = {
    Q.IQ1_S: _quants.IQ1_S,
    Q.IQ1_M: _quants.IQ1_M,
    Q.IQ2_XXS: _quants.IQ2_XXS,
    Q.IQ2_XS: _quants.IQ2_XS,
    Q.IQ2_S: _quants.IQ2_S,
    Q.IQ3_XXS: _quants.IQ3_XXS,
    Q.IQ3_S: _quants.IQ3_S,
}


def payload_bytes(kind: GGMLQuantizationType) -> slice:
    """Where a block's payload stands, all but its separate scale; empty for a type that has no entry in SCALE."""
    if kind not in SCALE:
        return slice(0, 0)
    scale, size = SCALE[kind], GGML_QUANT_SIZES[kind][1]
    return slice(scale.stop, size) if scale.start == 0 else slice(0, scale.start)


def grid(kind: GGMLQuantizationType) -> NDArray[np.float32]:
    """The codebook of ``kind``, gguf-py's: [entries, 8 or 4 successive weights]. KeyError where there is none."""
    table = _WITH_CODEBOOK[kind]
    table.init_grid()
    assert table.grid is not None
    return table.grid[0, 0]


@cache
def codebook(kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """What stands before the blocks of ``kind`` on the device, whole words; empty for a type without a codebook.

    A byte a weight; the ternary entries of IQ1_S and IQ1_M take two signed bits a weight.
    """
    if kind not in _WITH_CODEBOOK:
        return np.empty(0, np.uint8)
    entries = grid(kind).astype(np.int8).view(np.uint8)
    if kind in (Q.IQ1_S, Q.IQ1_M):
        return np.bitwise_or.reduce((entries & 3).reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8), axis=1)
    return entries.reshape(-1)
