"""A device for the conformance tests, files written once, and the table of agreement at the end of the run."""

import os
from collections.abc import Callable, Iterator

import pytest
from agreement import OpenFile, RandomFile, random_file
from gguf import GGMLQuantizationType as Q

from vkbackend.device import Device, open_device
from vkbackend.errors import DeviceError
from vkbackend.physical import list_devices

os.environ.setdefault("LATENTVK_TUNING", "off")  # what a user measured is not what is tested


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a line to the table that the run ends with."""
    return request.config.pluginmanager.get_plugin("ending").lines.append


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
    """The device that LATENTVK_DEVICE names, else the best one."""
    try:
        list_devices()
    except DeviceError as reason:
        pytest.skip(str(reason))
    opened = open_device()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> OpenFile:
    """Opens a random file of a family and mix, each written once."""
    folder = tmp_path_factory.mktemp("files")
    made: dict[tuple[object, ...], RandomFile] = {}

    def get(family: str, mix: str, overrides: tuple[tuple[str, Q], ...] = ()) -> RandomFile:
        key = family, mix, overrides
        if key not in made:
            made[key] = random_file(folder / str(len(made)), family, mix, overrides)
        return made[key]

    return get
