"""Files that are really broken, through the commands: what the smoke test on load sees, says and leaves alone."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from small_models import SmallModel

from harness import running
from harness.cli import main
from harness.smoke import try_out
from model.engine import Session
from model.layout import PATHS
from vkbackend.device import Device

Captured = pytest.CaptureFixture[str]
WARNING = "about equally likely (logits from 0 to 0), expected some to stand out: check the file's hash, or use another"
RUNS = {
    "logits": ["--tokens", "1,2", "-o", "o.npz"],
    "generate": ["-p", "a", "-n", "2"],
    "bench": ["-p", "2", "-n", "2", "-r", "1"],
    "compare": ["--contexts", "64", "--paths", "mla,mha", "-n", "2", "-r", "1"],
}


def damaged(small: SmallModel, folder: Path, value: float) -> Path:
    """A copy of the model's file whose last norm is ``value`` throughout."""
    path = folder / f"{value}.gguf"
    path.write_bytes(small.gguf.path.read_bytes())
    norm = next(tensor for tensor in GGUFReader(path, "r").tensors if tensor.name == "output_norm.weight")
    with path.open("r+b") as file:
        file.seek(int(norm.data_offset))
        file.write(np.full(norm.n_elements, value, np.float32).tobytes())
    return path


@pytest.mark.parametrize("command", RUNS)
def test_a_network_that_lost_its_input_is_told_once(
    embedded: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = damaged(embedded, tmp_path, 0.0)
    assert main([command, str(file), *RUNS[command]]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("latentvk: warning: ")]
    assert len(told) == 1
    assert told[0].startswith(f"latentvk: warning: {file}: after one token all 2048 tokens are {WARNING} file; if its ")


@pytest.mark.parametrize("command", ["logits", "generate"])
def test_numbers_that_are_none_are_an_error(
    embedded: SmallModel,
    device: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = damaged(embedded, tmp_path, float("nan"))
    assert main([command, str(file), *RUNS[command]]) == 3
    assert capsys.readouterr().err == (
        f"latentvk: error: {file}: logits after position 0 are not finite on {device.info.name}; "
        "expected numbers: check the file's hash, then its types, or choose another --device\n"
    )
    assert not Path("o.npz").exists()


def test_a_good_model_is_tried_once_and_left_as_it_was(
    small: SmallModel, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, tried = Session(small.model, PATHS["mla"], 32, chunk=4), Session(small.model, PATHS["mla"], 32, chunk=4)
    try_out(tried)
    assert tried.n_past == 0
    np.testing.assert_array_equal(tried.prompt(small.prompt, "all"), plain.prompt(small.prompt, "all"))
    count = 0

    def counted(session: Session) -> None:
        nonlocal count
        count += 1

    monkeypatch.setattr("harness.smoke.try_out", counted)
    monkeypatch.setattr(small.model, "tried_out", False)
    for _ in range(3):
        running.open_session(small.model, PATHS["mla"], 32, 4).close()
    assert count == 1
    plain.close()
    tried.close()
    assert capsys.readouterr().err == ""
