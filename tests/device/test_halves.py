"""A chunk's products in halves, in packed arithmetic and by cooperative matrices where the device has them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers import hold
from small_models import SmallModel

from harness.oracles.halves import INPUTS, Halves
from harness.oracles.linear import product_case, routed_case
from harness.oracles.run import run_case
from model import kernels
from model.engine import Model, Session
from model.layout import PATHS
from model.tiling import IN_HALVES, Tiling, candidates, purpose, unfit, usual
from vkbackend import shader
from vkbackend.device import Device
from vkbackend.tuning import Tuning

TYPES = (Q.Q4_K, Q.Q8_0)  # with a minimum and without; `shaders check` has all


@pytest.fixture(params=IN_HALVES)
def kernel(request: pytest.FixtureRequest, device: Device) -> str:
    """A file of those that the device can run."""
    file: str = request.param
    if file not in candidates(Q.Q4_K, 2, device.info):
        lanes = device.subgroup_size
        pytest.skip(f"{device.info.name} {unfit(usual(Q.Q4_K, 2, lanes, kernel=file), Q.Q4_K, 2, device.info)}")
    return file


def tiling_of(device: Device, kind: Q, kernel: str, role: str = "") -> Tiling:
    return Tiling.of(usual(kind, 2, device.subgroup_size, role, kernel), device.subgroup_size)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("inputs", ["", *INPUTS])
def test_products(device: Device, kernel: str, kind: Q, inputs: str) -> None:
    """Odd rows over several tiles, a chunk that is not full; whatever the sizes of inputs."""
    tiling, rng = tiling_of(device, kind, kernel), np.random.default_rng(11)
    shape, capacity = (2 * tiling.rows + 8, 512), tiling.tokens + 5
    hold(
        device,
        product_case(
            device.info,
            rng,
            kind,
            shape,
            tiling,
            capacity=capacity,
            n_tokens=capacity - 2,
            inputs=Halves(kernel, kind, inputs),
        ),
    )


def test_one_missing_unit_is_found(
    device: Device, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 32, where a sum's tolerance is large: inputs that are mostly zero show it."""
    shutil.copytree(shader.SHADER_ROOT, tmp_path / "shaders")
    monkeypatch.setattr(shader, "SHADER_ROOT", tmp_path / "shaders")
    monkeypatch.setattr(shader, "INCLUDE_ROOT", tmp_path / "shaders" / "include")
    file = tmp_path / "shaders" / "include" / "halves_product.glsl"
    text, whole = file.read_text(), "b * UNITS_A_BLOCK < end; b++"
    assert text.count(whole) == 1
    file.write_text(text.replace(whole, "(b + 1u) * UNITS_A_BLOCK < end; b++"))
    shader.forget_sources()
    try:
        tiling, rng = tiling_of(device, Q.Q8_0, kernel), np.random.default_rng(13)
        case = product_case(
            device.info, rng, Q.Q8_0, (8, 1024), tiling, capacity=3, inputs=Halves(kernel, Q.Q8_0, "sparse")
        )
        failure = run_case(device, case).failure
    finally:
        shader.forget_sources()
    assert failure is not None and failure.element == "y[token 0, matrix 0, row 0]"


@pytest.mark.parametrize("routing", ["random", "all the same"])
@pytest.mark.parametrize("shared", [False, True])
def test_experts(device: Device, kernel: str, routing: str, shared: bool) -> None:
    tiling, rng = tiling_of(device, Q.Q4_K, kernel, "routed"), np.random.default_rng(12)
    tokens = tiling.tokens + 3
    hold(
        device,
        routed_case(
            device.info,
            rng,
            Q.Q4_K,
            (7, 24, 256),
            tiling,
            capacity=tokens + 1,
            n_tokens=tokens,
            used=3,
            shared_input=shared,
            routing=routing,
            inputs=Halves(kernel, Q.Q4_K),
        ),
    )


def test_sessions_give_logits_near_the_reference(embedded: SmallModel, kernel: str, device: Device) -> None:
    """Every product of a chunk but the router's, whose near ties would flip.

    Weights, inputs and, in packed halves, sums are off by about 2^-11 each, a product by about as much of its root mean
    square, since errors differ in sign; some 30 products on the way to a logit add up to 2^-11 * sqrt(90), 5e-3 of the
    logits' own. Four times that is allowed.
    """
    kinds = {tensor.type for tensor in embedded.gguf.tensors.values() if len(tensor.shape) > 1} - {Q.F32}
    lanes = device.subgroup_size
    entries = {purpose(kind, 2, role): usual(kind, 2, lanes, role, kernel) for kind in kinds for role in ("", "routed")}
    before, device.tuning = device.tuning, Tuning(entries)
    try:
        model = Model.load(embedded.gguf, device)
        session = Session(model, PATHS["mla"], 64, chunk=7)
        launched = {launch.kernel.file for launch in session.launches()["chunk"]}
        found = session.prompt(embedded.prompt, "all")
        session.close()
        model.close()
    finally:
        device.tuning = before
    assert kernel in launched and kernels.MATMUL.file in launched
    expected, _ = embedded.exact(PATHS["mla"])
    assert found is not None
    off = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    print(f"logits are off by {off:.2g} of their root mean square")
    assert 0 < off < 2e-2
