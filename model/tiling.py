"""Which kernel makes a matrix product, and how many rows and tokens one of its workgroups takes: what the device's
tuning says, else the usual choice for its subgroups."""

from __future__ import annotations

from dataclasses import dataclass

from gguf import GGMLQuantizationType

from model import kernels
from model.block_formats import IN_PIECES, SMALL_INTEGERS
from model.weights import NARROW_SUBGROUP
from vkbackend.device import Device
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
MOST_RESULTS = 64  # sums that a lane of a tuned tiling keeps; lavapipe compiles 256 for more than two minutes


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
        rows = spec["ROWS"] * (1 if entry.kernel == kernels.MATVEC.file else lanes)
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
        for file, products in kernels.CHUNK_PRODUCTS.items()
        if set(products.plain.needs) <= set(info.features) and (packed or file != kernels.MATMUL_DOT.file)
    ]


def unfit(entry: Entry, kind: GGMLQuantizationType, tokens: int, info: DeviceInfo, role: str = "") -> str:
    """Why no product of one token (``tokens`` 1), or of a chunk, in that role can be launched so on a device; "" where
    it can."""
    fitting = candidates(kind, tokens, info, role)
    if entry.kernel not in fitting:
        return f"has the kernel {entry.kernel}, expected {' or '.join(fitting)}"
    names = (kernels.TOKEN_PRODUCTS if tokens == 1 else kernels.CHUNK_PRODUCTS)[entry.kernel].plain.spec
    if set(entry.constants) != set(names):
        return f"has the constants {', '.join(entry.constants) or 'none'}, expected {', '.join(names)}"
    rows, each = entry.constants["ROWS"], entry.constants.get("TOKENS", 1)
    most = MOST_RESULTS // (2 if role == "gated" else 1)
    if not (rows >= 1 and each >= 1 and rows * each <= most):
        return f"has {rows} rows by {each} tokens a lane, expected 1 to {most} results"
    return ""


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
    }
    if not kernel:
        kernel = (kernels.MATMUL if tokens > 1 else kernels.MATVEC_ROWS if narrow else kernels.MATVEC).file
    return Entry(kernel, constants[kernel])
