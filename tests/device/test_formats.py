"""Every weight format's decoder in GLSL equals gguf-py's: the embedding kernel is dequantisation and nothing else."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers import FORMATS, hold

from harness.oracles.embedding import rows_case
from model.block_formats import PLAIN
from vkbackend.device import Device


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [256, 1280])
def test_decoder_equals_gguf_py_on_any_block(device: Device, kind: Q, columns: int) -> None:
    rng = np.random.default_rng(columns)
    hold(device, rows_case(device.info, rng, kind, 37, columns, rng.permutation(37)))


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [4, 24, 100])
def test_rows_that_are_no_whole_units(device: Device, kind: Q, columns: int) -> None:
    rng = np.random.default_rng(columns)
    hold(device, rows_case(device.info, rng, kind, 9, columns, np.array([8, 0, 3, 3])))


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_table_split_over_buffers(device: Device, kind: Q) -> None:
    case = rows_case(device.info, np.random.default_rng(3), kind, 45, 256, np.arange(45), shards=3)
    ranges = [(launch.push["row_first"], launch.push["row_end"]) for launch in case.launches]
    assert len(ranges) >= 3 and ranges[0][0] == 0 and ranges[-1][1] == 45
    assert [first for first, _ in ranges[1:]] == [end for _, end in ranges[:-1]]
    hold(device, case)


def test_tokens_past_the_chunks_count_are_left_alone(device: Device) -> None:
    ids = np.array([4, 2, 1])
    hold(device, rows_case(device.info, np.random.default_rng(4), Q.Q8_0, 5, 64, ids, n_tokens=2))
