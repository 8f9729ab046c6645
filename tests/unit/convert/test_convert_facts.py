"""A model's facts from config.json, in both spellings; every rejection names its key."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_hf import config_of

from nemo_minordpo.convert.facts import ModelFacts, facts_from_config, read_config
from nemo_minordpo.errors import UserError

LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def facts_of(model_type: str = "llama", **changes: Any) -> ModelFacts:
    return facts_from_config(config_of(model_type, **changes), where="hf/config.json")


def test_llama_by_hand() -> None:
    assert facts_of() == ModelFacts(
        model_type="llama",
        num_layers=3,
        hidden_size=24,
        ffn_hidden_size=20,
        num_heads=6,
        num_kv_heads=2,
        head_dim=4,
        vocab_size=131,
        max_positions=64,
        norm_epsilon=1e-5,
        rope_base=20000.0,
        rope_linear_factor=None,
        rope_llama31=False,
        qkv_bias=False,
        qk_norm=False,
        sliding_window=None,
        tied=False,
        init_std=0.02,
    )


def test_qwen2_has_a_bias_on_query_key_and_value() -> None:
    assert facts_of("qwen2") == replace(facts_of(), model_type="qwen2", qkv_bias=True)


def test_qwen3_has_norms_of_queries_and_keys_instead() -> None:
    assert facts_of("qwen3") == replace(facts_of(), model_type="qwen3", qk_norm=True)


@pytest.mark.parametrize(
    ("said", "window"),
    [
        ({}, 4096),  # transformers' default for a missing key
        ({"sliding_window": None}, None),
        ({"sliding_window": 4096}, 4096),
        ({"sliding_window": 32767}, 32767),
        ({"sliding_window": 32768}, None),  # never hides anything
    ],
)
def test_mistrals_window(said: dict[str, Any], window: int | None) -> None:
    config = {**config_of("mistral", max_position_embeddings=32768), **said}
    facts = facts_from_config(config, where="test")
    assert facts.sliding_window == window
    assert facts.whole_context == (window or 32768)
    assert replace(facts, sliding_window=None) == facts_of(
        "mistral", max_position_embeddings=32768, sliding_window=32768
    )


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_a_window_that_nothing_turns_on_is_none(model_type: str) -> None:
    facts = facts_of(model_type, sliding_window=16, use_sliding_window=False)
    assert facts.sliding_window is None
    assert facts.whole_context == 64


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 1e6}, {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
        (
            {"rope_theta": 5e5, "rope_scaling": LLAMA31},
            {"rope_parameters": {**LLAMA31, "rope_theta": 500000}},
        ),
        (
            {"rope_theta": 3e4, "rope_scaling": {"type": "linear", "factor": 4}},
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e4}},
        ),
    ],
    ids=["default", "llama31", "linear"],
)
def test_transformers_4_and_5_spell_the_same_facts(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert facts_of(**old) == facts_of(rope_theta=None, torch_dtype=None, dtype="float32", **new)
    assert facts_of(**old).rope_base == old["rope_theta"]


def test_rope_scalings_that_can_be_represented() -> None:
    assert facts_of(rope_scaling={"rope_type": "linear", "factor": 2.5}).rope_linear_factor == 2.5
    assert facts_of(rope_scaling=LLAMA31).rope_llama31
    assert facts_of(rope_scaling=LLAMA31).rope_linear_factor is None
    assert not facts_of(rope_scaling={"rope_type": "default"}).rope_llama31


def test_defaults_are_transformers_own() -> None:
    assert facts_of(rope_theta=None).rope_base == 10000.0
    assert facts_of(num_key_value_heads=None).num_kv_heads == 6
    assert facts_of("qwen2", num_attention_heads=64, head_dim=4, num_key_value_heads=None).num_kv_heads == 32
    assert facts_of(tie_word_embeddings=None).tied is False
    assert facts_of(head_dim=16).head_dim == 16
    assert facts_of(head_dim=None, hidden_size=36).head_dim == 6
    assert facts_of("mistral", head_dim=None, hidden_size=36).head_dim == 6
    assert facts_of("mistral", num_attention_heads=16, num_key_value_heads=None).num_kv_heads == 8
    assert facts_of("qwen3", head_dim=None).head_dim == 128
    assert facts_of("qwen3", num_attention_heads=64, num_key_value_heads=None).num_kv_heads == 32


@pytest.mark.parametrize(("size", "padded"), [(1, 128), (127, 128), (128, 128), (129, 256), (403, 512), (49152, 49152)])
def test_padded_vocabulary(size: int, padded: int) -> None:
    assert facts_of(vocab_size=size).padded_vocab_size == padded


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mixtral"}, "model_type='mixtral'"),
    ({"model_type": "mistral3"}, "model_type='mistral3'"),
    ({"model_type": "qwen2_moe"}, "model_type='qwen2_moe'"),
    ({"model_type": "qwen3_moe"}, "model_type='qwen3_moe'"),
    ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "attention_bias": True}, "attention_bias=True"),
    ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 0}, "sliding_window=0"),
    ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": "4096"}, "must be int"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "architectures="),
    ({"attention_bias": True}, "attention_bias=True"),
    ({"mlp_bias": True}, "mlp_bias=True"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ({"rope_interleaved": True}, "rope_interleaved=True"),
    ({"use_sliding_window": True}, "use_sliding_window=True"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
    ({"num_experts": 8}, "num_experts=8"),
    ({"num_local_experts": 8}, "num_local_experts=8"),
    ({"n_routed_experts": 64}, "n_routed_experts=64"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling: rope_type='yarn'"),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling: type='dynamic'"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling: rope_type='longrope'"),
    ({"rope_scaling": {**LLAMA31, "factor": 32.0}}, "rope_scaling: factor=32.0"),
    ({"rope_scaling": {**LLAMA31, "low_freq_factor": 2.0}}, "rope_scaling: low_freq_factor=2.0"),
    ({"rope_scaling": {**LLAMA31, "high_freq_factor": 8.0}}, "rope_scaling: high_freq_factor=8.0"),
    (
        {"rope_scaling": {**LLAMA31, "original_max_position_embeddings": 4096}},
        "rope_scaling: original_max_position_embeddings=4096",
    ),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}, "disagree"),
    ({"rope_parameters": {"rope_theta": 2e4, "partial_rotary_factor": 0.25}}, "rope_parameters: partial_rotary_factor"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 2e4}}}, "rope_parameters: full_attention="),
    (
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        "rope_scaling and rope_parameters disagree",
    ),
    ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: key 'factor' is missing"),
    ({"num_key_value_heads": 4}, "num_attention_heads=6 is not a multiple of num_key_value_heads=4"),
    ({"hidden_size": 25, "head_dim": None}, "hidden_size=25 is not a multiple"),
    ({"head_dim": 5}, "head_dim=5"),
    ({"hidden_size": 0}, "hidden_size=0 must be positive"),
    ({"hidden_size": "24"}, "hidden_size='24' must be int, not str"),
    ({"num_hidden_layers": True}, "num_hidden_layers=True must be int"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false' must be bool"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5' must be float"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_refused_by_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=r"^hf/config\.json: ") as error:
        facts_from_config({**config_of(), **changes}, where="hf/config.json")
    assert said in str(error.value)


def test_the_unchanged_config_is_not_refused() -> None:
    harmless = {"attention_bias": False, "use_sliding_window": False, "sliding_window": 4096, "num_experts": None}
    assert facts_from_config({**config_of(), **harmless}, where="x") == facts_of()


@pytest.mark.parametrize(
    "key",
    [
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
        "max_position_embeddings", "rms_norm_eps",
    ],
)  # fmt: skip
def test_missing_key_is_named(key: str) -> None:
    config = config_of()
    del config[key]
    with pytest.raises(UserError, match=f"hf/config.json: key '{key}' is missing"):
        facts_from_config(config, where="hf/config.json")


def test_unreadable_config_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match=r"config\.json: invalid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="a JSON object was expected, not list"):
        read_config(tmp_path)
