"""What a file holds beyond the model that runs: rows without a token, and MTP layers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from small_models import CONFIGS, SmallModel

from harness.synth import write_synthetic
from model.config import ModelConfig
from model.engine import Model, Session
from model.gguf_file import GGUFFile
from model.layout import PATHS
from model.reference import Reference
from vkbackend.device import Device


def logits_of(gguf: GGUFFile, device: Device, tokens: list[int]) -> np.ndarray:
    """Logits of every position, on the default path."""
    model = Model.load(gguf, device)
    session = Session(model, PATHS["mla"], 32, chunk=8)
    found = session.prompt(tokens, "all")
    session.close()
    model.close()
    assert found is not None
    return found


def test_rows_without_a_token_have_logits_and_are_never_chosen(
    small_models: dict[str, SmallModel], device: Device, tmp_path: Path
) -> None:
    """Each such row is four times that of a token, so that its logit is often the greatest."""
    lite, path = small_models["lite"], tmp_path / "m.gguf"
    path.write_bytes(lite.gguf.path.read_bytes())
    table = next(tensor for tensor in GGUFReader(path, "r").tensors if tensor.name == "token_embd.weight")
    c = lite.config
    rows = np.fromfile(path, np.float16, c.n_vocab * c.n_embd, offset=int(table.data_offset)).reshape(c.n_vocab, -1)
    rows[c.n_tokens :] = 4 * rows[: c.n_padding]
    with path.open("r+b") as file:
        file.seek(int(table.data_offset))
        file.write(rows.tobytes())
    model = Model.load(path, device)
    session = Session(model, PATHS["mla"], 64, chunk=8)
    beyond = 0
    for token in lite.prompt:
        chosen = session.decode(token)
        logits = session.last_logits()
        assert logits.shape == (c.n_vocab,)
        assert chosen == logits[: c.n_tokens].argmax()
        beyond += int(logits.argmax() >= c.n_tokens)
    session.prompt([c.n_vocab - 1], "last")  # they have an embedding too
    assert beyond >= 3
    session.rewind(0)
    first = session.prompt(lite.prompt)
    expected = Reference.from_gguf(GGUFFile.open(path)).generate(lite.prompt, 1, cache_type=np.float16)
    assert first is not None and [int(first[: c.n_tokens].argmax())] == expected
    session.close()
    model.close()


@pytest.mark.parametrize("key", [True, False])
def test_mtp_layers_change_nothing(device: Device, tmp_path: Path, key: bool) -> None:
    """Tensors are drawn by their names, so both files hold the same model; without the key, nextn tensors tell."""
    config = replace(CONFIGS["grouped"], n_nextn=0)
    for n_nextn in (0, 2):
        write_synthetic(replace(config, n_nextn=n_nextn), tmp_path / f"{n_nextn}.gguf", "q8_0", 3)
    plain, carrying = (GGUFFile.open(tmp_path / f"{n}.gguf") for n in (0, 2))
    assert sum(".nextn." in name for name in carrying.tensors) == 8
    if not key:
        kv = {name: value for name, value in carrying.kv.items() if name != "deepseek2.nextn_predict_layers"}
        carrying = replace(carrying, kv=kv)
    read = ModelConfig.from_gguf(carrying)
    assert (read.n_layer, read.n_nextn) == (config.n_layer, 2)
    tokens = [5, 17, 99, 250, 3]
    np.testing.assert_array_equal(logits_of(carrying, device, tokens), logits_of(plain, device, tokens))
