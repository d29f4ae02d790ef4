"""A device that does not exist, for tests that need only what a device says of itself."""

from dataclasses import replace

from vkbackend.matrix_shapes import MatrixShape
from vkbackend.physical import FEATURES, DeviceInfo, Heap, MemoryType

INFO = DeviceInfo(
    index=0,
    name="Imaginary iGPU",
    kind="integrated",
    driver="none",
    driver_version="0",
    api_version="1.3.0",
    vendor_id=0,
    device_id=0,
    chip=None,
    pci_address=None,
    heaps=(Heap(2**30, True, True), Heap(2**31, False, True)),
    memory_types=(MemoryType(1, 0x6), MemoryType(0, 0x7)),
    host_heap=1,
    subgroup_size=32,
    subgroup_sizes=(32, 32),
    subgroup_operations=0x7FF,
    features=("storageBuffer16BitAccess", "shaderInt8"),
    max_storage_buffer_range=2**30,
    max_texels=2**27,
    storage_buffer_alignment=16,
    max_allocation=2**31,
    max_buffer_size=2**32,
    shared_memory=32768,
    max_workgroup_count=(65535, 100, 7),
    max_workgroup_size=(1024, 1024, 64),
    max_workgroup_invocations=1024,
    timestamp_bits=64,
    timestamp_period_ns=1.0,
)
# That can run every kernel.
CAPABLE = replace(INFO, features=FEATURES, matrix_shapes=(MatrixShape(16, 16, 16, "f16", "f32"),))
