"""Logits of every token of a chunk, a piece of it at a time: a vocabulary's worth for each token is much to hold."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model.linear import View, linear
from model.scratch import SLACK_BYTES
from model.weights import Weight
from vkbackend.buffer import Buffer
from vkbackend.device import Device
from vkbackend.memory import Use, buffer_limit
from vkbackend.program import Launch, Program

_TOKENS = 128  # of a piece: 79 MB for GLM's vocabulary


class AllLogits:
    """The programs of up to ``chunk`` tokens: ``emit_norm``'s, then each piece's product of ``output`` with ``hidden``,
    what the norm wrote."""

    def __init__(
        self,
        device: Device,
        emit_norm: Callable[[Program], None],
        output: Weight,
        hidden: View,
        chunk: int,
        workspace: Buffer | None,
    ) -> None:
        self._vocabulary = output.rows
        self._piece = max(1, min(_TOKENS, chunk, buffer_limit(device) // (4 * output.rows)))
        with ExitStack() as made:  # what exists already is given back when the next part fails
            self._out = Buffer(device, 4 * self._piece * output.rows, "logits_all", host=True)
            made.callback(self._out.free)
            self._params = Buffer(device, 8 + SLACK_BYTES, "logits_all.params", use=Use.PARAMETERS)
            made.callback(self._params.free)
            self._norm = Program(device, "norm_all")
            emit_norm(self._norm)
            self._products = []
            for first in range(0, chunk, self._piece):
                program = Program(device, "head_all", workspace)
                x = View(hidden.buffer, offset=first * hidden.token, token=hidden.token)
                y = View(self._out, token=output.rows)
                linear(program, output, x, y, tokens=min(self._piece, chunk - first), params=self._params)
                self._products.append(program)
            made.pop_all()

    def run(self, n_tokens: int) -> NDArray[np.float32]:
        """f32 [n_tokens, n_vocab] of the chunk's first ``n_tokens``, whose residual stream is in scratch."""
        self._norm.run(items=n_tokens)
        found = np.empty((n_tokens, self._vocabulary), np.float32)
        for first, program in zip(range(0, n_tokens, self._piece), self._products, strict=False):
            count = min(self._piece, n_tokens - first)
            self._params.upload(np.array([0, count], np.uint32))
            program.run(items=count)
            flat = self._out.download(np.float32, count * self._vocabulary)
            found[first : first + count] = flat.reshape(count, -1)
        return found

    @property
    def launches(self) -> list[Launch]:
        """Those that the first piece takes, of the norm's as many workgroups as it has tokens."""
        norms = [replace(launch, grid=(self._piece, 1, 1)) for launch in self._norm.launches]
        return norms + self._products[0].launches

    def free(self) -> None:
        """Give recordings and buffers back."""
        for program in (self._norm, *self._products):
            program.free()
        self._out.free()
        self._params.free()
