"""Matrix products over every weight format, in both forms of one token and for a chunk, against their oracle."""

from dataclasses import replace

import numpy as np
import pytest
from child import in_child
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from helpers import FAMILIES, PRODUCTS, hold, limited

from harness.cli import main
from harness.oracles.linear import ROUTINGS, keys_case, product_case, random_tensor, routed_case, values_case
from model import tiling
from model.block_formats import IN_PIECES, PLAIN
from model.weights import stack_upload
from vkbackend.device import Device
from vkbackend.errors import DeviceError

ONE_TOKEN, CHUNK = 1, 7
NARROW, WIDE = 1 << 20, 0  # what model.tiling.NARROW_SUBGROUP must be for any device to count as such
FORMS = {
    "one token, lanes along a row": (WIDE, ONE_TOKEN),
    "one token, a lane a row": (NARROW, ONE_TOKEN),
    "chunk, small tiles": (NARROW, CHUNK),
    "chunk, large tiles": (WIDE, CHUNK),
}


@pytest.fixture(params=FORMS)
def capacity(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A chunk's capacity in tokens, with the form it runs in forced, whichever the device would take."""
    narrow, tokens = FORMS[request.param]
    monkeypatch.setattr(tiling, "NARROW_SUBGROUP", narrow)
    return tokens


def tensor_bytes(kind: Q, rows: int, columns: int) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    return rows * columns // block * size


@pytest.mark.parametrize("kind", PRODUCTS, ids=lambda kind: kind.name)
def test_every_format_at_awkward_row_counts(device: Device, kind: Q, capacity: int) -> None:
    """One row; fewer and more than a workgroup's; an odd number over several workgroups."""
    rng = np.random.default_rng(1)
    for shape in ((1, 256), (5, 512), (33, 256), (67, 1280)):
        hold(device, product_case(device.info, rng, kind, shape, None, capacity=capacity))


@pytest.mark.parametrize("kind", [k for k in PRODUCTS if GGML_QUANT_SIZES[k][0] <= 32], ids=lambda kind: kind.name)
def test_rows_of_one_unit(device: Device, kind: Q, capacity: int) -> None:
    hold(device, product_case(device.info, np.random.default_rng(2), kind, (19, 32), None, capacity=capacity))


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [4, 24, 100])
def test_rows_padded_to_whole_units(device: Device, kind: Q, columns: int, capacity: int) -> None:
    """What follows a short input (here the next head's) is read, and must meet zeros."""
    rng = np.random.default_rng(3)
    hold(device, product_case(device.info, rng, kind, (6, 13, columns), None, capacity=capacity))


@pytest.mark.parametrize("kind", PRODUCTS, ids=lambda kind: kind.name)
def test_a_matrix_for_each_head_and_accumulation(device: Device, kind: Q, capacity: int) -> None:
    rng = np.random.default_rng(4)
    hold(device, product_case(device.info, rng, kind, (5, 21, 256), None, capacity=capacity, accumulate=True))


@pytest.mark.parametrize("kind", IN_PIECES, ids=lambda kind: kind.name)
def test_rows_interleaved_by_eight(device: Device, kind: Q, capacity: int) -> None:
    """On narrow subgroups: one group of rows, several, heads, and buffers of a few groups, of rows or of matrices."""
    rng = np.random.default_rng(10)
    for shape in ((8, 256), (40, 512), (72, 1280), (5, 24, 256)):
        hold(device, product_case(device.info, rng, kind, shape, None, capacity=capacity, accumulate=len(shape) == 3))
    for shape in ((72, 256), (19, 8, 256)):
        limit = tensor_bytes(kind, 72, 256) // 3 + 1
        case = product_case(device.info, rng, kind, shape, None, capacity=capacity, limit=limit)
        assert len(case.launches) >= 3
        hold(device, case)


def check_products_and_norms() -> None:
    """The child's body."""
    kinds = ("matvec f16", "matvec_rows f16", "matmul f16", "rms_norm")
    assert main(["shaders", "check", *kinds]) == 0


