"""How attention over a latent cache is cut for a device, and by which kernel it is made: what the device's tuning says,
else the usual choice for what it can do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gguf import GGMLQuantizationType

from model import kernels
from model.config import ModelConfig
from model.layout import CACHE_TYPES, PLAIN_CACHE_TYPES, pairs_a_word
from vkbackend.device import Device
from vkbackend.physical import DeviceInfo
from vkbackend.tuning import Entry

# Pairs of f32 that a lane keeps. A CPU has queries and accumulators in its first cache (measured on lavapipe with GLM's
# widths: 5 heads 18.5 GFLOP/s, 10 heads 20.8, but 20 heads take 20 s to compile). A GPU has accumulators alone in its
# registers: for phoenix RADV makes 96 of 5 heads, 5 waves a SIMD, and 168 of 10, 3 waves, which pay where each loaded
# number must be converted first, for all heads at once. Subgroups of 32 hold as much with twice as many a lane.
_PAIRS_CPU, _PAIRS_GPU, _LANE_PAIRS_GPU = 360, 40, 1280
# Workgroups that fill a device with one token's attention; lavapipe: a few for each core. Every split costs kv_lora
# numbers a head, written and read.
_GROUPS_CPU, _GROUPS_GPU, _SPLITS_GPU = 16, 256, 64
# What shaders/attention_packed.comp keeps of a head's queries in shared memory: for each part of a row so many bytes.
_PART_COLUMNS, _PART_BYTES = 64, 2 * (32 + 4 + 4)
_TILE_CPU = 8  # cache rows between two softmax updates; on a GPU one a lane
TUNED = ("HEADS", "TILE", "SPLITS")  # the constants that a tuning says; a model's dimensions say the others
MOST_SPLITS = 4096  # of a tuned shape: each has a sum of kv_lora numbers a head


def lane_pairs(width: int, kind: GGMLQuantizationType, lanes: int) -> int:
    """Pairs of a latent row's part of ``width`` numbers that each of ``lanes`` holds: whole words of a cache of
    ``kind``, where f32 counts a pair as a word."""
    pairs = pairs_a_word(kind)
    return pairs * -(-width // (2 * pairs * lanes))


@dataclass(frozen=True)
class AttentionShape:
    """By which kernel, a file, and how it is cut, for one token or a chunk: heads a workgroup, cache rows a tile, pairs
    a lane, splits of the cache (1 for a chunk)."""

    kernel: str
    heads: int
    tile: int
    latent_pairs: int
    rope_pairs: int
    splits: int

    @classmethod
    def choose(cls, device: Device, config: ModelConfig, kind: GGMLQuantizationType, tokens: int) -> AttentionShape:
        """What the device's tuning says; else the usual kernel, the most heads that divide the model's and whose
        registers fit, then enough splits to fill the device."""
        cpu, lanes = device.info.kind == "cpu", device.subgroup_size
        latent_pairs, rope_pairs = lane_pairs(config.kv_lora, kind, lanes), lane_pairs(config.qk_rope, kind, lanes)
        if cpu:
            most, each, groups, most_splits = _PAIRS_CPU, 2 * latent_pairs + rope_pairs, _GROUPS_CPU, MOST_SPLITS
        else:
            most = _PAIRS_GPU if pairs_a_word(kind) > 1 else min(_PAIRS_GPU, _LANE_PAIRS_GPU // lanes)
            each, groups, most_splits = latent_pairs, _GROUPS_GPU, _SPLITS_GPU
        heads = max((n for n in range(1, config.n_head + 1) if config.n_head % n == 0 and n * each <= most), default=1)
        splits = min(most_splits, max(1, -(-groups * heads // config.n_head))) if tokens == 1 else 1
        tile = min(_TILE_CPU, lanes) if cpu else lanes
        made = cls(usual(kind, device.info), heads, tile, latent_pairs, rope_pairs, splits)
        if unfit(made.entry, config.n_head, config.latent_dim, kind, tokens, device.info):  # shared memory is too small
            made = replace(made, kernel=kernels.ATTENTION_LATENT.file)
        name = purpose(config.kv_lora, config.qk_rope, config.n_head, kind, tokens)
        tuned = device.tuning.find(name)
        if tuned is None:
            return made
        wrong = unfit(tuned, config.n_head, config.latent_dim, kind, tokens, device.info)
        if wrong:
            device.tuning.reject(name, wrong)
            return made
        of = tuned.constants
        return replace(made, kernel=tuned.kernel, heads=of["HEADS"], tile=of["TILE"], splits=of["SPLITS"])

    @property
    def entry(self) -> Entry:
        """What a tuning would say for it to be chosen."""
        return Entry(self.kernel, {"HEADS": self.heads, "TILE": self.tile, "SPLITS": self.splits})


def purpose(latent: int, rope: int, heads: int, kind: GGMLQuantizationType, tokens: int) -> str:
    """What a tuning calls the latent kernel of a model of those widths over a cache of ``kind``, for one token or a
    chunk."""
    return f"attention {latent}+{rope} x {heads} {kind.name.lower()} {'token' if tokens == 1 else 'chunk'}"


def candidates(kind: GGMLQuantizationType, info: DeviceInfo) -> list[str]:
    """The files of the kernels that can serve a cache of ``kind`` on a device."""
    return [file for file in kernels.LATENT_ATTENTION if _serves(file, kind) and not _lacking(file, info)]


def usual(kind: GGMLQuantizationType, info: DeviceInfo) -> str:
    """The kernel's file where no tuning says another: packed arithmetic where a GPU has instructions for it."""
    packed = kernels.ATTENTION_PACKED.file
    fast = info.kind != "cpu" and info.packed_dot_products
    return packed if fast and packed in candidates(kind, info) else kernels.ATTENTION_LATENT.file


