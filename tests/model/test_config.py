"""config.json: both spellings in, every refusal by name, and out again as transformers reads it."""

from typing import Any

import pytest

from diffusiongemma.errors import ConfigError
from diffusiongemma.model.config import FULL, SLIDING, ModelConfig
from tests.tiny import TEXT, config_dict


def read(text: dict[str, Any] | None = None, drop: tuple[str, ...] = (), **top: Any) -> ModelConfig:
    data = config_dict(**(text or {}))
    for name in drop:
        del data["text_config"][name]
    return ModelConfig.from_dict({**data, **top})


def test_both_spellings_are_one() -> None:
    nested = {"global_head_dim": None, "num_global_key_value_heads": None}
    nested["per_layer_config"] = {"2": {"head_dim": 16, "num_key_value_heads": 1}}  # type: ignore[assignment]
    assert read(nested) == read()
    assert [layer.head_dim for layer in read().text.layers] == [8, 8, 16]
    assert [layer.num_key_value_heads for layer in read().text.layers] == [2, 2, 1]


def test_what_is_written_is_read_back_by_us_and_by_transformers() -> None:
    from transformers import DiffusionGemmaConfig

    config = read()
    assert ModelConfig.from_dict(config.to_dict()) == config
    theirs = DiffusionGemmaConfig(**{key: value for key, value in config.to_dict().items() if key != "model_type"})
    again = ModelConfig.from_dict(theirs.to_dict())
    assert (again.text, again.canvas_length) == (config.text, config.canvas_length)
    assert theirs.text_config.per_layer_config[2].head_dim == 16


def test_absent_fields_have_the_references_defaults() -> None:
    from transformers import DiffusionGemmaTextConfig

    drop = ("vocab_size", "sliding_window", "layer_types", "num_hidden_layers", "global_head_dim", "max_position_embeddings")
    config = read(drop=drop).text
    theirs = DiffusionGemmaTextConfig(num_experts=4, top_k_experts=2, moe_intermediate_size=16)
    assert (config.vocab_size, config.sliding_window) == (theirs.vocab_size, theirs.sliding_window) == (262_144, 512)
    assert list(config.layer_types) == theirs.layer_types
    assert config.layer_types[:6] == (SLIDING,) * 5 + (FULL,)
    assert config.final_logit_softcapping == theirs.final_logit_softcapping
    assert config.max_position_embeddings == theirs.max_position_embeddings
    assert config.head_dim_of(FULL) == theirs.per_layer_config[5].head_dim == 512


def test_the_last_layer_is_always_full() -> None:
    assert read({"layer_types": [SLIDING] * 3}).text.layer_types == (SLIDING, SLIDING, FULL)


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ({"colour": "red"}, "unknown field colour"),
        ({"num_experts": None}, "lacks num_experts"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"top_k_experts": 5}, "top_k_experts 5 exceeds num_experts 4"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"num_global_key_value_heads": 3}, "layer 2 has 3 key-value heads"),
        ({"head_dim": 7}, "must be even"),
        ({"hidden_activation": "swish9"}, "'swish9' is not known; allowed: gelu_pytorch_tanh"),
        ({"final_logit_softcapping": 0.0}, "final_logit_softcapping is 0.0"),
        ({"use_bidirectional_attention": "all"}, "no longer causal"),
        ({"tie_word_embeddings": False}, "only tied"),
        ({"attention_k_eq_v": False}, "attention_k_eq_v"),
        ({"layer_types": [SLIDING, FULL]}, "2 entries for num_hidden_layers 3"),
        ({"layer_types": [SLIDING, "linear_attention", FULL]}, "linear_attention; allowed"),
        ({"per_layer_config": {"7": {"head_dim": 4}}}, "names layer 7"),
        ({"per_layer_config": {"1": {"window": 4}}}, "unknown field window"),
        ({"per_layer_config": {"1": {"head_dim": 4}, "2": {"head_dim": 16}}}, "different head_dim"),
        ({"rope_parameters": {SLIDING: {"rope_type": "default"}}}, "lacks full_attention"),
        ({"rope_parameters": {SLIDING: {"rope_type": "yarn"}, FULL: {}}}, "rope_type 'yarn'"),
        ({"rope_parameters": {SLIDING: {"beta": 1}, FULL: {}}}, "unknown field beta"),
        ({"rope_parameters": {SLIDING: {"partial_rotary_factor": 0.5}, FULL: {}}}, "needs rope_type 'proportional'"),
    ],
)
def test_refusals_of_the_text_part(text: dict[str, Any], needle: str) -> None:
    with pytest.raises(ConfigError, match=needle):
        read(text)


@pytest.mark.parametrize(
    ("top", "needle"),
    [
        ({"model_type": "gemma4"}, "model_type 'gemma4'"),
        ({"colour": 1}, "unknown field colour"),
        ({"tie_word_embeddings": False}, "reads only tied"),
        ({"canvas_length": 0}, "canvas_length is 0"),
        ({"canvas_length": None}, "canvas_length is None"),
        ({"text_config": None}, "no text_config"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, r"quantised \(compressed-tensors\)"),
    ],
)
def test_refusals_of_the_whole(top: dict[str, Any], needle: str) -> None:
    with pytest.raises(ConfigError, match=needle):
        read(**top)


def test_bookkeeping_of_transformers_is_passed_over() -> None:
    extra = {"architectures": ["X"], "dtype": "bfloat16", "transformers_version": "5.30", "id2label": {}}
    assert read({"dtype": "bfloat16", "_attn_implementation_autoset": False}, **extra) == read()
    assert TEXT["hidden_size"] == read().text.hidden_size
