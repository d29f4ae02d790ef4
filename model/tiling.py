"""Which kernel makes a matrix product, and how many rows and tokens one of its workgroups takes: what the device's
tuning says, else the usual choice for its subgroups."""

from __future__ import annotations

from dataclasses import dataclass

from gguf import GGMLQuantizationType

from model import kernels
from model.block_formats import IN_PIECES, SMALL_INTEGERS
from model.weights import NARROW_SUBGROUP
from vkbackend.device import Device
from vkbackend.matrix_shapes import MatrixShape
from vkbackend.physical import DeviceInfo
from vkbackend.tuning import Entry

# One token. Wide subgroups: matvec.comp, this many rows a subgroup: RADV makes 48 registers of two on phoenix, 10 waves
# a SIMD to hide loads by, for nearly all formats; of four 64, 8 waves.
# Narrow ones (lavapipe's 8): matvec_rows.comp, this many rows a lane, which share the inputs: many pay where blocks are
# read as texels; elsewhere most time goes into loading them lane by lane (results/performance-log.md).
MATVEC_ROWS = 2
LANE_ROWS, LANE_ROWS_IN_PIECES = 1, 8
# A chunk: rows a lane by tokens of matmul.comp. On lavapipe 2 x 16 is slower than 2 x 4 and takes five times as long to
# compile; 4 x 4 takes 0.86 of its time for Q4_K as texels. RADV on phoenix predicts 22% less time a result for 2 x 8
# than for 2 x 4, no spills.
MATMUL_NARROW, MATMUL_NARROW_IN_PIECES, MATMUL_WIDE = (2, 4), (4, 4), (2, 8)
# matmul_dot.comp, where a tuning has it: on phoenix 2 x 16 starts 0.89 of the instructions of 2 x 8 for Q4_K.
DOT_NARROW, DOT_WIDE = (2, 8), (2, 16)
# The same in halves: rows by tokens of a workgroup's tile. RADV's estimate for each result on phoenix, Q4_K: packed
# 64 x 32 0.78 of 64 x 16, matrices 64 x 64 0.84 of 64 x 32. An expert has few tokens.
HALVES_STEP, HALVES_ROWS, HALVES_TOKENS, MATRICES_TOKENS = 16, 64, 32, 64
HALVES_BYTES = 80  # of shared memory a row, or token, of a tile (shaders/include/fragments.glsl)
MATRIX = MatrixShape(16, 16, 16, "f16", "f32")  # what matmul_cooperative.comp multiplies
MOST_RESULTS = 64  # sums that a lane of a tuned tiling keeps; lavapipe compiles 256 for more than two minutes
IN_HALVES = (kernels.MATMUL_HALVES.file, kernels.MATMUL_COOPERATIVE.file)


@dataclass(frozen=True)
class Tiling:
    """Which kernel, by its file, serves ``tokens``, and how many rows and tokens one of its workgroups makes."""

    kernel: str
    spec: dict[str, int]
    rows: int
    tokens: int

    @classmethod
    def choose(cls, device: Device, kind: GGMLQuantizationType, tokens: int, role: str = "") -> Tiling:
        """What the device's tuning says of products of that kind and ``role``, else the usual one for its subgroups."""
        name = purpose(kind, tokens, role)
        tuned = device.tuning.find(name)
        if tuned is not None:
            wrong = unfit(tuned, kind, tokens, device.info, role)
            if not wrong:
                return cls.of(tuned, device.subgroup_size)
            device.tuning.reject(name, wrong)
        return cls.of(usual(kind, tokens, device.subgroup_size, role), device.subgroup_size)

    @classmethod
    def of(cls, entry: Entry, lanes: int) -> Tiling:
        """The tiling that a kernel's constants stand for on subgroups of ``lanes``."""
        spec = dict(entry.constants)
        rows = spec["ROWS"] * (1 if entry.kernel in (kernels.MATVEC.file, *IN_HALVES) else lanes)
        return cls(entry.kernel, spec, rows, spec.get("TOKENS", 1))

    @property
    def of_token(self) -> kernels.TokenProducts:
        """The kernel's forms for one token."""
        return kernels.TOKEN_PRODUCTS[self.kernel]

    @property
    def of_chunk(self) -> kernels.ChunkProducts:
        """The kernel's forms for a chunk."""
        return kernels.CHUNK_PRODUCTS[self.kernel]


ROLES = ("", "chosen", "routed", "cache", "gated", "summed")


def purpose(kind: GGMLQuantizationType, tokens: int, role: str) -> str:
    """What a tuning calls products with weights of that kind, of one token or a chunk; ``role``, of ROLES, is "" for a
    plain matrix, "chosen" and "routed" for a token's and a chunk's experts, "cache" for a cache taken as a matrix,
    "gated" for two matrices of one input whose outputs are gated, "summed" for a token's experts added up."""
    return " ".join(filter(None, ("linear", role, kind.name.lower(), "token" if tokens == 1 else "chunk")))


