"""The companion layer as its users meet it: devices beside and after one another, faults, waits."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from model import kernels
from tests.device.helpers import fetch, upload
from vkbackend.buffer import Buffer
from vkbackend.companion import loading
from vkbackend.device import Device, open_device
from vkbackend.errors import DeviceError, DeviceLostError, InputError, OutOfMemoryError
from vkbackend.kernel import Kernel
from vkbackend.program import Program

COPY = Kernel("copy_words.comp", (("source", "r"), ("target", "w")), ("EACH",), ("from", "to", "count"))


def doubled(device: Device, values: np.ndarray) -> tuple[Program, Buffer]:
    """A program that copies ``values`` into a buffer, and that buffer."""
    source, target = upload(device, values), upload(device, np.zeros_like(values))
    program = Program(device, "copy")
    groups = -(-values.size // device.subgroup_size)
    push = {"from": 0, "to": 0, "count": values.size}
    program.launch(COPY, {"source": source, "target": target}, (groups, 1, 1), spec={"EACH": 1}, push=push)
    return program, target


def test_devices_live_beside_and_after_one_another() -> None:
    values = np.arange(777, dtype=np.float32)
    first, second = open_device(), open_device()
    (one, one_out), (two, two_out) = doubled(first, values), doubled(second, -values)
    one.run()
    two.run()
    np.testing.assert_array_equal(fetch(one_out, 777), values)
    first.close()
    np.testing.assert_array_equal(fetch(two_out, 777), -values)
    two.run()
    third = open_device()
    program, out = doubled(third, values)
    program.run()
    np.testing.assert_array_equal(fetch(out, 777), values)
    for device in (second, third, third):  # closing may be repeated
        device.close()


def test_a_layer_that_does_not_load_stops_the_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VK_LOADER_LAYERS_DISABLE", "*latentvk*,*LATENTVK*")
    with pytest.raises(DeviceError) as caught:
        open_device("0")
    name = str(caught.value).split(" did not load for ")[1].split(", and")[0]
    assert str(caught.value) == (
        f"the companion layer VK_LAYER_LATENTVK_companion did not load for {name}, and without it nothing orders "
        "dependent kernels; expected a Vulkan loader of 1.3.207 or newer in a process without raised privileges: "
        "update libvulkan1, and unset VK_LOADER_LAYERS_DISABLE if it is set"
    )


def test_a_library_that_is_missing_or_older_stops_the_opening(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / loading.MANIFEST).write_text((loading.FOLDER / loading.MANIFEST).read_text())
    loading.library.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(loading, "FOLDER", tmp_path)
            with pytest.raises(DeviceError) as caught:
                open_device()
            assert str(caught.value) == (
                f"the companion layer liblatentvk_companion.so is missing; expected it in {tmp_path}: "
                "install latentvk again (make setup)"
            )
        with monkeypatch.context() as patch:
            patch.setattr(loading, "INTERFACE", 99)
            with pytest.raises(DeviceError) as caught:
                open_device()
            assert str(caught.value) == (
                "the companion layer liblatentvk_companion.so has interface 2; expected 99: "
                "install latentvk again (make setup)"
            )
    finally:
        loading.library.cache_clear()


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VK_INSTANCE_LAYERS", "")
    before = dict(os.environ)
    open_device().close()
    assert dict(os.environ) == before


def test_an_unknown_check_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTVK_VALIDATE", "core,all")
    with pytest.raises(InputError) as caught:
        open_device()
    assert str(caught.value) == (
        "LATENTVK_VALIDATE names 'all'; expected some of core, sync, queue-sync, gpu: change it"
    )


def test_what_is_on_is_told(device: Device) -> None:
    companion = device.companion
    assert companion.features <= companion.supported
    smallest, largest = companion.subgroup_sizes
    assert ("subgroupSizeControl" in companion.features) == (largest > 0)
    assert smallest <= largest


def test_identical_pipelines_are_one(device: Device) -> None:
    created, shared = device.companion.pipeline_counts()
    programs = [doubled(device, np.full(100, n, np.float32)) for n in range(5)]
    for program, _ in programs:
        program.run()
    now_created, now_shared = device.companion.pipeline_counts()
    assert now_created - created <= 1
    assert (now_created - created) + (now_shared - shared) == 5
    for n, (program, out) in enumerate(programs):
        np.testing.assert_array_equal(fetch(out, 100), np.full(100, n, np.float32))
        program.free()


def test_a_failed_allocation_names_its_call() -> None:
    device = open_device()
    before = device.companion.live_bytes()
    calls = {"vkCreateBuffer": 0, "vkAllocateMemory": 0, "vkBindBufferMemory": 4096, "vkMapMemory": 4096}
    for n, (call, made) in enumerate(calls.items(), 1):
        device.companion.fail_call(n)
        with pytest.raises(OutOfMemoryError) as caught:
            Buffer(device, 4096, "b", host=True)
        assert str(caught.value) == (
            f"{device.info.name}: buffer b of 4096 bytes failed, {call} is out of device memory with {before + made} "
            "bytes allocated here; expected enough: use a shorter context or a smaller quantisation, or close other "
            "programs"
        )
        assert device.companion.live_bytes() == before
    failures = sum(heap.failures for heap in device.companion.heaps())
    assert failures == 2  # the second call, and the allocation that follows a buffer that was not created
    Buffer(device, 4096, "b", host=True).free()
    device.close()


def test_a_failed_view_of_texels_is_an_error_and_leaves_nothing() -> None:
    device = open_device()
    kernel = kernels.for_format(kernels.EMBED, GGMLQuantizationType.Q8_0, interleaved=True)
    buffers = {name: upload(device, np.zeros(256, np.float32)) for name, _ in kernel.bindings}
    before, failed = device.companion.objects(), []
    for n in range(1, 20):
        program = Program(device, "embed")
        push = dict.fromkeys(kernel.push, 0)
        program.launch(kernel, buffers, (1, 1, 1), push=push)
        device.companion.fail_call(n)
        try:
            program._recorded = program._create()
        except OutOfMemoryError as error:
            failed.append(str(error).split(" failed, ")[1].split()[0])
            view = device.companion.objects()["buffer_view"]  # it stays with its buffer
            assert device.companion.objects() == before | {"buffer_view": view}
        else:
            break
    device.companion.fail_call(0)
    assert "vkCreateBufferView" in failed
    assert device.companion.objects()["buffer_view"] == 1
    program.free()
    for buffer in buffers.values():
        buffer.free()
    assert device.companion.objects()["buffer_view"] == 0
    device.close()


def test_a_failed_submission_is_an_error_and_no_hang() -> None:
    device = open_device()
    program, out = doubled(device, np.ones(8, np.float32))
    for _ in range(3):  # meets the kernel, learns its pace, records
        program.run()
    device.companion.fail_call(2, -13)  # vkCreateFence, vkQueueSubmit; VK_ERROR_UNKNOWN
    with pytest.raises(DeviceError) as caught:
        program.run()
    assert str(caught.value) == (
        f"{device.info.name}: program copy failed, vkQueueSubmit returned VkResult -13; expected success: "
        "update the driver"
    )
    program.run()
    np.testing.assert_array_equal(fetch(out, 8), np.ones(8, np.float32))
    device.close()


def test_waiting_lets_other_threads_run() -> None:
    device = open_device()
    program, _ = doubled(device, np.ones(8, np.float32))
    for _ in range(3):
        program.run()
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            time.sleep(0.001)

    device.companion.slow_down(0.5)
    thread = threading.Thread(target=count)
    thread.start()
    program.run()
    stop.set()
    thread.join()
    assert counted[0] > 20  # of 500; a wait that held the GIL would leave 1 or 2
    device.close()


def test_an_interrupt_waits_for_the_device() -> None:
    device = open_device()
    program, out = doubled(device, np.ones(8, np.float32))
    for _ in range(3):
        program.run()
    device.companion.slow_down(0.4)
    began = time.perf_counter()
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        program.run()
    assert time.perf_counter() - began >= 0.4
    device.companion.slow_down(0)
    program.run()
    np.testing.assert_array_equal(fetch(out, 8), np.ones(8, np.float32))
    device.close()


def test_a_passed_deadline_gives_the_device_up() -> None:
    device = open_device()
    program, _ = doubled(device, np.ones(8, np.float32))
    program.run()
    sequence = device.manager.sequence()
    device.companion.slow_down(30.0)
    import kp

    recorded = program._recorded
    assert recorded is not None
    sequence.record(kp.OpAlgoDispatch(recorded.algorithms[0]))
    sequence.eval()
    with pytest.raises(DeviceLostError) as caught:
        device.companion.wait("a copy", deadline_s=0.3)
    assert str(caught.value) == (
        f"{device.info.name} did not finish a copy in 0.3 s; expected less than 1 s: results so far are kept, "
        "see the kernel log (dmesg) for a hang, then run the command again"
    )
    assert device.companion.lost
    with pytest.raises(DeviceLostError):
        Buffer(device, 64, "after", host=True)
    device.close()  # leaks what may be in use, and returns
    again = open_device()
    program, out = doubled(again, np.ones(8, np.float32))
    program.run()
    np.testing.assert_array_equal(fetch(out, 8), np.ones(8, np.float32))
    again.close()
