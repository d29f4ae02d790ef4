"""Matrix products over every weight format, in both forms of one token and for a chunk, against NumPy in float64."""

from dataclasses import replace

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from helpers import CANARY, FAMILIES, PRODUCTS, U, canary, fetch, limited, params, random_tensor, upload

from model import linear as linear_module
from model.block_formats import PLAIN, codebook
from model.linear import View, linear
from model.weights import Weight, allocate, stack_upload
from vkbackend.device import Device
from vkbackend.errors import DeviceError
from vkbackend.program import Program

ONE_TOKEN, CHUNK = 1, 7
NARROW, WIDE = 1 << 20, 0  # what model.linear.NARROW_SUBGROUP must be for any device to count as such
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
    monkeypatch.setattr(linear_module, "NARROW_SUBGROUP", narrow)
    return tokens


def largest_error(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What rounding may do to a product of ``weight`` [..., rows, K] and ``x`` [..., K] in f32. -> [...].

    Quants and minima are multiplied and summed apart in some forms. Formats without a minimum have |d q| = |w|; of the
    others random_blocks puts m in the middle of 0 to d q, so that |d q| + |m| is at most 3 times the largest weight. A
    sum of K terms by fours rounds at most K / 4 + 3 times; decoding and joining the two sums take at most 5 more.
    """
    roundings = weight.shape[-1] / 4 + 8
    peak = 3 * np.abs(weight).max()
    error: np.ndarray = U * roundings * peak * np.abs(x).sum(axis=-1, dtype=np.float64)
    return error


def product(
    device: Device,
    weight: Weight,
    values: np.ndarray,
    capacity: int,
    n_tokens: int | None = None,
    accumulate: bool = False,
) -> None:
    """Run ``linear`` with a shared input per token, and hold all of its output against float64.

    ``values`` [matrices, rows, columns]. Inputs lie apart at odd strides, outputs in the middle of a larger buffer, and
    everything around them must stay as it was.
    """
    n_tokens = capacity if n_tokens is None else n_tokens
    rng = np.random.default_rng(values.size + capacity)
    matrices, rows, columns = values.shape
    x_batch, y_batch = columns + 12, rows + 3
    x_token, y_token = matrices * x_batch + 4, matrices * y_batch + 5
    x = rng.standard_normal((capacity, x_token)).astype(np.float32)
    before = rng.standard_normal(2 + capacity * y_token + 40).astype(np.float32)
    x_buffer, y_buffer = (
        upload(device, np.concatenate([np.zeros(8, np.float32), x.reshape(-1)])),
        upload(device, before),
    )
    program = Program(device, "product")
    linear(
        program,
        weight,
        View(x_buffer, offset=8, batch=x_batch, token=x_token),
        View(y_buffer, offset=2, batch=y_batch, token=y_token),
        tokens=capacity,
        params=params(device, 5, n_tokens),
        accumulate=accumulate,
    )
    program.run()
    found, expected = fetch(y_buffer, before.size).astype(np.float64), before.astype(np.float64)
    tolerance = np.zeros(before.size)
    for token in range(n_tokens):
        for m in range(matrices):
            vector = x[token, m * x_batch : m * x_batch + columns].astype(np.float64)
            at = slice(2 + token * y_token + m * y_batch, 2 + token * y_token + m * y_batch + rows)
            result = values[m].astype(np.float64) @ vector
            expected[at] = expected[at] + result if accumulate else result
            tolerance[at] = largest_error(values[m], vector) + (U * np.abs(expected[at]) if accumulate else 0)
    assert (np.abs(found - expected) <= tolerance).all()


@pytest.mark.parametrize("kind", PRODUCTS, ids=lambda kind: kind.name)
def test_every_format_at_awkward_row_counts(device: Device, kind: Q, capacity: int) -> None:
    """One row; fewer and more than a workgroup's; an odd number over several workgroups."""
    rng = np.random.default_rng(1)
    for rows, columns in ((1, 256), (5, 512), (33, 256), (67, 1280)):
        data, values = random_tensor(rng, kind, (rows, columns))
        product(device, stack_upload(device, "w", kind, (rows, columns), data), values[None], capacity)


@pytest.mark.parametrize("kind", [k for k in PRODUCTS if GGML_QUANT_SIZES[k][0] <= 32], ids=lambda kind: kind.name)
def test_rows_of_one_unit(device: Device, kind: Q, capacity: int) -> None:
    data, values = random_tensor(np.random.default_rng(2), kind, (19, 32))
    product(device, stack_upload(device, "w", kind, (19, 32), data), values[None], capacity)


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [4, 24, 100])
def test_rows_padded_to_whole_units(device: Device, kind: Q, columns: int, capacity: int) -> None:
    """What follows a short input (here the next head's) is read, and must meet zeros."""
    data, values = random_tensor(np.random.default_rng(3), kind, (6, 13, columns))
    product(device, stack_upload(device, "w", kind, (6, 13, columns), data), values, capacity)


