"""Buffers and recorded programs on a device: bytes there and back, order kept, replays equal, times per launch."""

import time

import numpy as np
import pytest
from helpers import canary, fetch, launch, limited, params, upload

from model import kernels
from vkbackend.buffer import Buffer
from vkbackend.device import Device, open_device
from vkbackend.errors import DeviceError
from vkbackend.physical import list_devices
from vkbackend.program import Program

WIDTH = 100


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.uint32, np.float32, np.uint64])
def test_bytes_survive_there_and_back(device: Device, dtype: type, host: bool) -> None:
    array = np.random.default_rng(0).integers(0, 256, 40 * 8, np.uint8).view(dtype)
    buffer = Buffer(device, array.nbytes, "b", host=host)
    assert not buffer.download(np.uint8).any()  # zeroed when made
    buffer.upload(array)
    assert buffer.download(dtype).tobytes() == array.tobytes()
    assert buffer.download(dtype, 3).tobytes() == array[:3].tobytes()
    other = Buffer(device, array.nbytes, "c", host=host, initial=array.view(np.uint32))
    assert other.download(dtype).tobytes() == array.tobytes()


def test_upload_at_an_offset_leaves_the_rest(device: Device) -> None:
    buffer = upload(device, np.arange(16, dtype=np.uint32))
    buffer.upload(np.array([1000, 2000], np.uint16), offset=10)
    expected = np.arange(16, dtype=np.uint32)
    expected.view(np.uint16)[5:7] = (1000, 2000)
    np.testing.assert_array_equal(buffer.download(np.uint32, 16), expected)
    np.testing.assert_array_equal(buffer.words().view(np.uint16)[5:7], (1000, 2000))
    with pytest.raises(ValueError):
        buffer.upload(np.zeros(2, np.uint32), offset=buffer.nbytes - 4)


def test_download_is_a_copy_and_a_window_writes_in_place(device: Device) -> None:
    buffer = Buffer(device, 12, "b")
    before = buffer.download(np.uint32)
    with buffer.window(0, 12) as target:
        target.view(np.uint32)[:] = (7, 8, 9)
    assert before.tolist() == [0, 0, 0]
    assert buffer.download(np.uint32).tolist() == [7, 8, 9]


@pytest.mark.parametrize(("asked", "given"), [(0, 4), (1, 4), (4, 4), (5, 8), (1022, 1024)])
def test_sizes_are_whole_words(device: Device, asked: int, given: int) -> None:
    buffer = Buffer(device, asked, "b")
    assert buffer.nbytes == given == buffer.words().nbytes


def test_more_than_a_binding_is_refused_before_it_is_allocated(device: Device) -> None:
    with pytest.raises(DeviceError) as caught:
        Buffer(limited(device, 4096), 4097, "cache.0.latent")
    assert str(caught.value) == (
        f"buffer cache.0.latent needs 4100 bytes; {device.info.name} binds at most 4096: "
        "use a shorter context or a smaller chunk"
    )
    Buffer(limited(device, 4096), 4096, "cache.0.latent").free()
    # Kompute counts bytes in 32 bits: 4 GiB and a little would wrap to a little.
    with pytest.raises(DeviceError, match="binds at most"):
        Buffer(limited(device, 2**40), 2**32 + 8, "big")


def test_environment_names_the_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTVK_DEVICE", "no such device")
    with pytest.raises(DeviceError, match="no Vulkan device matches 'no such device'; expected one of 0: "):
        open_device()
    monkeypatch.setenv("LATENTVK_DEVICE", str(device.info.index))
    assert device.info in list_devices()


def norm(program: Program, source: Buffer, weight: Buffer, target: Buffer, control: Buffer) -> None:
    buffers = {"x": source, "weight": weight, "y": target, "params": control}
    push = {"width": WIDTH, "x_token": WIDTH, "y_token": WIDTH, "eps": 1e-5}
    program.launch(kernels.RMS_NORM, buffers, (3, 1, 1), spec={"HELD": 0}, push=push, label=f"into {target.name}")


