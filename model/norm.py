"""RMS norms as launches of their own, or left to the products that follow them (Zhang and Sennrich 2019)."""

from __future__ import annotations

from model import kernels
from model.linear import Norm, Source, View
from model.scratch import Scratch
from vkbackend.buffer import Buffer
from vkbackend.program import Program

# Most vec4s that a lane of a norm keeps, of 4 registers each, and as many for the weights. For 2048 numbers in one wave
# RADV predicts 1,167 cycles on phoenix, for the loops 3,202; lavapipe, whose lanes would keep 64, is faster by loops.
_MOST_HELD = 16


def normed(
    program: Program, scratch: Scratch, tokens: int, x: View, norm: Norm, y: Buffer, width: int, folds: bool
) -> Source:
    """Vectors of ``width`` numbers through a norm: one token's as they are where the products that follow take the norm
    in (``folds``), else by a launch into ``y``."""
    if tokens == 1 and folds:
        return Source(x, norm)
    emit_norm(program, scratch, tokens, x, norm, y, width)
    return Source(View(y, token=width))


def emit_norm(
    program: Program,
    scratch: Scratch,
    tokens: int,
    x: View,
    norm: Norm,
    y: Buffer,
    width: int,
    last_token: bool = False,
) -> None:
    """y[t] = RMS norm of x[t]'s first ``width`` numbers; with ``last_token`` only the chunk's last token, into y[0]."""
    kernel = kernels.RMS_NORM.variant(LAST_TOKEN="1") if last_token else kernels.RMS_NORM
    held = norm_held(width, program.device.subgroup_size, program.device.info.kind)
    program.launch(
        kernel,
        {"x": x.buffer, "weight": norm.weight, "y": y, "params": scratch["params"]},
        (1 if last_token else tokens, 1, 1),
        spec={"HELD": held},
        push={"width": width, "x_token": x.token, "y_token": width, "eps": float(norm.eps)},
    )


def norm_held(width: int, lanes: int, kind: str) -> int:
    """The norm's constant HELD for ``width`` numbers on subgroups of ``lanes`` of a device of ``kind``."""
    quads = -(-width // (4 * lanes))
    return quads if kind != "cpu" and quads <= _MOST_HELD else 0
