"""What all tests here share, made once: the device (without one they are skipped and say why) and small models.

All of them run under the Khronos validation layer, and one that leaves a message of it fails. LATENTVK_VALIDATE names
other checks than the usual; set and empty it turns validation off, which needs no such layer and is faster. The user's
tuning table is not read unless LATENTVK_TUNING names one.
"""

import os
import signal
from collections.abc import Iterator

import pytest
from small_models import NAMES, SmallModel, open_small_model

from vkbackend import kernel, program
from vkbackend.companion import messages
from vkbackend.device import Device, open_device
from vkbackend.errors import DeviceError
from vkbackend.physical import list_devices

os.environ.setdefault("LATENTVK_VALIDATE", "core,sync,queue-sync")  # child processes inherit it
os.environ.setdefault("LATENTVK_TUNING", "off")  # what a user measured is not what is tested
if "gpu" in os.environ["LATENTVK_VALIDATE"].split(","):
    # Each load is instrumented, and compiles for seconds: without unrolling there is one of each.
    compile_shader = kernel.compile_shader
    kernel.compile_shader = lambda file, macros: compile_shader(file, {**macros, "unroll": "dont_unroll"})


def require_silence(config: pytest.Config) -> None:
    """Fail with the validation messages since the last call, if there are any."""
    left = messages()
    config.pluginmanager.get_plugin("ending").messages[os.environ["LATENTVK_VALIDATE"]] += len(left)
    if left:
        pytest.fail(f"{len(left)} validation messages, the first: {left[0]}", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT interrupts tests and their children also where they run in the background of a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def no_validation_messages(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that leaves a validation message fails."""
    if checks := os.environ["LATENTVK_VALIDATE"]:
        request.config.pluginmanager.get_plugin("ending").tests[checks] += 1
    yield
    require_silence(request.config)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """The device that LATENTVK_DEVICE names, else the best one."""
    try:
        list_devices()
    except DeviceError as reason:
        pytest.skip(str(reason))
    opened = open_device()
    yield opened
    opened.close()
    require_silence(request.config)


@pytest.fixture(scope="session")
def small_models(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, SmallModel]]:
    """Every small model by name."""
    folder = tmp_path_factory.mktemp("models")
    yield {name: open_small_model(name, folder, device) for name in NAMES}


@pytest.fixture(params=NAMES)
def small(request: pytest.FixtureRequest, small_models: dict[str, SmallModel]) -> SmallModel:
    """Each small model in turn."""
    return small_models[request.param]


@pytest.fixture
def embedded(small_models: dict[str, SmallModel]) -> SmallModel:
    """The model that ships with the project."""
    return small_models["embedded"]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens at once as may be, however slow other programs make the device; what is long is still cut."""
    monkeypatch.setattr(program, "TARGET_S", 1e3)
