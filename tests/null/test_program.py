"""What of the backend needs no device: barriers from declared accesses, declarations against launches."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.null.imaginary import INFO
from vkbackend.errors import DeviceError
from vkbackend.kernel import Kernel
from vkbackend.physical import DeviceInfo
from vkbackend.program import Program

# Named by what it does with its two buffers.
COPY = Kernel("copy.comp", (("source", "r"), ("target", "w")), ("WIDTH",), ("count", "scale"))
UPDATE = Kernel("update.comp", (("source", "r"), ("target", "rw")))


def program(*launches: tuple[Kernel, str, str], info: DeviceInfo = INFO) -> Program:
    """A program of (kernel, source, target), where one letter is one buffer."""
    buffers: dict[str, Any] = {name: object() for _, *names in launches for name in names}
    made = Program(SimpleNamespace(info=info), "test")  # type: ignore[arg-type]
    for kernel, source, target in launches:
        made.launch(kernel, {"source": buffers[source], "target": buffers[target]}, (1, 1, 1))
    return made


@pytest.mark.parametrize(
    ("launches", "expected"),
    [
        pytest.param([(COPY, "a", "b"), (COPY, "b", "c")], [False, True], id="read after write"),
        pytest.param([(COPY, "a", "b"), (COPY, "c", "a")], [False, True], id="write after read"),
        pytest.param([(COPY, "a", "b"), (COPY, "c", "b")], [False, True], id="write after write"),
        pytest.param([(COPY, "a", "b"), (UPDATE, "c", "b")], [False, True], id="update after write"),
        pytest.param([(UPDATE, "a", "b"), (COPY, "b", "c")], [False, True], id="read after update"),
        pytest.param([(COPY, "a", "b"), (COPY, "a", "c")], [False, False], id="two reads"),
        pytest.param([(COPY, "a", "b"), (COPY, "c", "d")], [False, False], id="nothing shared"),
        pytest.param([(COPY, "a", "b"), (COPY, "c", "d"), (COPY, "b", "e")], [False, False, True], id="not adjacent"),
        pytest.param(
            [(COPY, "a", "b"), (COPY, "b", "c"), (COPY, "b", "d")], [False, True, False], id="one barrier serves both"
        ),
        pytest.param(
            [(COPY, "a", "b"), (COPY, "b", "c"), (COPY, "d", "a"), (COPY, "c", "e")],
            [False, True, False, True],
            id="what a barrier settled is forgotten, what came after it is not",
        ),
        pytest.param([(UPDATE, "a", "a"), (UPDATE, "a", "a")], [False, True], id="in place"),
        pytest.param([], [], id="empty"),
    ],
)
def test_barriers_stand_where_accesses_conflict(launches: list[tuple[Kernel, str, str]], expected: list[bool]) -> None:
    assert program(*launches).barriers() == expected


def test_buffers_must_be_the_declared_ones() -> None:
    made = program()
    with pytest.raises(ValueError) as caught:
        made.launch(COPY, {"source": object(), "aim": object()}, (1, 1, 1))  # type: ignore[dict-item]
    assert str(caught.value) == (
        "kernel copy.comp was launched with buffers ['aim', 'source']; expected ['source', 'target']"
    )
    assert made.launches == []


@pytest.mark.parametrize("grid", [(65536, 1, 1), (1, 101, 1), (1, 1, 8), (0, 1, 1)])
def test_grid_must_be_within_the_devices_limits(grid: tuple[int, int, int]) -> None:
    buffers: dict[str, Any] = {"source": object(), "target": object()}
    with pytest.raises(DeviceError) as caught:
        program().launch(COPY, buffers, grid, label="blk.0.ffn_up.weight")
    assert str(caught.value) == (
        f"blk.0.ffn_up.weight needs a grid of {grid} workgroups; Imaginary iGPU allows (65535, 100, 7): "
        "use a smaller chunk"
    )
    program().launch(COPY, buffers, (65535, 100, 7))


def test_constants_must_be_the_declared_ones() -> None:
    with pytest.raises(ValueError) as caught:
        COPY.pack_spec(32, {"WIDTH": 4, "HEIGHT": 2})
    assert str(caught.value) == (
        "kernel copy.comp was launched with the specialization constants ['HEIGHT', 'WIDTH']; expected ['WIDTH']"
    )
    with pytest.raises(ValueError) as caught:
        COPY.pack_push({"count": 3})
    assert str(caught.value) == (
        "kernel copy.comp was launched with the push constants ['count']; expected ['count', 'scale']"
    )


def test_constants_are_packed_in_declared_order_with_their_bits() -> None:
    assert COPY.pack_spec(64, {"WIDTH": 7}).tolist() == [64, 7]
    for scale in (-1.5, np.float32(-1.5), np.float64(-1.5)):
        packed = COPY.pack_push({"scale": scale, "count": 2**32 - 1})
        assert packed.dtype == np.uint32
        assert packed.tolist() == [2**32 - 1, int(np.float32(-1.5).view(np.uint32))]


def test_access_must_be_one_that_barriers_understand() -> None:
    with pytest.raises(ValueError) as caught:
        Kernel("copy.comp", (("source", "read"),))
    assert str(caught.value) == "kernel copy.comp declares the access 'read'; expected one of ('r', 'w', 'rw')"


def test_variant_adds_macros_and_leaves_the_original() -> None:
    one = COPY.variant(A="1")
    assert one.variant(B="2").macros == {"A": "1", "B": "2"}
    assert (one.macros, COPY.macros) == ({"A": "1"}, {})
    assert one.bindings == COPY.bindings
