"""What a model's forward pass would launch on a device that need not be there: every kernel variant at its true shape.

The launches are those of ``model.forward.Forward`` itself, made on a dry device; nothing here repeats what it decides.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path as FilePath

import numpy as np
from gguf import GGMLQuantizationType

from model.config import ModelConfig
from model.engine import Model, Session
from model.gguf_file import GGUFFile, TensorInfo
from model.gguf_write import config_keys
from model.layout import Path, tensor_bytes
from model.tensors import expected_tensors
from vkbackend.dry import DryDevice
from vkbackend.physical import DeviceInfo
from vkbackend.program import Launch
from vkbackend.tuning import Tuning


def planned_launches(
    config: ModelConfig,
    types: Mapping[str, GGMLQuantizationType],
    path: Path,
    info: DeviceInfo,
    *,
    n_ctx: int,
    chunk: int | None = None,
    tuning: Tuning | None = None,
) -> dict[str, list[Launch]]:
    """The launches of one decoded token ("decode"), of a prompt chunk ("chunk"), of all logits of
    one ("head_all"), and others that ``Session.launches`` names.

    Args:
        types: each expected tensor's type.
        info: the device to plan for; its memory is not asked about.
        n_ctx, chunk: as for ``Session``.
        tuning: what the launches are chosen by besides; None: nothing.

    Raises:
        InputError, DeviceError: as ``Session`` where the model or its shapes cannot run.
    """
    session = Session(Model(_imaginary_file(config, types), config, DryDevice(info, tuning)), path, n_ctx, chunk)
    return session.launches()


def _imaginary_file(config: ModelConfig, types: Mapping[str, GGMLQuantizationType]) -> GGUFFile:
    """A file of zeros with the model's tensors, all of them views of the same untouched pages."""
    shapes = expected_tensors(config)
    sizes = {name: tensor_bytes(shape, types[name]) for name, shape in shapes.items()}
    pages = np.frombuffer(mmap.mmap(-1, max(sizes.values())), np.uint8)
    tensors = {name: TensorInfo(name, types[name], s, sizes[name], pages[: sizes[name]]) for name, s in shapes.items()}
    return GGUFFile(FilePath(config.name), config_keys(config), tensors)
