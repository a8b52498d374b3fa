"""config.json: both spellings in, every refusal by name, and out again as transformers reads it."""

import time
from dataclasses import replace
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
        ({"is_causal": False}, "is_causal is False, which is not supported; allowed: true"),
        ({"enable_moe_block": False}, "enable_moe_block is false: no experts"),
        ({"attention_k_eq_v": 1}, "attention_k_eq_v is 1; it must be true or false"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers is 2"),
        ({"use_double_wide_mlp": True}, "use_double_wide_mlp is True"),
        ({"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input is 256"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar is 256"),
        ({"attention_chunk_size": 64}, "attention_chunk_size is 64"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "rope_scaling is"),
        ({"rope_theta": 5e5}, "rope_theta is 500000.0"),
        ({"rope_local_base_freq": 5e5}, "rope_local_base_freq is 500000.0"),
        ({"sliding_window_pattern": 4, "layer_types": None}, "sliding_window_pattern is 4"),
        ({"activation_sparsity_pattern": [0.95, 0.0]}, "activation_sparsity_pattern"),
        ({"altup_num_inputs": 4}, "altup_num_inputs is 4"),
        ({"laurel_rank": 64}, "laurel_rank is 64"),
        ({"num_experts_per_tok": 3}, "num_experts_per_tok is 3"),
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
        ({"tie_word_embeddings": False}, "reads only tied"),
        ({"canvas_length": 0}, "canvas_length is 0"),
        ({"canvas_length": None}, "canvas_length is None"),
        ({"text_config": None}, "no text_config"),
        ({"quantization_config": "fp8"}, "quantization_config is 'fp8'; it must be an object"),
        ({"generation_config": []}, r"generation_config is \[\]; it must be an object"),
        ({"eos_token_id": [1, "end"]}, "eos_token_id is 'end'"),
        ({"pad_token_id": -1}, "pad_token_id is -1"),
    ],
)
def test_refusals_of_the_whole(top: dict[str, Any], needle: str) -> None:
    with pytest.raises(ConfigError, match=needle):
        read(**top)


def test_bookkeeping_of_transformers_is_passed_over() -> None:
    extra = {"architectures": ["X"], "dtype": "bfloat16", "transformers_version": "5.30", "id2label": {}}
    assert read({"dtype": "bfloat16", "_attn_implementation_autoset": False}, **extra) == read()
    assert TEXT["hidden_size"] == read().text.hidden_size


def test_an_unknown_field_is_named_once_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    data = {**config_dict(colour="red"), "flavour": {"sweet": [1, None]}}
    data["vision_config"]["smell"] = 3
    config = ModelConfig.from_dict(data)
    assert replace(config, vision=read().vision) == read()
    assert len(caplog.records) == 1
    for name in ("flavour", "text_config.colour", "vision_config.smell"):
        assert name in caplog.text
    for written in (config.to_dict(), replace(config, canvas_length=4).to_dict()):
        assert written["text_config"]["colour"] == "red"
        assert written["flavour"] == {"sweet": [1, None]} and written["vision_config"]["smell"] == 3
    assert replace(config, canvas_length=4).to_dict()["canvas_length"] == 4
    assert len(caplog.records) == 1, "writing logs nothing"


def test_a_changed_config_is_written_as_it_is_now() -> None:
    config = read({"eos_token_id": 5})
    changed = replace(config, text=replace(config.text, sliding_window=4), eos_token_id=(7,))
    written = changed.to_dict()
    assert (written["text_config"]["sliding_window"], written["eos_token_id"]) == (4, [7])
    assert ModelConfig.from_dict(written) == changed


def test_what_was_read_is_not_shared_with_the_caller() -> None:
    data = config_dict(colour=["red"])
    config = ModelConfig.from_dict(data)
    data["text_config"]["colour"].append("green")
    config.to_dict()["text_config"]["colour"].append("blue")
    assert config.to_dict()["text_config"]["colour"] == ["red"]


@pytest.mark.parametrize(
    ("top", "text", "stops"),
    [
        ([1, 106], 1, (1, 106)),
        (None, [3, 4], (3, 4)),
        (7, 1, (7,)),
        ([], 1, ()),
        (None, None, ()),
    ],
)
def test_stop_tokens_at_the_top_come_first(top: Any, text: Any, stops: tuple[int, ...]) -> None:
    data = config_dict()
    data["text_config"]["eos_token_id"] = text
    assert ModelConfig.from_dict({**data, "eos_token_id": top}).stop_ids == stops


def test_nulls_are_defaults(caplog: pytest.LogCaptureFixture) -> None:
    """Those that transformers reads so, and those that it refuses, which are named."""
    data = config_dict()
    names = ("layer_types", "rope_parameters", "attention_dropout", "is_causal", "num_kv_shared_layers", "enable_moe_block")
    data["text_config"] |= dict.fromkeys(names)
    assert ModelConfig.from_dict(data) == read(drop=("layer_types",))
    assert "is_causal" in caplog.text and "layer_types" not in caplog.text
    caplog.clear()
    data = config_dict()
    data["text_config"] |= {"sliding_window": None, "attention_bias": None, "tie_word_embeddings": None}
    config = ModelConfig.from_dict({**data, "tie_word_embeddings": None})
    assert config == read(drop=("sliding_window",))
    assert "sliding_window" in caplog.text
    written = config.to_dict()
    assert written["tie_word_embeddings"] is True and None not in written["text_config"].values()


def test_a_null_per_layer_config_is_no_override_unless_the_flat_fields_say_more() -> None:
    from transformers import DiffusionGemmaTextConfig

    data = config_dict(global_head_dim=None, num_global_key_value_heads=None)
    data["text_config"]["per_layer_config"] = None
    theirs = DiffusionGemmaTextConfig(**data["text_config"])
    assert [layer.head_dim for layer in ModelConfig.from_dict(data).text.layers] == [theirs.head_dim] * 3 == [8] * 3
    data["text_config"]["global_head_dim"] = 16
    assert [layer.head_dim for layer in ModelConfig.from_dict(data).text.layers] == [8, 8, 16]


@pytest.mark.parametrize("fields", [{"rope_theta": 1e6, "rope_local_base_freq": 1e4}, {"sliding_window_pattern": 3}])
def test_older_spellings_that_agree_are_passed_over(fields: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert read(fields) == read()
    assert not caplog.records


def test_a_quantised_config_keeps_how_it_is_stored() -> None:
    how = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    config = read(quantization_config=how, quantization={"bits": 4})
    assert config.quantization == how
    assert read(quantization={"bits": 4}).quantization == {"bits": 4}
    assert read(quantization_config=None).quantization is None
    assert config.to_dict()["quantization_config"] == how
    plain = replace(config, quantization=None).to_dict()
    assert "quantization_config" not in plain and "quantization" not in plain


@pytest.mark.parametrize("count", [10**6, 10**12, 10**400])
def test_absurd_sizes_are_refused_at_once(count: int) -> None:
    began = time.process_time()
    with pytest.raises(ConfigError, match="must be at most"):
        read({"num_hidden_layers": count, "layer_types": None})
    with pytest.raises(ConfigError, match=r"must be at most|rms_norm_eps"):
        read({"hidden_size": max(count, 2**31), "rms_norm_eps": count})
    assert time.process_time() - began < 1
