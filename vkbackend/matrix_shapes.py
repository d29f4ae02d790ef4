"""The products of matrices that a subgroup of a device makes at once (VK_KHR_cooperative_matrix), as the driver lists
them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MATRIX_EXTENSION = "VK_KHR_cooperative_matrix"
_LISTING = "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"
_SUBGROUP_SCOPE = 3  # VkScopeKHR
# VkComponentTypeKHR of what shaders/include/fragments.glsl multiplies and adds.
_COMPONENTS = {0: "f16", 1: "f32"}


@dataclass(frozen=True)
class MatrixShape:
    """A product that a subgroup makes at once, [m, k] times [k, n]: the types of its factors and of its sums."""

    m: int
    n: int
    k: int
    factors: str  # "f16" or "f32"
    sums: str


def read_matrix_shapes(vk: Any, raw: Any, instance: Any, handle: Any) -> tuple[MatrixShape, ...]:
    """The floating-point products of a physical device that has MATRIX_EXTENSION; ``vk`` and ``raw`` are the package's
    wrappers and its entry points."""
    call = raw.ffi.cast(f"PFN_{_LISTING}", raw.lib.vkGetInstanceProcAddr(instance, _LISTING.encode()))
    count = raw.ffi.new("uint32_t *")
    call(handle, count, raw.ffi.NULL)
    found = raw.ffi.new("VkCooperativeMatrixPropertiesKHR[]", max(count[0], 1))
    for item in found:
        item.sType = vk.VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR
    call(handle, count, found)
    return tuple(
        MatrixShape(int(p.MSize), int(p.NSize), int(p.KSize), _COMPONENTS[p.AType], _COMPONENTS[p.CType])
        for p in (found[i] for i in range(count[0]))
        if p.scope == _SUBGROUP_SCOPE
        and p.AType == p.BType
        and p.CType == p.ResultType
        and {p.AType, p.CType} <= _COMPONENTS.keys()
    )
