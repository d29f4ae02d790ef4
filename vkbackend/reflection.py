"""What a SPIR-V compute module declares: bindings, push constants, specialization constants, workgroup size.

Reads the instructions of the SPIR-V specification (1.0 to 1.6, section 3) that declare an interface and skips the
others, so that a module of anyone's can be given a pipeline layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from vkbackend.errors import InputError

MAGIC = 0x07230203
_HEADER_WORDS = 5
# Opcodes and decorations by their numbers in the specification.
_ENTRY_POINT, _EXECUTION_MODE, _EXECUTION_MODE_ID = 15, 16, 331
_NAME, _MEMBER_NAME, _DECORATE, _MEMBER_DECORATE = 5, 6, 71, 72
_CAPABILITY, _CONSTANT, _VARIABLE, _COMPOSITE = 17, 43, 59, (44, 51)
_SPEC_CONSTANTS = (48, 49, 50)  # true, false, of a number
_TYPE_SCALARS, _TYPE_VECTOR, _TYPE_MATRIX, _TYPE_ARRAY, _TYPE_RUNTIME_ARRAY = (20, 21, 22), 23, 24, 28, 29
_TYPE_STRUCT, _TYPE_POINTER = 30, 32
_SPEC_ID, _BUFFER_BLOCK, _ARRAY_STRIDE, _MATRIX_STRIDE, _BUILT_IN = 1, 3, 6, 7, 11
_NON_WRITABLE, _NON_READABLE, _BINDING, _SET, _OFFSET = 24, 25, 33, 34, 35
_WORKGROUP_SIZE = 25  # BuiltIn
_LOCAL_SIZE, _LOCAL_SIZE_ID = 17, 38
_UNIFORM, _PUSH_CONSTANT, _STORAGE_BUFFER = 2, 9, 12
_GL_COMPUTE = 5
_TYPE_IMAGE, _TYPE_SAMPLED_IMAGE, _DIM_BUFFER, _SAMPLED = 25, 27, 5, 1

DESCRIPTORS = ("storage buffer", "uniform buffer", "texel buffer", "other")


@dataclass(frozen=True)
class Binding:
    """One descriptor: its set and number, its name in the source ("" where stripped), what it is and how it is used."""

    set: int
    number: int
    name: str
    descriptor: str  # one of DESCRIPTORS
    access: str  # "r", "w" or "rw" by the qualifiers


@dataclass(frozen=True)
class Reflection:
    """A module's interface.

    Attributes:
        entry: the compute entry point's name.
        bindings: by set and number.
        push: names of the push-constant block's members, in order of their offsets.
        push_bytes: the block's size.
        spec: name ("" where stripped) of each specialization constant by id.
        local_size: workgroup size for x, y, z; where ``local_size_ids`` has an id, the default.
        local_size_ids: specialization id that sets each of them, or None.
        capabilities: numbers of the capabilities that it requires.
    """

    entry: str
    bindings: tuple[Binding, ...]
    push: tuple[str, ...]
    push_bytes: int
    spec: dict[int, str]
    local_size: tuple[int, int, int]
    local_size_ids: tuple[int | None, int | None, int | None]
    capabilities: tuple[int, ...]


@dataclass
class _Module:
    """The declarations, by result id."""

    entry: str = ""
    capabilities: list[int] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    member_names: dict[tuple[int, int], str] = field(default_factory=dict)
    decorations: dict[int, dict[int, int]] = field(default_factory=dict)
    member_decorations: dict[tuple[int, int], dict[int, int]] = field(default_factory=dict)
    types: dict[int, tuple[int, list[int]]] = field(default_factory=dict)  # opcode, operands
    constants: dict[int, int] = field(default_factory=dict)
    composites: dict[int, list[int]] = field(default_factory=dict)
    variables: list[tuple[int, int, int]] = field(default_factory=list)  # pointer type, id, storage class
    local_size: list[int] = field(default_factory=lambda: [1, 1, 1])
    local_size_constants: list[int] = field(default_factory=list)  # ids


def reflect(module: bytes, name: str = "module") -> Reflection:
    """Read ``module`` (SPIR-V, little-endian words); ``name`` stands in errors.

    Raises:
        InputError: it is no SPIR-V, is cut off, or has no compute entry point.
    """
    found = _Module()
    for opcode, operands in _instructions(module, name):
        _take(found, opcode, operands)
    if not found.entry:
        raise InputError(f"{name}: no compute entry point, expected one; compile a .comp file")
    for index, constant in enumerate(found.local_size_constants[:3]):
        found.local_size[index] = found.constants.get(constant, 1)
    ids = [found.decorations.get(c, {}).get(_SPEC_ID) for c in found.local_size_constants[:3]]
    ids += [None] * (3 - len(ids))
    push, push_bytes = _push_block(found)
    return Reflection(
        entry=found.entry,
        bindings=tuple(sorted(_bindings(found), key=lambda b: (b.set, b.number))),
        push=push,
        push_bytes=push_bytes,
        spec={d[_SPEC_ID]: found.names.get(i, "") for i, d in found.decorations.items() if _SPEC_ID in d},
        local_size=(found.local_size[0], found.local_size[1], found.local_size[2]),
        local_size_ids=(ids[0], ids[1], ids[2]),
        capabilities=tuple(found.capabilities),
    )


def _instructions(module: bytes, name: str) -> Iterator[tuple[int, list[int]]]:
    if len(module) < 4 * _HEADER_WORDS or len(module) % 4 or int.from_bytes(module[:4], "little") != MAGIC:
        raise InputError(
            f"{name}: starts with {module[:4]!r}, expected SPIR-V in little-endian words; compile it again"
        )
    words = np.frombuffer(module, "<u4").tolist()
    at = _HEADER_WORDS
    while at < len(words):
        length = words[at] >> 16
        if length == 0 or at + length > len(words):
            raise InputError(f"{name}: cut off in the instruction at word {at}, expected {length} words; copy it again")
        yield words[at] & 0xFFFF, words[at + 1 : at + length]
        at += length


def _text(words: list[int]) -> str:
    return np.array(words, "<u4").tobytes().split(b"\0")[0].decode(errors="replace")


def _take(found: _Module, opcode: int, operands: list[int]) -> None:
    if opcode == _CAPABILITY:
        found.capabilities.append(operands[0])
    elif opcode == _ENTRY_POINT and operands[0] == _GL_COMPUTE:
        found.entry = _text(operands[2:])
    elif opcode == _EXECUTION_MODE and operands[1] == _LOCAL_SIZE:
        found.local_size = operands[2:5]
    elif opcode == _EXECUTION_MODE_ID and operands[1] == _LOCAL_SIZE_ID:
        found.local_size_constants = operands[2:5]
    elif opcode == _NAME:
        found.names[operands[0]] = _text(operands[1:])
    elif opcode == _MEMBER_NAME:
        found.member_names[operands[0], operands[1]] = _text(operands[2:])
    elif opcode == _DECORATE:
        value = operands[2] if len(operands) > 2 else 0
        found.decorations.setdefault(operands[0], {})[operands[1]] = value
        if operands[1] == _BUILT_IN and value == _WORKGROUP_SIZE:
            found.local_size_constants = found.composites.get(operands[0], [operands[0]])
    elif opcode == _MEMBER_DECORATE:
        value = operands[3] if len(operands) > 3 else 0
        found.member_decorations.setdefault((operands[0], operands[1]), {})[operands[2]] = value
    elif opcode in _COMPOSITE:
        found.composites[operands[1]] = operands[2:]
        if found.local_size_constants == [operands[1]]:  # decorated before it is declared
            found.local_size_constants = operands[2:]
    elif opcode == _CONSTANT or opcode in _SPEC_CONSTANTS:
        found.constants[operands[1]] = operands[2] if len(operands) > 2 else int(opcode == _SPEC_CONSTANTS[0])
    elif opcode == _VARIABLE:
        found.variables.append((operands[0], operands[1], operands[2]))
    elif 19 <= opcode <= 39:  # every type
        found.types[operands[0]] = opcode, operands[1:]


def _pointee(found: _Module, pointer: int) -> int:
    """The type behind a pointer and arrays of descriptors."""
    kind = found.types[pointer][1][1]
    while found.types[kind][0] in (_TYPE_ARRAY, _TYPE_RUNTIME_ARRAY):
        kind = found.types[kind][1][0]
    return kind


def _bindings(found: _Module) -> Iterator[Binding]:
    for pointer, variable, storage in found.variables:
        decorations = found.decorations.get(variable, {})
        if _BINDING not in decorations:
            continue
        kind = _pointee(found, pointer)
        of_type = found.decorations.get(kind, {})
        descriptor = "other"
        if storage == _STORAGE_BUFFER or (storage == _UNIFORM and _BUFFER_BLOCK in of_type):
            descriptor = "storage buffer"
        elif storage == _UNIFORM:
            descriptor = "uniform buffer"
        elif _is_texel_buffer(found, kind):
            descriptor = "texel buffer"
        yield Binding(
            decorations.get(_SET, 0),
            decorations[_BINDING],
            found.names.get(kind, "") or found.names.get(variable, ""),
            descriptor,
            "r" if descriptor == "texel buffer" else _access(found, kind, decorations),
        )


def _is_texel_buffer(found: _Module, kind: int) -> bool:
    """Whether the type is a buffer of texels that is only sampled (a uniform texel buffer)."""
    opcode, operands = found.types[kind]
    if opcode == _TYPE_SAMPLED_IMAGE:
        return _is_texel_buffer(found, operands[0])
    return opcode == _TYPE_IMAGE and operands[1] == _DIM_BUFFER and operands[5] == _SAMPLED


def _access(found: _Module, kind: int, decorations: dict[int, int]) -> str:
    opcode, members = found.types[kind]
    count = len(members) if opcode == _TYPE_STRUCT else 0

    def all_have(decoration: int) -> bool:
        of_members = (decoration in found.member_decorations.get((kind, i), {}) for i in range(count))
        return decoration in decorations or (count > 0 and all(of_members))

    return "r" if all_have(_NON_WRITABLE) else "w" if all_have(_NON_READABLE) else "rw"


def _push_block(found: _Module) -> tuple[tuple[str, ...], int]:
    for pointer, _, storage in found.variables:
        if storage != _PUSH_CONSTANT:
            continue
        kind = _pointee(found, pointer)
        members = found.types[kind][1]
        offsets = [found.member_decorations[kind, i][_OFFSET] for i in range(len(members))]
        order = sorted(range(len(members)), key=lambda i: offsets[i])
        size = max(offsets[i] + _size(found, members[i], (kind, i)) for i in order)
        return tuple(found.member_names.get((kind, i), "") for i in order), size
    return (), 0


def _size(found: _Module, kind: int, member: tuple[int, int]) -> int:
    """Bytes of a type as laid out in a block."""
    opcode, operands = found.types[kind]
    if opcode in _TYPE_SCALARS:
        return operands[0] // 8 if operands else 4
    if opcode == _TYPE_VECTOR:
        return _size(found, operands[0], member) * operands[1]
    if opcode == _TYPE_MATRIX:
        stride = found.member_decorations[member].get(_MATRIX_STRIDE, 16)
        return stride * operands[1]
    if opcode == _TYPE_ARRAY:
        return found.decorations[kind][_ARRAY_STRIDE] * found.constants[operands[1]]
    if opcode == _TYPE_STRUCT:
        last = max(range(len(operands)), key=lambda i: found.member_decorations[kind, i][_OFFSET])
        return found.member_decorations[kind, last][_OFFSET] + _size(found, operands[last], (kind, last))
    return 8  # a pointer
