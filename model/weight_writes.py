"""A tensor's bytes from the memory map into the device's layouts (shaders/include/weights.glsl), piece by piece.

Formats whose blocks are no whole number of 32-bit words are repacked: all payloads, then all scales. A format's
codebook stands before its blocks. Plain rows are padded to units of 32 columns. Interleaved, the pieces of eight rows
lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from model.block_formats import PIECE_ORDER, PLAIN, SCALE, codebook, payload_bytes
from model.gguf_file import drop_pages
from model.layout import whole_units
from vkbackend.buffer import Buffer

INTERLEAVED_ROWS = 8
Stacks = Sequence[NDArray[np.uint8]]  # [matrices, rows, bytes of a row] each, one after the other
Write = Callable[[], None]


def row_bytes(kind: GGMLQuantizationType, columns: int) -> int:
    """Bytes of a row on the device, payload and scales, with plain types padded to whole units."""
    block, size = GGML_QUANT_SIZES[kind]
    padded = whole_units(columns) if kind in PLAIN else columns
    return padded // block * size


def writes(
    buffer: Buffer, source: Stacks, kind: GGMLQuantizationType, columns: int, interleaved: bool = False
) -> Iterator[Write]:
    """What puts ``source`` into a shard's buffer in the device's layout, in parts that depend on nothing and touch
    nothing of one another, at most a window each; run, a part drops the memory map's pages that it read."""
    book, size = codebook(kind), GGML_QUANT_SIZES[kind][1]
    if book.size:
        yield partial(buffer.upload, book)
    width, padded = source[0].shape[-1], row_bytes(kind, columns)
    if interleaved:
        item, most = INTERLEAVED_ROWS * width, buffer.piece // (INTERLEAVED_ROWS * width)
        put = partial(_put_interleaved, buffer, kind, width)
    elif kind in SCALE:
        item, most = size, buffer.piece // size
        put = partial(_put_apart, buffer, kind, book.size, sum(stack.size for stack in source))
    elif width == padded:
        item, most = size, buffer.piece // size
        put = partial(_put, buffer, book.size)
    else:
        item, most = width, buffer.piece // padded
        put = partial(_put_padded, buffer, padded)
    for first, part in _pieces(source, item, max(1, most)):
        yield partial(_put_and_drop, put, first, part)


Put = Callable[[int, NDArray[np.uint8]], None]  # the number of the first item, and [items, bytes of one]


def _put_and_drop(put: Put, first: int, part: NDArray[np.uint8]) -> None:
    put(first, part)
    drop_pages(part)


def _runs(source: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The parts of ``source`` [..., bytes] that lie together in memory, in order."""
    if source.flags.c_contiguous:
        return [source.reshape(-1)]
    return [run for part in source for run in _runs(part)]


def _pieces(source: Stacks, item: int, each: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The items of ``item`` bytes in ``source``, at most ``each`` at a time: the first one's index and [n, item].
    Nothing is copied."""
    done = 0
    for run in chain.from_iterable(map(_runs, source)):
        items = run.reshape(-1, item)
        for start in range(0, len(items), each):
            yield done + start, items[start : start + each]
        done += len(items)


def _put(buffer: Buffer, start: int, first: int, part: NDArray[np.uint8]) -> None:
    """As in the file, from byte ``start``."""
    buffer.upload(part, start + first * part.shape[1])


def _put_padded(buffer: Buffer, padded: int, first: int, part: NDArray[np.uint8]) -> None:
    """Rows of ``padded`` bytes, zeros behind."""
    width = part.shape[1]
    with buffer.window(first * padded, len(part) * padded) as target:
        lines = target.reshape(len(part), padded)
        lines[:, :width] = part
        lines[:, width:] = 0


def _put_apart(
    buffer: Buffer, kind: GGMLQuantizationType, start: int, n_bytes: int, first: int, part: NDArray[np.uint8]
) -> None:
    """From byte ``start`` all payloads of the ``n_bytes`` in the file, then all scales. Whole fields are copied at
    once: a structured view moves payloads of 16 to 208 bytes, not single bytes."""
    payload, scale, size = payload_bytes(kind), SCALE[kind], GGML_QUANT_SIZES[kind][1]
    length, width = payload.stop - payload.start, scale.stop - scale.start
    scales = start + n_bytes // size * length
    fields: Any = np.dtype(
        {
            "names": ["payload", "scale"],
            "formats": [f"V{length}", f"V{width}"],
            "offsets": [payload.start, scale.start],
            "itemsize": size,
        }
    )
    blocks = part.reshape(-1).view(fields)
    with buffer.window(start + first * length, len(part) * length) as target:
        target.view(f"V{length}")[:] = blocks["payload"]
    with buffer.window(scales + first * width, len(part) * width) as target:
        target.view(f"V{width}")[:] = blocks["scale"]


def _put_interleaved(
    buffer: Buffer, kind: GGMLQuantizationType, width: int, first: int, part: NDArray[np.uint8]
) -> None:
    """By eight rows and block: their scales, where kept apart, then all rows' pieces in their order."""
    size, payload = GGML_QUANT_SIZES[kind][1], payload_bytes(kind)
    blocks, group = width // size, INTERLEAVED_ROWS * width
    texel = np.dtype(np.complex128)  # 16 bytes that are moved as they are; NumPy moves a void of that size slower
    apart = int(kind in SCALE)
    rows = part.reshape(len(part), INTERLEAVED_ROWS, blocks, size)
    payloads = np.ascontiguousarray(rows[..., payload]) if apart else rows
    pieces = payloads.view(texel).transpose(0, 2, 3, 1)  # [groups, blocks, pieces, rows]
    with buffer.window(first * group, part.size) as target:
        texels = target.view(texel).reshape(len(part), blocks, -1)
        if apart:
            scales = texels[..., :1].view(np.uint16)  # [groups, blocks, rows]
            scales[:] = np.ascontiguousarray(rows[..., SCALE[kind]]).view(np.uint16)[..., 0].swapaxes(1, 2)
        places = texels[..., apart:].reshape(pieces.shape, copy=False)
        if kind in PIECE_ORDER:
            for place, index in enumerate(PIECE_ORDER[kind]):
                places[:, :, place] = pieces[:, :, index]
        else:
            places[:] = pieces  # 2.7 times as fast as piece by piece
