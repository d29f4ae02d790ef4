"""What the device tests share: arrays to buffers, one kernel run by itself, an oracle's case held."""

import copy
import os
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from gguf import GGMLQuantizationType as Q

from harness.oracles.case import CANARY, Case
from harness.oracles.run import run_case
from model.scratch import SLACK
from model.tensors import SUPPORTED_TYPES
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.kernel import Kernel
from vkbackend.memory import Memory
from vkbackend.program import Program

FORMATS = SUPPORTED_TYPES
# One of every family: plain, with a minimum, with inner scales, with a codebook.
FAMILIES = (Q.F16, Q.Q5_1, Q.Q4_K, Q.Q6_K, Q.IQ4_XS, Q.MXFP4, Q.IQ1_M, Q.IQ2_XS, Q.TQ1_0)
# Products of all, but under GPU-assisted validation, whose products take minutes to compile: the embedding kernel
# validates what every decoder reads.
PRODUCTS = FAMILIES if "gpu" in os.environ.get("LATENTVK_VALIDATE", "").split(",") else FORMATS


def upload(device: Device, array: np.ndarray, name: str = "test") -> Buffer:
    """A buffer with ``array``'s bytes, whole words, and the zeroed slack that every activation buffer ends in."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    padded = np.zeros(-(-data.size // 4) * 4 + 4 * SLACK, np.uint8)
    padded[: data.size] = data
    return Buffer(device, padded.size, name, initial=padded.view(np.uint32))


def canary(device: Device, *shape: int) -> Buffer:
    """An f32 buffer of ``shape`` (plus slack) in which every element is CANARY."""
    return upload(device, np.full(shape, CANARY))


def fetch(buffer: Buffer, *shape: int) -> np.ndarray:
    """The first elements of an f32 buffer, as ``shape``."""
    return np.asarray(buffer.download(np.float32, int(np.prod(shape)))).reshape(shape)


def params(device: Device, n_past: int, n_tokens: int, tokens: np.ndarray | None = None) -> Buffer:
    """The parameter buffer of shaders/include/params.glsl."""
    ids = np.zeros(n_tokens, np.uint32) if tokens is None else np.asarray(tokens, np.uint32)
    return upload(device, np.concatenate([np.array([n_past, n_tokens], np.uint32), ids]))


def launch(
    device: Device,
    kernel: Kernel,
    buffers: Mapping[str, Buffer],
    grid: tuple[int, int, int],
    spec: Mapping[str, int] | None = None,
    push: Mapping[str, int | float] | None = None,
) -> None:
    """Run one dispatch by itself."""
    program = Program(device, kernel.file)
    program.launch(kernel, buffers, grid, spec=spec, push=push)
    program.run()


def limited(device: Device, max_storage_buffer_range: int) -> Device:
    """The same open device that claims a smaller binding limit, so that small tensors are split over buffers."""
    other = copy.copy(device)
    other.info = replace(device.info, max_storage_buffer_range=max_storage_buffer_range)
    return other


def discrete(device: Device) -> Device:
    """The same open device under the memory policy of one with memory of its own; close its ``memory`` after use."""
    other = copy.copy(device)
    apart = replace(device.info.heaps[0], device_local=False)  # where every heap is device-local, memory is unified
    other.info = replace(device.info, kind="discrete", heaps=(*device.info.heaps, apart))
    other.memory = Memory(other)
    return other


def hold(device: Device, case: Case) -> None:
    """Run an oracle's case; everything that it says must be so."""
    outcome = run_case(device, case)
    assert outcome.failure is None, str(outcome.failure)
