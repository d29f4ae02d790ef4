"""A chunk's inputs in 8 bits, for products by integer dot products: made once for all products that read them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from model import kernels
from model.layout import UNIT
from vkbackend.buffer import Buffer
from vkbackend.program import Launch, Program
from vkbackend.tuning import Tuning

if TYPE_CHECKING:
    from model.linear import View

BLOCK_WORDS = 12  # of 32 columns (shaders/include/dot_inputs.glsl)


def quantized_words(elements: int) -> int:
    """Words that so many elements of inputs take, in whole blocks."""
    return elements // UNIT * BLOCK_WORDS


def quantizes(tuning: Tuning) -> bool:
    """Whether a device's tuning has products that need such inputs."""
    return any(entry.kernel == kernels.MATMUL_DOT.file for entry in tuning.entries.values())


def quantized(program: Program, x: View, columns: int, vectors: int, tokens: int, params: Buffer, label: str) -> View:
    """The ``vectors`` of each token that ``x`` shows, of ``columns`` each, in the program's workspace; all vectors are
    one token after the other there, and the view counts elements as that of any inputs does.

    What the program quantised last and did not write since is not quantised again.

    Raises:
        ValueError: the program has no workspace, or a smaller one.
    """
    needed = 4 * quantized_words(tokens * vectors * columns)
    if program.workspace is None or program.workspace.nbytes < needed:
        found = 0 if program.workspace is None else program.workspace.nbytes
        raise ValueError(f"program {program.name} has a workspace of {found} bytes; expected {needed} for {label}")
    push = {"columns": columns, "vectors": vectors, "x_offset": x.offset, "x_batch": x.batch, "x_token": x.token}
    if not _holds(program, x.buffer, push):
        program.launch(
            kernels.QUANTIZE_INPUTS,
            {"x": x.buffer, "quantized": program.workspace, "params": params},
            (-(-columns // 4 // program.device.subgroup_size), tokens, vectors),
            push=push,
            label=label,
        )
    return replace(x, buffer=program.workspace, offset=0, batch=columns if x.batch else 0, token=vectors * columns)


def _holds(program: Program, source: Buffer, push: dict[str, int]) -> bool:
    """Whether the workspace has these inputs as they are now."""
    for launch in reversed(program.launches):
        if launch.kernel is kernels.QUANTIZE_INPUTS:
            return launch.buffers["x"] is source and launch.push == push
        if _writes(launch, source):
            return False
    return False


def _writes(launch: Launch, buffer: Buffer) -> bool:
    return any("w" in access and launch.buffers[name] is buffer for name, access in launch.kernel.bindings)
