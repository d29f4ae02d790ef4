"""All weights of a model on one device, uploaded once and shared by its sessions."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType

from model.config import ModelConfig
from model.gguf_file import GGUFFile, dequantize
from model.tensors import expected_tensors
from model.weights import Weight, device_bytes, stack_upload, upload, upload_vector
from vkbackend.buffer import Buffer
from vkbackend.device import Device

_TRANSPOSED = "blk.{}.attn_k_b_transposed"


class DeviceWeights:
    """Matrices as ``Weight``, norms and biases as f32 ``Buffer``, both under their GGUF names without the suffix."""

    def __init__(self, device: Device, config: ModelConfig, gguf: GGUFFile) -> None:
        self._device, self._config, self._gguf = device, config, gguf
        self._matrices: dict[str, Weight] = {}
        self._vectors: dict[str, Buffer] = {}
        try:
            self._upload()
        except BaseException:
            self.free()
            raise

    def _upload(self) -> None:
        device, config = self._device, self._config
        for name, shape in expected_tensors(config).items():
            info = self._gguf.tensors[name]
            key = name.rsplit(".", 1)[0]
            if len(shape) == 1:
                self._vectors[key] = upload_vector(device, name, dequantize(info))
            else:
                self._matrices[key] = upload(device, info)
        if not config.expert_bias:
            zeros = np.zeros(max(1, config.n_expert), np.float32)
            for layer in range(config.n_dense, config.n_layer):
                self._vectors[f"blk.{layer}.exp_probs_b"] = upload_vector(device, "exp_probs_b", zeros)

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

    def need_transposed_k_b(self) -> None:
        """Make, once, each layer's k_b as [head, nope, kv_lora] in f32, by which the MHA fallback expands keys.

        The file stores [head, kv_lora, nope], whose rows are what absorption reads; f32 keeps the dequantised values
        exact.
        """
        for layer in range(self._config.n_layer):
            key = _TRANSPOSED.format(layer)
            if key in self._matrices:
                continue
            k_b = dequantize(self._gguf.tensors[f"blk.{layer}.attn_k_b.weight"])
            turned = np.ascontiguousarray(k_b.transpose(0, 2, 1))
            data = turned.reshape(-1).view(np.uint8)
            self._matrices[key] = stack_upload(self._device, key, GGMLQuantizationType.F32, turned.shape, data)

    def missing_transposed_k_b(self) -> int:
        """Bytes that ``need_transposed_k_b`` would allocate now."""
        layers = range(self._config.n_layer)
        return transposed_k_b_bytes(self._config, sum(_TRANSPOSED.format(i) not in self._matrices for i in layers))

    @property
    def nbytes(self) -> int:
        """Bytes that all weight buffers take of the device's memory."""
        return sum(w.allocated for w in self._matrices.values()) + sum(b.allocated for b in self._vectors.values())

    def free(self) -> None:
        """Give the memory back."""
        for weight in self._matrices.values():
            weight.free()
        for buffer in self._vectors.values():
            buffer.free()


def transposed_k_b_bytes(config: ModelConfig, layers: int) -> int:
    """Bytes of the f32 k_b that only the MHA fallback needs, of that many layers."""
    return layers * device_bytes(GGMLQuantizationType.F32, (config.n_head, config.qk_nope, config.kv_lora))


def predicted_bytes(config: ModelConfig, gguf: GGUFFile) -> int:
    """Bytes that the weights of ``gguf`` will take on a device, from its tensor table alone."""
    total = 0
    for name, shape in expected_tensors(config).items():
        total += 4 * shape[0] if len(shape) == 1 else device_bytes(gguf.tensors[name].type, shape)
    if not config.expert_bias:  # zeros stand in for it
        total += 4 * config.n_expert * (config.n_layer - config.n_dense)
    return total
