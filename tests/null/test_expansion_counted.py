"""When a chunk expands latent rows, by counting; what its buffers take."""

from dataclasses import replace
from functools import partial

import pytest
from imaginary import INFO

from model import prompt_expansion
from model.config import ModelConfig
from model.engine import chunk_and_scratch, require_session, session_scratch
from model.layout import PATHS, CacheLayout, get_path
from model.presets import PRESETS
from model.prompt_attention import PromptShape
from model.prompt_expansion import ExpandedRow, expands_from
from vkbackend.dry import DryDevice
from vkbackend.errors import DeviceError

GLM = PRESETS["glm-4.7-flash"]
DEVICE = DryDevice(replace(INFO, subgroup_size=64, max_workgroup_count=(65535, 65535, 65535)))


def multiply_adds(config: ModelConfig, tokens: int, depth: int) -> tuple[int, int]:
    """A head's, absorbed and expanded, for ``tokens`` that all see ``depth`` rows."""
    c, pairs = config, tokens * depth
    made = c.kv_lora * (c.qk_nope + c.v_head)
    return pairs * (2 * c.kv_lora + c.qk_rope), pairs * (c.key_dim + c.v_head) + depth * made


@pytest.mark.parametrize("name", PRESETS)
def test_from_where_on_it_costs_less(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(prompt_expansion, "_EXPANDING", 1.0)
    config, least = PRESETS[name], expands_from(PRESETS[name])
    absorbed, expanded = multiply_adds(config, least, 1000)
    assert expanded <= absorbed
    absorbed, expanded = multiply_adds(config, least - 1, 1000)
    assert expanded > absorbed


def test_by_each_models_own_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_expansion, "_EXPANDING", 1.0)
    assert expands_from(GLM) == 399  # 512 * 448 / 576
    assert expands_from(PRESETS["deepseek-v2-lite"]) == 171
    wide = replace(GLM, kv_lora=224)  # as much for a row's key and value as for its latent: nothing is ever saved
    assert expands_from(wide) > 10**9


def test_rows_of_whole_eights() -> None:
    assert ExpandedRow.of(GLM) == ExpandedRow(24, 8, 32)
    assert ExpandedRow.of(replace(GLM, qk_rope=12)) == ExpandedRow(24, 2, 32)
    for wrong in ({"kv_lora": 508}, {"qk_nope": 20}, {"qk_rope": 6}, {"v_head": 30}):
        assert ExpandedRow.of(replace(GLM, **wrong)) is None


def test_a_session_counts_its_buffers() -> None:
    """Long chunks alone have them, and each fits one binding."""
    path, tokens = get_path("mla"), expands_from(GLM)
    scratch = partial(session_scratch, DEVICE, GLM, path, 4096, splits=8)
    names = {"tile_heads", "head_weights", "head_source", "row_ids"}
    assert not names & set(scratch(chunk=tokens - 1))
    found = scratch(chunk=tokens)
    shape = PromptShape.choose(DEVICE, GLM, path, 4096, tokens)
    assert shape is not None and names <= set(found)
    assert found["tile_heads"] == 2 * 20 * shape.tile * 512 + 128
    assert found["head_weights"] == 2 * 20 * 512 * 512 + 128
    assert found["head_source"] == 4 * 20 * 512 * 256 + 128


@pytest.mark.parametrize("name", PRESETS)
def test_every_buffer_fits_a_binding(name: str) -> None:
    """By default, of whatever path, where a binding is as small as lavapipe's."""
    limit, config = 2**27, PRESETS[name]
    narrow = DryDevice(replace(DEVICE.info, max_storage_buffer_range=limit))
    for path in PATHS.values():
        chunk, sizes = chunk_and_scratch(narrow, config, path, 8192, None, 8)
        assert max(sizes.values()) <= limit
        # 128 heads have more queries than fit of 512 tokens.
        latent = path.layout is not CacheLayout.PER_HEAD
        assert chunk == (512 if config.n_head <= 64 else 256) or not latent
        assert ("tile_heads" in sizes) == latent


def test_a_chunk_that_was_asked_for_is_refused_where_it_does_not_fit() -> None:
    """Only the default gives way."""
    narrow, config = DryDevice(replace(DEVICE.info, max_storage_buffer_range=2**27)), PRESETS["deepseek-v2"]
    assert chunk_and_scratch(narrow, config, get_path("mla"), 8192, 512, 8)[0] == 512
    with pytest.raises(DeviceError) as caught:
        require_session(narrow, config, get_path("mla"), 8192, 512, 0)
    assert str(caught.value) == (
        f"buffer q_latent needs 150995072 bytes; {narrow.info.name} binds at most 134217728: use a smaller --chunk"
    )


def test_a_vocabulary_does_not_shorten_a_chunk() -> None:
    """Logits of all tokens are made piece by piece."""
    narrow = DryDevice(replace(DEVICE.info, max_storage_buffer_range=2**27))
    assert chunk_and_scratch(narrow, GLM, get_path("mla"), 4096, None, 8)[0] == 512