def chain(device: Device, length: int, seed: int = 0) -> tuple[Program, Buffer, Buffer, np.ndarray]:
    """Norms back and forth between two buffers, each reading what the one before wrote. -> program, start, end, x."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, WIDTH)).astype(np.float32)
    weight = upload(device, (1 + 0.3 * rng.standard_normal(WIDTH)).astype(np.float32))
    ends = upload(device, x, "a"), upload(device, np.zeros_like(x), "b")
    control = params(device, 0, 3)
    program = Program(device, "chain")
    for i in range(length):
        norm(program, ends[i % 2], weight, ends[(i + 1) % 2], control)
    return program, ends[0], ends[length % 2], x


def test_dependent_launches_run_in_order(device: Device) -> None:
    """One program of 60 equals 60 programs of one, bit for bit."""
    program, _, end, _ = chain(device, 60)
    assert program.barriers() == [False] + [True] * 59
    program.run()
    single, _, single_end, _ = chain(device, 60)
    for step in single.launches:
        launch(device, step.kernel, step.buffers, step.grid, step.spec, step.push)
    np.testing.assert_array_equal(fetch(end, 3, WIDTH), fetch(single_end, 3, WIDTH))


def test_replay_equals_the_first_run(device: Device) -> None:
    program, start, end, x = chain(device, 21)
    program.run()
    first = fetch(end, 3, WIDTH)
    assert np.isfinite(first).all() and first.any()
    for _ in range(3):
        start.upload(x)
        end.upload(np.zeros_like(x))
        program.run()
        np.testing.assert_array_equal(fetch(end, 3, WIDTH), first)
    program.free()
    start.upload(x)
    program.run()  # recorded anew
    np.testing.assert_array_equal(fetch(end, 3, WIDTH), first)


def test_replay_sees_new_inputs_and_parameters(device: Device) -> None:
    """Position and token count reach a recorded program through its parameter buffer."""
    rng = np.random.default_rng(1)
    gate, up = (rng.standard_normal((3, WIDTH)).astype(np.float32) for _ in range(2))
    buffer, control = upload(device, gate), params(device, 0, 1)
    program = Program(device, "replay")
    grid = (-(-WIDTH // 4 // device.subgroup_size), 3, 1)
    buffers = {"gate": buffer, "up": upload(device, up), "params": control}
    program.launch(kernels.SILU_MUL, buffers, grid, push={"per_token": WIDTH})
    program.run()
    once = fetch(buffer, 3, WIDTH)
    np.testing.assert_array_equal(once[1:], gate[1:])
    buffer.upload(gate)
    control.upload(np.array([0, 3], np.uint32))
    program.run()
    np.testing.assert_array_equal(fetch(buffer, 3, WIDTH)[0], once[0])
    assert (fetch(buffer, 3, WIDTH) != gate).any(axis=1).all()


def test_program_takes_no_launch_once_recorded(device: Device) -> None:
    program, start, end, _ = chain(device, 1)
    program.run()
    with pytest.raises(ValueError) as caught:
        norm(program, start, start, end, start)
    assert str(caught.value) == "program chain is recorded already; expected launches before its first run"


def test_constants_that_are_not_declared_stop_the_recording(device: Device) -> None:
    program = Program(device, "wrong")
    buffers = {"logits": canary(device, 4), "best": canary(device, 4)}
    program.launch(kernels.ARGMAX, buffers, (1, 1, 1), push={"counts": 4})
    with pytest.raises(ValueError, match=r"push constants \['counts'\]; expected \['count', 'share'\]"):
        program.run()


def test_profile_gives_a_time_for_each_launch(device: Device) -> None:
    program, _, end, _ = chain(device, 12)
    began = time.perf_counter()
    times = program.profile()
    wall = time.perf_counter() - began
    assert [t.label for t in times] == ["into b", "into a"] * 6
    assert all(t.seconds >= 0 for t in times)
    assert 0 < sum(t.seconds for t in times) <= wall
    other, _, other_end, _ = chain(device, 12)
    other.run()
    np.testing.assert_array_equal(fetch(end, 3, WIDTH), fetch(other_end, 3, WIDTH))