def candidates(kind: GGMLQuantizationType, tokens: int, info: DeviceInfo, role: str = "") -> list[str]:
    """The files of the kernels that can make such products on a device."""
    if tokens == 1:
        return list(kernels.TOKEN_PRODUCTS)
    packed = kind in SMALL_INTEGERS
    return [
        file
        for file in kernels.CHUNK_PRODUCTS
        if not lacking(file, info) and (packed or file != kernels.MATMUL_DOT.file)
    ]


def lacking(file: str, info: DeviceInfo) -> str:
    """What the kernel needs and the device has not; "" where nothing."""
    missing = [name for name in kernels.CHUNK_PRODUCTS[file].plain.needs if name not in info.features]
    if not missing and file == kernels.MATMUL_COOPERATIVE.file and MATRIX not in info.matrix_shapes:
        return "cooperative matrices of 16 x 16 x 16 halves with sums in f32"
    return " and ".join(missing)


def unfit(entry: Entry, kind: GGMLQuantizationType, tokens: int, info: DeviceInfo, role: str = "") -> str:
    """Why no product of one token (``tokens`` 1), or of a chunk, in that role can be launched so on a device; "" where
    it can."""
    fitting = candidates(kind, tokens, info, role)
    if entry.kernel not in fitting:
        if tokens > 1 and entry.kernel in kernels.CHUNK_PRODUCTS and (missing := lacking(entry.kernel, info)):
            return f"has the kernel {entry.kernel}, which needs {missing}, expected {' or '.join(fitting)}"
        return f"has the kernel {entry.kernel}, expected {' or '.join(fitting)}"
    names = (kernels.TOKEN_PRODUCTS if tokens == 1 else kernels.CHUNK_PRODUCTS)[entry.kernel].plain.spec
    if set(entry.constants) != set(names):
        return f"has the constants {', '.join(entry.constants) or 'none'}, expected {', '.join(names)}"
    rows, each = entry.constants["ROWS"], entry.constants.get("TOKENS", 1)
    if entry.kernel in IN_HALVES:
        return _unfit_tile(rows, each, info)
    most = MOST_RESULTS // (2 if role == "gated" else 1)
    if not (rows >= 1 and each >= 1 and rows * each <= most):
        return f"has {rows} rows by {each} tokens a lane, expected 1 to {most} results"
    return ""


def _unfit_tile(rows: int, tokens: int, info: DeviceInfo) -> str:
    """Why no subgroup of the device can make such a tile in halves; "" where it can."""
    lanes = info.subgroup_size
    row_step, token_step = max(HALVES_STEP, lanes), max(HALVES_STEP, lanes // 4)
    if not rows or rows % row_step or not tokens or tokens % token_step:
        return f"has {rows} rows by {tokens} tokens, expected multiples of {row_step} and {token_step}"
    if rows * tokens > MOST_RESULTS * lanes:
        return f"has {rows} rows by {tokens} tokens, expected at most {MOST_RESULTS * lanes} results"
    if (rows + tokens) * HALVES_BYTES + 4 * tokens > info.shared_memory:
        most = info.shared_memory // HALVES_BYTES
        return f"has {rows} rows by {tokens} tokens, expected fewer than {most} together, for shared memory to hold"
    return ""


def _usual_tile(kernel: str, lanes: int, role: str) -> dict[str, int]:
    """Of a kernel in halves. The least on narrow subgroups, of which no lane keeps more results than on wide ones."""
    least = max(HALVES_STEP, lanes // 4)
    if lanes < NARROW_SUBGROUP:
        return {"ROWS": HALVES_STEP, "TOKENS": least}
    tokens = min(MATRICES_TOKENS, lanes) if kernel == kernels.MATMUL_COOPERATIVE.file else HALVES_TOKENS
    rows = max(lanes, min(2 * lanes, HALVES_ROWS))
    return {"ROWS": rows, "TOKENS": least if role == "routed" else max(least, tokens)}


def usual(kind: GGMLQuantizationType, tokens: int, lanes: int, role: str = "", kernel: str = "") -> Entry:
    """By subgroup width and token count; the constants above say why. ``kernel`` is the file of another than the usual
    one. Each row of a gated product is two, one of each matrix, so that it makes half as many."""
    narrow, in_pieces, matrices = lanes < NARROW_SUBGROUP, kind in IN_PIECES, 2 if role == "gated" else 1
    rows, each = MATMUL_WIDE if not narrow else MATMUL_NARROW_IN_PIECES if in_pieces else MATMUL_NARROW
    constants = {
        kernels.MATVEC.file: {"ROWS": MATVEC_ROWS // matrices},
        kernels.MATVEC_ROWS.file: {"ROWS": max(1, (LANE_ROWS_IN_PIECES if in_pieces else LANE_ROWS) // matrices)},
        kernels.MATMUL.file: {"ROWS": rows, "TOKENS": each},
        kernels.MATMUL_DOT.file: dict(zip(("ROWS", "TOKENS"), DOT_NARROW if narrow else DOT_WIDE, strict=True)),
        **{file: _usual_tile(file, lanes, role) for file in IN_HALVES},
    }
    if not kernel:
        kernel = (kernels.MATMUL if tokens > 1 else kernels.MATVEC_ROWS if narrow else kernels.MATVEC).file
    return Entry(kernel, constants[kernel])