def _serves(file: str, kind: GGMLQuantizationType) -> bool:
    return file == kernels.ATTENTION_LATENT.file or kind not in (CACHE_TYPES[name] for name in PLAIN_CACHE_TYPES)


def _lacking(file: str, info: DeviceInfo) -> str:
    """The features that the kernel needs and the device has not; "" where none."""
    return " and ".join(n for n in kernels.LATENT_ATTENTION[file].plain.needs if n not in info.features)


def unfit(entry: Entry, heads: int, row: int, kind: GGMLQuantizationType, tokens: int, info: DeviceInfo) -> str:
    """Why the attention of ``heads`` heads over a cache of ``kind`` with rows of ``row`` numbers cannot be launched so
    on a device; "" where it can."""
    of, lanes, fitting = entry.constants, info.subgroup_size, candidates(kind, info)
    if entry.kernel not in fitting:
        known = entry.kernel in kernels.LATENT_ATTENTION and _serves(entry.kernel, kind)
        needs = f", which needs {_lacking(entry.kernel, info)}" if known else ""
        return f"has the kernel {entry.kernel}{needs}, expected {' or '.join(fitting)}"
    if set(of) != set(TUNED):
        return f"has the constants {', '.join(of) or 'none'}, expected {', '.join(TUNED)}"
    if of["HEADS"] < 1 or heads % of["HEADS"]:
        return f"has HEADS {of['HEADS']}, expected a divisor of {heads}"
    held = of["HEADS"] * -(-row // _PART_COLUMNS) * _PART_BYTES if entry.kernel == kernels.ATTENTION_PACKED.file else 0
    if held > info.shared_memory:
        most = info.shared_memory
        return f"has HEADS {of['HEADS']}, whose queries take {held} bytes, expected at most {most} of shared memory"
    if not 1 <= of["TILE"] <= lanes:
        return f"has TILE {of['TILE']}, expected 1 to {lanes}, a subgroup's lanes"
    splits = MOST_SPLITS if tokens == 1 else 1
    if not 1 <= of["SPLITS"] <= splits:
        return f"has SPLITS {of['SPLITS']}, expected 1 to {splits}"
    return ""
