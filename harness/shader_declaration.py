"""A kernel's declaration held against the interface of its compiled module."""

from __future__ import annotations

from collections.abc import Iterator

from vkbackend.kernel import Kernel
from vkbackend.reflection import Reflection

# Capabilities by their numbers in the SPIR-V specification: of Vulkan 1.1 itself, and the subgroup operations that
# vkbackend.physical.require_usable asks of a device.
CAPABILITIES = {
    1: "Shader",
    46: "SampledBuffer",
    61: "GroupNonUniform",
    62: "GroupNonUniformVote",
    63: "GroupNonUniformArithmetic",
    64: "GroupNonUniformBallot",
    65: "GroupNonUniformShuffle",
    68: "GroupNonUniformQuad",
}

# What a kernel may need besides, where it says that it needs the feature.
OF_FEATURES = {
    "shaderIntegerDotProduct": {6018: "DotProductInput4x8BitPacked", 6019: "DotProduct"},
    "shaderFloat16": {9: "Float16"},
    "vulkanMemoryModel": {5345: "VulkanMemoryModel"},
    "cooperativeMatrix": {6022: "CooperativeMatrixKHR"},
}


def differences(kernel: Kernel, found: Reflection) -> list[str]:
    """What the module declares otherwise than ``kernel``, a line each; none where they agree."""
    return [*_bindings(kernel, found), *_constants(kernel, found), *_workgroup(found), *_capabilities(kernel, found)]


def _bindings(kernel: Kernel, found: Reflection) -> Iterator[str]:
    declared = dict(enumerate(kernel.bindings))
    module = {(b.set, b.number): b for b in found.bindings}
    for number, (name, access) in declared.items():
        binding = module.pop((0, number), None)
        if binding is None:
            yield f"binding {number} ({name}) is declared and the module has none"
        elif binding.descriptor != (expected := "texel buffer" if name in kernel.texels else "storage buffer"):
            yield f"binding {number} ({name}) is a {binding.descriptor} in the module, expected a {expected}"
        elif binding.access != access:
            yield f"binding {number} ({name}) is declared {access}, the module's {binding.name} is {binding.access}"
    for (group, number), binding in module.items():
        yield f"the module has binding {number} of set {group} ({binding.name}), which is not declared"


def _constants(kernel: Kernel, found: Reflection) -> Iterator[str]:
    if found.push != kernel.push:
        yield f"push constants are declared {_names(kernel.push)} and the module has {_names(found.push)}"
    elif found.push_bytes != 4 * len(kernel.push):
        yield f"push constants take {found.push_bytes} bytes in the module, expected {4 * len(kernel.push)}"
    spec = dict(enumerate(kernel.spec, 1))
    module = {number: name for number, name in found.spec.items() if number}
    if module != spec:
        named = (_names([f"{number} {name}" for number, name in sorted(of.items())]) for of in (spec, module))
        yield "specialization constants are declared {} and the module has {}".format(*named)


def _names(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names) or "none"


def _workgroup(found: Reflection) -> Iterator[str]:
    if found.local_size_ids != (0, None, None) or found.local_size[1:] != (1, 1):
        yield (
            f"the workgroup is {found.local_size} by the constants {found.local_size_ids}, expected specialization "
            "constant 0 by 1 by 1"
        )


def _capabilities(kernel: Kernel, found: Reflection) -> Iterator[str]:
    known = CAPABILITIES.copy()
    for feature in kernel.needs:
        known |= OF_FEATURES[feature]
    for number in found.capabilities:
        if number not in known:
            yield f"the module needs capability {number}, expected none beyond {_names(list(known.values()))}"
