"""All weights of a model on one device, uploaded once and shared by its sessions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from model.config import ModelConfig
from model.gguf_file import GGUFFile
from model.plan import Planned, planned, planned_fallback
from model.weights import Weight, stack_upload, upload_vector
from model.writers import Writers
from vkbackend.buffer import Buffer
from vkbackend.device import Device


class DeviceWeights:
    """Matrices as ``Weight``, norms and biases as f32 ``Buffer``, both under their GGUF names without the suffix."""

    def __init__(self, device: Device, config: ModelConfig, gguf: GGUFFile) -> None:
        self._device, self._config, self._gguf = device, config, gguf
        self._matrices: dict[str, Weight] = {}
        self._vectors: dict[str, Buffer] = {}
        self._upload(planned(config, gguf))

    def _upload(self, parts: Iterable[Planned]) -> None:
        """All of ``parts``, or none where one fails."""
        device, matrices, vectors = self._device, dict[str, Weight](), dict[str, Buffer]()
        try:
            with Writers() as writers:
                for part in parts:
                    name = part.name
                    if len(part.shape) == 1:
                        vectors[name] = upload_vector(device, name, part.flat().view(np.float32))
                    else:
                        matrices[name] = stack_upload(device, name, part.kind, part.shape, part.data(), writers)
        except BaseException:
            _free(matrices, vectors)
            raise
        self._matrices |= matrices
        self._vectors |= vectors

    def matrix(self, name: str) -> Weight:
        """A matrix outside the layers."""
        return self._matrices[name]

    def vector(self, name: str) -> Buffer:
        """A norm outside the layers."""
        return self._vectors[name]

    def output(self) -> Weight:
        """The output matrix, which a tied model shares with the embedding."""
        return self._matrices["token_embd" if self._config.tied_output else "output"]

    def layer(self, index: int) -> tuple[dict[str, Weight], dict[str, Buffer]]:
        """One layer's matrices and vectors by their names within the layer."""
        prefix = f"blk.{index}."
        matrices = {k.removeprefix(prefix): v for k, v in self._matrices.items() if k.startswith(prefix)}
        vectors = {k.removeprefix(prefix): v for k, v in self._vectors.items() if k.startswith(prefix)}
        return matrices, vectors

    def _missing_fallback(self) -> list[Planned]:
        return [part for part in planned_fallback(self._config, self._gguf) if part.name not in self._matrices]

    def need_fallback(self) -> None:
        """Make, once, what only the MHA fallback reads."""
        self._upload(self._missing_fallback())

    def missing_fallback_bytes(self) -> int:
        """Bytes that ``need_fallback`` would allocate now."""
        return sum(part.nbytes for part in self._missing_fallback())

    @property
    def nbytes(self) -> int:
        """Bytes that all weight buffers take of the device's memory."""
        return sum(w.allocated for w in self._matrices.values()) + sum(b.allocated for b in self._vectors.values())

    def free(self) -> None:
        """Give the memory back."""
        _free(self._matrices, self._vectors)


def _free(matrices: dict[str, Weight], vectors: dict[str, Buffer]) -> None:
    for weight in matrices.values():
        weight.free()
    for buffer in vectors.values():
        buffer.free()


def predicted_bytes(config: ModelConfig, gguf: GGUFFile) -> int:
    """Bytes that the weights of ``gguf`` will take on a device, from its tensor table alone."""
    return sum(part.nbytes for part in planned(config, gguf))


def fallback_bytes(config: ModelConfig, gguf: GGUFFile) -> int:
    """Bytes that the MHA fallback needs besides, in the same way."""
    return sum(part.nbytes for part in planned_fallback(config, gguf))
