"""A device that does not exist, for tests that need only what a device says of itself."""

from vkbackend.physical import DeviceInfo, Heap

INFO = DeviceInfo(
    index=0,
    name="Imaginary iGPU",
    kind="integrated",
    driver="none",
    driver_version="0",
    api_version="1.3.0",
    vendor_id=0,
    device_id=0,
    heaps=(Heap(2**30, True, True), Heap(2**31, False, True)),
    host_heap=1,
    subgroup_size=32,
    subgroup_operations=0x7FF,
    max_storage_buffer_range=2**30,
    shared_memory=32768,
    max_workgroup_count=(65535, 100, 7),
    max_workgroup_size=1024,
    timestamp_period_ns=1.0,
)
