"""What all tests here share, made once: the device (without one they are skipped and say why) and small models."""

import pytest
from small_models import NAMES, SmallModel, open_small_model

from vkbackend.device import Device, open_device
from vkbackend.errors import DeviceError


@pytest.fixture(scope="session")
def device() -> Device:
    """The device that LATENTVK_DEVICE names, else the best one."""
    try:
        return open_device()
    except DeviceError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def small_models(device: Device, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SmallModel]:
    """Every small model by name."""
    folder = tmp_path_factory.mktemp("models")
    return {name: open_small_model(name, folder, device) for name in NAMES}


@pytest.fixture(params=NAMES)
def small(request: pytest.FixtureRequest, small_models: dict[str, SmallModel]) -> SmallModel:
    """Each small model in turn."""
    return small_models[request.param]


@pytest.fixture
def embedded(small_models: dict[str, SmallModel]) -> SmallModel:
    """The model that ships with the project."""
    return small_models["embedded"]