@pytest.mark.parametrize("kind", PRODUCTS, ids=lambda kind: kind.name)
def test_a_matrix_for_each_head_and_accumulation(device: Device, kind: Q, capacity: int) -> None:
    data, values = random_tensor(np.random.default_rng(4), kind, (5, 21, 256))
    product(device, stack_upload(device, "w", kind, (5, 21, 256), data), values, capacity, accumulate=True)


def test_a_chunk_that_is_not_full(device: Device) -> None:
    data, values = random_tensor(np.random.default_rng(5), Q.Q4_K, (33, 256))
    weight = stack_upload(device, "w", Q.Q4_K, (33, 256), data)
    for n_tokens in (1, 4, 5, 6):
        product(device, weight, values[None], CHUNK, n_tokens)


@pytest.mark.parametrize("kind", PRODUCTS, ids=lambda kind: kind.name)
def test_matrix_split_between_rows(device: Device, kind: Q, capacity: int) -> None:
    data, values = random_tensor(np.random.default_rng(6), kind, (67, 256))
    weight = stack_upload(limited(device, codebook(kind).size + data.size // 3), "w", kind, (67, 256), data)
    assert len(weight.shards) >= 3
    product(device, weight, values[None], capacity)


@pytest.mark.parametrize("kind", PRODUCTS, ids=lambda kind: kind.name)
def test_stack_split_between_matrices(device: Device, kind: Q, capacity: int) -> None:
    data, values = random_tensor(np.random.default_rng(7), kind, (19, 5, 256))
    limit = codebook(kind).size + data.size // 2 + 1
    weight = stack_upload(limited(device, limit), "w", kind, (19, 5, 256), data)
    assert [(s.first, s.end) for s in weight.shards] == [(0, 9), (9, 18), (18, 19)]
    product(device, weight, values, capacity)


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
    monkeypatch.setattr(linear_module, "NARROW_SUBGROUP", WIDE)
    data, values = random_tensor(np.random.default_rng(9), Q.Q8_0, (67, 256))
    small = limited(device, device.info.max_storage_buffer_range)
    small.info = replace(small.info, max_workgroup_count=(7, *device.info.max_workgroup_count[1:]))
    product(small, stack_upload(small, "w", Q.Q8_0, (67, 256), data), values[None], ONE_TOKEN)


ROUTINGS = {
    "random": lambda rng, n, used, experts: np.stack([rng.permutation(experts)[:used] for _ in range(n)]),
    "all the same": lambda rng, n, used, experts: np.tile(np.arange(experts)[-used:], (n, 1)),
}


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("shared_input", [True, False])
@pytest.mark.parametrize("split", [False, True])
def test_routed_experts(device: Device, kind: Q, routing: str, shared_input: bool, split: bool, capacity: int) -> None:
    """Experts that no token chose and experts that all chose; a chunk with room to spare; inputs per token (gate, up)
    or per chosen expert (down)."""
    rng = np.random.default_rng(10)
    experts, used, rows, columns = 11, 3, 21, 256
    n_tokens = capacity if capacity == ONE_TOKEN else CHUNK - 2
    data, values = random_tensor(rng, kind, (experts, rows, columns))
    owner = limited(device, codebook(kind).size + 8 * data.size // experts) if split else device
    weight = stack_upload(owner, "w", kind, values.shape, data)
    assert len(weight.shards) == (2 if split else 1)
    chosen = ROUTINGS[routing](rng, capacity, used, experts)
    counts = np.zeros(experts, np.uint32)
    pairs = np.full((experts, capacity), 10**9, np.uint32)  # entries past the count must not be read
    for pair, expert in enumerate(chosen[:n_tokens].reshape(-1)):
        pairs[expert, counts[expert]] = pair
        counts[expert] += 1
    x = rng.standard_normal((capacity, 1 if shared_input else used, columns)).astype(np.float32)
    x_buffer, y = upload(device, x), canary(device, capacity, used, rows)
    program = Program(device, "routed")
    linear_module.routed_linear(
        program,
        weight,
        View(x_buffer, batch=0 if shared_input else columns, token=x[0].size),
        View(y, batch=rows, token=used * rows),
        tokens=capacity,
        used=used,
        routing={
            "chosen": upload(device, chosen.astype(np.uint32)),
            "counts": upload(device, counts),
            "pairs": upload(device, pairs),
        },
        params=params(device, 0, n_tokens),
    )
    program.run()
    found = fetch(y, capacity, used, rows)
    for token in range(n_tokens):
        for slot in range(used):
            matrix, vector = values[chosen[token, slot]], x[token, 0 if shared_input else slot].astype(np.float64)
            error = np.abs(found[token, slot] - matrix.astype(np.float64) @ vector)
            assert (error <= largest_error(matrix, vector)).all()
    assert (found[n_tokens:] == CANARY).all()


@pytest.mark.parametrize("heads", [1, 5])
@pytest.mark.parametrize("n_past", [0, 31, 60])
def test_cache_as_a_matrix(device: Device, heads: int, n_past: int, capacity: int) -> None:
    """Keys: only filled rows make scores. Values: only filled columns, in whole units, take part."""
    rng = np.random.default_rng(11)
    n_ctx, key, value = 96, 32, 20
    filled, padded = n_past + capacity, -(-(n_past + capacity) // 32) * 32
    keys = allocate(device, "k", Q.F16, heads, n_ctx, key)
    values = allocate(device, "v", Q.F16, heads, value, n_ctx)
    k = rng.standard_normal((heads, n_ctx, key)).astype(np.float16)
    v = rng.standard_normal((heads, value, n_ctx)).astype(np.float16)
    keys.shards[0].buffer.upload(k)
    values.shards[0].buffer.upload(v)
    q = rng.standard_normal((capacity, heads, key)).astype(np.float32)
    p = rng.random((heads, capacity, n_ctx)).astype(np.float32)
    scores, out = canary(device, heads, capacity, n_ctx), canary(device, capacity, heads, value)
    control = params(device, n_past, capacity)
    program = Program(device, "cache")
    query = View(upload(device, q), batch=key, token=heads * key)
    rows = View(scores, batch=capacity * n_ctx, token=n_ctx)
    linear(program, keys, query, rows, tokens=capacity, params=control, cache_extent="ROWS")
    weights = View(upload(device, p), batch=capacity * n_ctx, token=n_ctx)
    sums = View(out, batch=value, token=heads * value)
    linear(program, values, weights, sums, tokens=capacity, params=control, cache_extent="UNITS")
    program.run()

    found = fetch(scores, heads, capacity, n_ctx)
    expected = np.einsum("hnk,thk->htn", k.astype(np.float64), q)
    error = np.abs(found - expected)[..., :filled]
    assert (error <= largest_error(k, q.transpose(1, 0, 2))[..., None]).all()
    assert (found[..., filled:] == CANARY).all()
    attended = np.einsum("hvn,htn->thv", v[..., :padded].astype(np.float64), p[..., :padded])
    tolerance = largest_error(v[..., :padded], p[..., :padded]).transpose(1, 0)[..., None]
    assert (np.abs(fetch(out, capacity, heads, value) - attended) <= tolerance).all()