def test_products_on_subgroups_of_sixteen(device: Device) -> None:
    """lavapipe's, with vectors of 512 bits: a lane of a narrow form is then not the only one with its inputs."""
    in_child(check_products_and_norms, LP_NATIVE_VECTOR_WIDTH="512")


def test_a_chunk_that_is_not_full(device: Device) -> None:
    rng = np.random.default_rng(5)
    for n_tokens in (1, 4, 5, 6):
        hold(device, product_case(device.info, rng, Q.Q4_K, (33, 256), None, capacity=CHUNK, n_tokens=n_tokens))


@pytest.mark.parametrize("kind", PRODUCTS, ids=lambda kind: kind.name)
def test_matrix_split_between_rows(device: Device, kind: Q, capacity: int) -> None:
    rng, limit = np.random.default_rng(6), tensor_bytes(kind, 67, 256) // 3
    case = product_case(device.info, rng, kind, (67, 256), None, capacity=capacity, limit=limit)
    assert len(case.launches) >= 3
    hold(device, case)


@pytest.mark.parametrize("kind", PRODUCTS, ids=lambda kind: kind.name)
def test_stack_split_between_matrices(device: Device, kind: Q, capacity: int) -> None:
    rng, limit = np.random.default_rng(7), tensor_bytes(kind, 19 * 5, 256) // 2 + 1
    case = product_case(device.info, rng, kind, (19, 5, 256), None, capacity=capacity, limit=limit)
    ranges = [(launch.push["matrix_first"], launch.push["matrix_end"]) for launch in case.launches]
    assert ranges == [(0, 9), (9, 18), (18, 19)]
    hold(device, case)


def test_row_that_no_binding_holds_is_refused(device: Device) -> None:
    data, _ = random_tensor(np.random.default_rng(8), Q.Q8_0, (9, 256))
    with pytest.raises(DeviceError) as caught:
        stack_upload(limited(device, 271), "blk.0.ffn_up.weight", Q.Q8_0, (9, 256), data)
    assert str(caught.value) == (
        f"tensor blk.0.ffn_up.weight has slices of 272 bytes; {device.info.name} binds at most 271: "
        "use another --device"
    )


def test_more_row_tiles_than_one_grid_axis(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one-token form spreads row tiles over a second axis past the first one's limit."""
    monkeypatch.setattr(tiling, "NARROW_SUBGROUP", WIDE)
    info = replace(device.info, max_workgroup_count=(7, *device.info.max_workgroup_count[1:]))
    case = product_case(info, np.random.default_rng(9), Q.Q8_0, (67, 256), None, capacity=ONE_TOKEN)
    assert case.launches[0].grid[2] > 1
    hold(device, case)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("shared_input", [True, False])
@pytest.mark.parametrize("split", [False, True])
def test_routed_experts(device: Device, kind: Q, routing: str, shared_input: bool, split: bool, capacity: int) -> None:
    """Experts that no token chose and experts that all chose; a chunk with room to spare; inputs per token (gate, up)
    or per chosen expert (down)."""
    n_tokens = capacity if capacity == ONE_TOKEN else CHUNK - 2
    case = routed_case(
        device.info,
        np.random.default_rng(10),
        kind,
        (11, 21, 256),
        None,
        capacity=capacity,
        n_tokens=n_tokens,
        used=3,
        shared_input=shared_input,
        routing=routing,
        limit=8 * tensor_bytes(kind, 21, 256) if split else 0,
    )
    assert len(case.launches) == (2 if split else 1)
    hold(device, case)


@pytest.mark.parametrize("kind", [Q.F16, Q.F32], ids=lambda kind: kind.name)
@pytest.mark.parametrize("heads", [1, 5])
@pytest.mark.parametrize("n_past", [0, 31, 60])
def test_cache_as_a_matrix(device: Device, heads: int, n_past: int, capacity: int, kind: Q) -> None:
    """Keys: only filled rows make scores. Values: only filled columns, in whole units, take part."""
    rng = np.random.default_rng(11)
    for make in (keys_case, values_case):
        hold(device, make(device.info, rng, kind, None, capacity=capacity, heads=heads, n_past=n_past))
