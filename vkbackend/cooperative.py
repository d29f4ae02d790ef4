"""The one thing that glslang 12 cannot say of a cooperative matrix: what its elements are.

GL_EXT_spirv_intrinsics names OpTypeCooperativeMatrixKHR and passes it constants, and newer compilers types as well. So
that any of them compiles ``shaders/include/fragments.glsl``, it passes the width of an element in bits, and here the
floating-point type of that width takes the constant's place.
"""

from __future__ import annotations

import numpy as np

# Opcodes of the SPIR-V specification, and of SPV_KHR_cooperative_matrix.
_TYPE_VOID, _TYPE_FLOAT, _CONSTANT, _TYPE_COOPERATIVE_MATRIX = 19, 22, 43, 4456
_HEADER, _BOUND = 5, 3  # words of a module's header; which of them is above every id


def with_element_types(module: bytes) -> bytes:
    """The module with element types in its cooperative matrices; the same bytes where it has none.

    The types that are named so are declared before all others, since they depend on none.
    """
    words = np.frombuffer(module, "<u4").tolist()
    header, instructions, at = words[:_HEADER], [], _HEADER
    while at < len(words):
        instructions.append(words[at : at + (words[at] >> 16)])
        at += words[at] >> 16
    matrices = [i for i in instructions if _opcode(i) == _TYPE_COOPERATIVE_MATRIX]
    if not matrices:
        return module
    value = {i[2]: i[3] for i in instructions if _opcode(i) == _CONSTANT}
    floats = {i[2]: i for i in instructions if _opcode(i) == _TYPE_FLOAT}
    for matrix in matrices:
        width = value.get(matrix[2])
        if width is None:  # a type already
            continue
        if width not in floats:
            floats[width] = [3 << 16 | _TYPE_FLOAT, header[_BOUND], width]
            header[_BOUND] += 1
        matrix[2] = floats[width][1]
    others = [i for i in instructions if _opcode(i) != _TYPE_FLOAT]
    first = next(n for n, i in enumerate(others) if _opcode(i) == _TYPE_VOID)
    ordered = [header, *others[:first], *floats.values(), *others[first:]]
    return np.array([word for part in ordered for word in part], "<u4").tobytes()


def _opcode(instruction: list[int]) -> int:
    return instruction[0] & 0xFFFF
