"""The process that compiles for a chip that is not there: ``python -m vkbackend.offline_worker``.

Reads pickled requests from standard input and answers on standard output; ``vkbackend/offline.py`` is its only client.
A compiler that crashes or hangs takes this process with it and nothing else.
"""

from __future__ import annotations

import importlib
import struct
import time
from typing import Any

from vkbackend.child import answer, answers, requests
from vkbackend.offline import Compiled, Request
from vkbackend.physical import list_devices

_EXTENSION = "VK_KHR_pipeline_executable_properties"
_CAPTURE_STATISTICS, _CAPTURE_REPRESENTATIONS = 0x40, 0x80  # VkPipelineCreateFlagBits
_FULL_SUBGROUPS = 0x2  # VkPipelineShaderStageCreateFlagBits
# VkStructureType of the extension, from 1000269000 on.
_PROPERTIES_FEATURES, _INFO, _PROPERTIES, _EXECUTABLE_INFO, _STATISTIC, _REPRESENTATION = range(1000269000, 1000269006)
# VkPipelineExecutableStatisticFormatKHR, in its order.
_FORMATS = ("b32", "i64", "u64", "f64")


class _Compiler:
    """A device of the one driver that the environment leaves, opened for nothing but its compiler."""

    def __init__(self) -> None:
        vk: Any = importlib.import_module("vulkan")
        raw: Any = importlib.import_module("vulkan._vulkan")
        self._vk, self._ffi, self._lib = vk, raw.ffi, raw.lib
        self.info = list_devices()[0]
        application = vk.VkApplicationInfo(apiVersion=1 << 22 | 3 << 12)
        instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
        physical = vk.vkEnumeratePhysicalDevices(instance)[self.info.index]
        supported = self._features(physical)
        queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=0, pQueuePriorities=[1.0])
        made = vk.VkDeviceCreateInfo(
            pNext=supported, pQueueCreateInfos=[queue], ppEnabledExtensionNames=self._extensions
        )
        self._device = vk.vkCreateDevice(physical, made, None)

    def _features(self, physical: Any) -> Any:
        """Every feature that the chip has, as a chain, so that anyone's module compiles."""
        vk = self._vk
        found = {e.extensionName for e in vk.vkEnumerateDeviceExtensionProperties(physical, None)}
        self._extensions = [_EXTENSION, *(e for e in ("VK_KHR_cooperative_matrix",) if e in found)]
        chain = vk.VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR(pipelineExecutableInfo=1)
        names = ["Vulkan13Features", "Vulkan12Features", "Vulkan11Features"]
        if "VK_KHR_cooperative_matrix" in found:
            names.append("CooperativeMatrixFeaturesKHR")
        for name in names:
            chain = getattr(vk, f"VkPhysicalDevice{name}")(pNext=chain)
        features = vk.VkPhysicalDeviceFeatures2(pNext=chain)
        vk.vkGetPhysicalDeviceFeatures2(physical, features)
        return features

    def compile(self, request: Request) -> Compiled:
        """One pipeline's statistics; RuntimeError with Vulkan's result when the driver refuses the module."""
        vk, device = self._vk, self._device
        bindings = [
            vk.VkDescriptorSetLayoutBinding(number, kind, 1, vk.VK_SHADER_STAGE_COMPUTE_BIT)
            for number, kind in request.bindings
        ]
        layout = vk.vkCreateDescriptorSetLayout(device, vk.VkDescriptorSetLayoutCreateInfo(pBindings=bindings), None)
        ranges = [vk.VkPushConstantRange(vk.VK_SHADER_STAGE_COMPUTE_BIT, 0, request.push_bytes)] * bool(
            request.push_bytes
        )
        pipeline_layout = vk.vkCreatePipelineLayout(
            device, vk.VkPipelineLayoutCreateInfo(pSetLayouts=[layout], pPushConstantRanges=ranges), None
        )
        module = vk.vkCreateShaderModule(
            device, vk.VkShaderModuleCreateInfo(codeSize=len(request.module), pCode=request.module), None
        )
        started = time.perf_counter()
        pipeline = self._pipeline(request, module, pipeline_layout)
        seconds = time.perf_counter() - started
        try:
            return self._read(pipeline, request, seconds)
        finally:
            vk.vkDestroyPipeline(device, pipeline, None)
            vk.vkDestroyShaderModule(device, module, None)
            vk.vkDestroyPipelineLayout(device, pipeline_layout, None)
            vk.vkDestroyDescriptorSetLayout(device, layout, None)

    def _pipeline(self, request: Request, module: Any, layout: Any) -> Any:
        vk = self._vk
        data = b"".join(struct.pack("<I", value) for value in request.spec.values())
        kept = self._ffi.from_buffer(data)  # Vulkan reads it while the pipeline is made
        entries = [vk.VkSpecializationMapEntry(number, 4 * i, 4) for i, number in enumerate(request.spec)]
        constants = vk.VkSpecializationInfo(pMapEntries=entries, dataSize=len(data), pData=kept)
        required = vk.VkPipelineShaderStageRequiredSubgroupSizeCreateInfo(requiredSubgroupSize=request.subgroup)
        stage = vk.VkPipelineShaderStageCreateInfo(
            pNext=required if request.subgroup else None,
            flags=_FULL_SUBGROUPS if request.subgroup else 0,
            stage=vk.VK_SHADER_STAGE_COMPUTE_BIT,
            module=module,
            pName=request.entry,
            pSpecializationInfo=constants,
        )
        flags = _CAPTURE_STATISTICS | (_CAPTURE_REPRESENTATIONS if request.disassemble else 0)
        create = vk.VkComputePipelineCreateInfo(flags=flags, stage=stage, layout=layout)
        made = vk.vkCreateComputePipelines(self._device, None, 1, [create], None)
        return made[0] if hasattr(made, "__getitem__") else made

    def _call(self, name: str, info: Any, kind: str, number: int) -> Any:
        """The array of ``kind`` that a call fills, asked for its length first. Its items live as long as it."""
        ffi = self._ffi
        pointer = self._lib.vkGetDeviceProcAddr(self._device, name.encode())
        call = ffi.cast(f"VkResult(*)(VkDevice, const void*, uint32_t*, {kind}*)", pointer)
        count = ffi.new("uint32_t*")
        call(self._device, info, count, ffi.NULL)
        found = ffi.new(f"{kind}[]", count[0])
        for item in found:
            item.sType = number
        call(self._device, info, count, found)
        if kind == "VkPipelineExecutableInternalRepresentationKHR":  # now the sizes are known: once more for the text
            self._texts = [ffi.new("char[]", item.dataSize) for item in found]
            for item, text in zip(found, self._texts, strict=True):
                item.pData = text
            call(self._device, info, count, found)
        return found

    def _read(self, pipeline: Any, request: Request, seconds: float) -> Compiled:
        ffi = self._ffi
        of_pipeline = ffi.new("VkPipelineInfoKHR*", {"sType": _INFO, "pipeline": pipeline})
        kind = "VkPipelineExecutablePropertiesKHR"
        executables = self._call("vkGetPipelineExecutablePropertiesKHR", of_pipeline, kind, _PROPERTIES)
        one = ffi.new("VkPipelineExecutableInfoKHR*", {"sType": _EXECUTABLE_INFO, "pipeline": pipeline})
        kind = "VkPipelineExecutableStatisticKHR"
        items = self._call("vkGetPipelineExecutableStatisticsKHR", one, kind, _STATISTIC)
        statistics = {ffi.string(i.name).decode(): getattr(i.value, _FORMATS[i.format]) for i in items}
        representations = {}
        if request.disassemble:
            kind = "VkPipelineExecutableInternalRepresentationKHR"
            items = self._call("vkGetPipelineExecutableInternalRepresentationsKHR", one, kind, _REPRESENTATION)
            for item, text in zip(items, self._texts, strict=True):
                representations[ffi.string(item.name).decode()] = ffi.string(text).decode(errors="replace")
        return Compiled(executables[0].subgroupSize, statistics, representations, seconds)


def main() -> None:
    """Answer until the client goes away. The first answer is the device."""
    pipe = answers()
    compiler = _Compiler()
    answer(pipe, compiler.info)
    for request in requests():
        try:
            found: Compiled | str = compiler.compile(request)
        except Exception as error:  # whatever the driver refuses it with becomes the client's error
            found = f"{type(error).__name__} {error}".strip()
        answer(pipe, found)


if __name__ == "__main__":
    main()
