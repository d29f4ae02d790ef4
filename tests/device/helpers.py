"""What the device tests share: arrays to buffers, one kernel run by itself, random weights as a GGUF stores them."""

import copy
import os
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize as gguf_dequantize

from model.random_blocks import random_blocks
from model.scratch import SLACK
from model.tensors import SUPPORTED_TYPES
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.kernel import Kernel
from vkbackend.memory import Memory
from vkbackend.program import Program

U = 2.0**-24  # relative error of one rounding to f32
CANARY = np.float32(-77.25)  # what outputs hold before a run, to see which elements a kernel wrote
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


def random_tensor(
    rng: np.random.Generator, kind: Q, shape: tuple[int, ...], scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A random tensor: its bytes as in a GGUF (u8, flat) and the f32 values that gguf-py reads from them."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    data = random_blocks(kind, int(np.prod(shape)) // block, rng, scale).reshape(-1)
    rows = data.reshape(-1, shape[-1] // block * block_bytes)
    return data, np.asarray(gguf_dequantize(rows, kind)).reshape(shape).astype(np.float32)
