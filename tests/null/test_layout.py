"""Cache, parameter and weight arithmetic against the published figures, and the types that llama-quantize chooses."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from gguf import GGMLQuantizationType as Q
from hypothesis import given
from hypothesis import strategies as st

from model.layout import (
    CACHE_TYPES,
    PATHS,
    CacheLayout,
    active_fraction,
    active_parameters,
    active_weight_bytes,
    cache_bytes,
    cache_bytes_per_token,
    cache_elements_per_token_layer,
    get_path,
    max_context,
    require_whole_words,
    tensor_bytes,
    total_parameters,
    weight_bytes,
)
from model.mix import MIXES, mix_types
from model.presets import PRESETS
from model.tensors import file_tensors
from tests.null.random_model import BASE, CONFIGS
from vkbackend.errors import InputError

GLM = PRESETS["glm-4.7-flash"]
GLM_3_LAYERS = replace(GLM, n_layer=3, n_nextn=0, n_vocab=32_000)


@pytest.mark.parametrize(
    ("layout", "elements", "f16", "q8_0"),
    [
        (CacheLayout.LATENT, 576, 54_144, 28_764),
        (CacheLayout.LATENT_V, 1_088, 102_272, 54_332),
        (CacheLayout.PER_HEAD, 10_240, 962_560, 511_360),
    ],
)
def test_glm_cache_per_token(layout: CacheLayout, elements: int, f16: int, q8_0: int) -> None:
    assert cache_elements_per_token_layer(GLM, layout) == elements
    assert cache_bytes_per_token(GLM, layout) == f16
    assert cache_bytes_per_token(GLM, layout, "q8_0") == q8_0
    assert cache_bytes_per_token(GLM, layout, "q4_0") == elements // 32 * 18 * 47


def test_glm_cache_is_what_llama_cpp_logs() -> None:
    mib = [cache_bytes(GLM, layout, "f16", 200_192) / 2**20 for layout in (CacheLayout.LATENT, CacheLayout.LATENT_V)]
    assert [f"{x:.2f}" for x in mib] == ["10337.06", "19525.56"]


def test_glm_blow_up() -> None:
    ratio = Fraction(*(cache_bytes_per_token(GLM, layout) for layout in (CacheLayout.PER_HEAD, CacheLayout.LATENT)))
    assert ratio == Fraction(160, 9)  # 17.78


def test_quantised_rows_are_padded_one_by_one() -> None:
    # BASE: rows of 23 + 6 = 29 and 23 latent, 5 heads of 13 key and 11 value: each one block of 32 = 34 bytes,
    # and a latent row's one scale takes a word.
    assert cache_bytes_per_token(BASE, CacheLayout.LATENT, "q8_0") == 3 * 36
    assert cache_bytes_per_token(BASE, CacheLayout.LATENT_V, "q8_0") == 3 * 2 * 36
    assert cache_bytes_per_token(BASE, CacheLayout.PER_HEAD, "q8_0") == 3 * 10 * 34
    # A plain key is padded too, to the 32 columns that a matrix kernel reads at once.
    assert cache_bytes_per_token(BASE, CacheLayout.PER_HEAD, "f16") == 3 * 5 * (32 + 11) * 2


@given(
    st.sampled_from(list(CONFIGS)),
    st.sampled_from(CacheLayout),
    st.sampled_from(list(CACHE_TYPES)),
    st.integers(0, 2**40),
)
def test_max_context_is_the_last_that_fits(name: str, layout: CacheLayout, kind: str, n_bytes: int) -> None:
    n_ctx = max_context(CONFIGS[name], layout, kind, n_bytes)
    assert cache_bytes(CONFIGS[name], layout, kind, n_ctx) <= n_bytes
    assert cache_bytes(CONFIGS[name], layout, kind, n_ctx + 1) > n_bytes
    assert max_context(CONFIGS[name], layout, kind, -1 - n_bytes) == 0


def test_unknown_names() -> None:
    with pytest.raises(InputError) as caught:
        get_path("gqa")
    assert str(caught.value) == "path 'gqa' is unknown, expected one of mla, mla-v, mha; choose one with --path"
    with pytest.raises(InputError) as caught:
        cache_bytes_per_token(GLM, CacheLayout.LATENT, "q5_0")
    assert str(caught.value) == (
        "cache type 'q5_0' has no kernel, expected one of f16, f32, q8_0, q4_0; choose one with --cache"
    )
    with pytest.raises(InputError) as caught:
        mix_types(GLM, "q3_k_s")
    assert str(caught.value) == (
        "mix 'q3_k_s' is unknown, expected one of q4_k_m, q5_k_m, q6_k, q8_0, bf16, f16, f32; choose one with --mix"
    )


def test_paths() -> None:
    assert [(p.name, p.layout, p.fused, p.cache_type) for p in PATHS.values()] == [
        ("mla", CacheLayout.LATENT, True, "f16"),
        ("mla-v", CacheLayout.LATENT_V, True, "f16"),
        ("mha", CacheLayout.PER_HEAD, False, "f16"),
    ]
    assert get_path("mha") == PATHS["mha"]


def test_glm_parameters() -> None:
    attention = 2048 * 768 + 768 * 20 * 256 + 2048 * 576 + 20 * 512 * 192 + 20 * 256 * 512 + 5120 * 2048
    norms = 2048 + 768 + 512 + 2048
    expert, router = 3 * 2048 * 1536, 64 * 2048 + 64
    layers = 47 * (attention + norms) + 3 * 2048 * 10_240 + 46 * router
    output = 154_880 * 2048
    assert total_parameters(GLM) == layers + 46 * 65 * expert + 2 * output + 2048
    assert active_parameters(GLM) == layers + 46 * 5 * expert + output + 2048
    assert active_parameters(GLM) / 1e9 == pytest.approx(3.58, abs=5e-3)
    # DeepSeek's own count for V3 is 36.6 B active "including 0.9 B for the output head"
    assert active_parameters(PRESETS["deepseek-v3"]) / 1e9 == pytest.approx(36.6, abs=0.05)


def test_tied_output_is_read_for_every_token() -> None:
    assert active_fraction(CONFIGS["tied"], "token_embd.weight") == 1
    assert active_fraction(BASE, "token_embd.weight") == 0
    assert active_fraction(BASE, "blk.1.ffn_up_exps.weight") == Fraction(3, 9)


def test_weight_bytes_of_the_three_layer_file() -> None:
    types = mix_types(GLM_3_LAYERS, "q4_k_m")
    assert round(weight_bytes(GLM_3_LAYERS, types) / 2**20) == 865  # what llama-quantize writes
    assert active_parameters(GLM_3_LAYERS) * 2 / 1e9 == pytest.approx(0.58, abs=5e-3)  # FLOP per token
    assert active_weight_bytes(GLM_3_LAYERS, types) / 2**20 == pytest.approx(176.3, abs=0.05)


def test_q4_k_m_is_what_llama_quantize_chooses() -> None:
    types = mix_types(GLM_3_LAYERS, "q4_k_m")
    assert Counter(types.values()) == {Q.Q4_K: 29, Q.F32: 17, Q.Q6_K: 3, Q.Q5_0: 3}
    assert {n for n, t in types.items() if t is Q.Q6_K} == {
        "output.weight",
        "blk.2.ffn_down_exps.weight",
        "blk.2.ffn_down_shexp.weight",
    }
    assert {n for n, t in types.items() if t is Q.Q5_0} == {f"blk.{i}.attn_k_b.weight" for i in range(3)}
    deep = mix_types(GLM, "q4_k_m")
    more = [i for i in range(47) if deep[f"blk.{i}.ffn_down{'_exps' if i else ''}.weight"] is Q.Q6_K]
    assert more == [0, 1, 2, 3, 4, *range(7, 41, 3), *range(41, 47)]


def test_q5_k_m_is_q4_k_m_of_other_types() -> None:
    """As llama-quantize has it, also for rows that fall back."""
    changed = {Q.Q4_K: Q.Q5_K, Q.Q5_0: Q.Q5_1}
    q4, q5 = mix_types(GLM, "q4_k_m"), mix_types(GLM, "q5_k_m")
    assert q5 == {name: changed.get(kind, kind) for name, kind in q4.items()}
    assert {name for name, kind in q5.items() if kind is Q.Q5_1} == {n for n in q5 if "attn_k_b" in n}  # rows of 192


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("name", [*CONFIGS, *PRESETS])
def test_every_mix_fits_every_row(mix: str, name: str) -> None:
    config = CONFIGS.get(name) or PRESETS[name]
    types = mix_types(config, mix)
    assert list(types) == list(file_tensors(config))
    for tensor, shape in file_tensors(config).items():
        assert tensor_bytes(shape, types[tensor]) > 0
        if "norm" in tensor or "gate_inp" in tensor or "bias" in tensor:
            assert types[tensor] is Q.F32


def test_fallbacks_for_short_rows() -> None:
    config = replace(BASE, n_embd=96, n_ff=256, n_ff_exp=24, q_lora=512)
    q4, q6 = mix_types(config, "q4_k_m"), mix_types(config, "q6_k")
    assert (q4["blk.0.ffn_up.weight"], q6["blk.0.ffn_up.weight"]) == (Q.Q5_0, Q.Q8_0)  # 96 = 3 * 32
    assert q4["output.weight"] is Q.Q8_0
    assert (q4["blk.1.ffn_down_exps.weight"], q6["blk.1.ffn_down_exps.weight"]) == (Q.F16, Q.F16)  # 24
    assert q4["blk.0.attn_q_b.weight"] is Q.Q4_K
    assert mix_types(config, "q8_0")["blk.1.ffn_down_exps.weight"] is Q.F16


def test_overrides() -> None:
    types = mix_types(GLM_3_LAYERS, "q4_k_m", [(r"attn_v_b", Q.Q8_0), (r"attn", Q.F16)])
    assert types["blk.1.attn_v_b.weight"] is Q.Q8_0 and types["blk.1.attn_k_b.weight"] is Q.F16
    assert types["blk.1.attn_norm.weight"] is Q.F32
    with pytest.raises(InputError) as caught:
        mix_types(GLM_3_LAYERS, "q8_0", [("attn_k_b", Q.Q4_K)])
    assert str(caught.value) == (
        "tensor blk.0.attn_k_b.weight has rows of 192, expected a multiple of 256 for Q4_K; choose another type for it"
    )


def test_rotated_parts_begin_a_word() -> None:
    for name, kv_lora, refused in (("q8_0", 44, False), ("q8_0", 42, True), ("q4_0", 44, True), ("f16", 42, False)):
        config, path = replace(GLM, kv_lora=kv_lora), get_path("mla", name)
        if not refused:
            require_whole_words(config, path)
            continue
        with pytest.raises(InputError) as caught:
            require_whole_words(config, path)
        aligned = {"q8_0": 4, "q4_0": 8}[name]
        assert str(caught.value) == (
            f"kv_lora_rank {kv_lora}, expected a multiple of {aligned} for a cache of {name}; choose another with "
            "--cache"
        )


def test_paths_over_a_cache_of_each_type() -> None:
    assert get_path("mla") == PATHS["mla"] and get_path("mha", "f16").number_bytes == 2
    wide = get_path("mla-v", "f32")
    assert (wide.name, wide.layout, wide.number_bytes) == ("mla-v", CacheLayout.LATENT_V, 4)
    assert cache_bytes_per_token(GLM, wide.layout, "f32") == 2 * cache_bytes_per_token(GLM, wide.layout, "f16")
    for name, cache_type, expected in (
        ("mlx", "f16", "path 'mlx' is unknown, expected one of mla, mla-v, mha; choose one with --path"),
        (
            "mla",
            "q5_1",
            "cache type 'q5_1' has no kernel, expected one of f16, f32, q8_0, q4_0; choose one with --cache",
        ),
        (
            "mha",
            "q8_0",
            "path 'mha' keeps values transposed, which q8_0 has no blocks for; expected a cache of f16 or f32; choose "
            "it with --cache, or another --path",
        ),
    ):
        with pytest.raises(InputError) as caught:
            get_path(name, cache_type)
        assert str(caught.value) == expected
