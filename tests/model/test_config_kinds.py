"""A config.json whose values are of the wrong kind is refused in our words, not by a TypeError from somewhere inside."""

from typing import Any

import pytest

from diffusiongemma.errors import ConfigError
from diffusiongemma.model.config import FULL, SLIDING, ModelConfig
from tests.tiny import config_dict

FULL_ROPE = {"rope_type": "default", "rope_theta": 100.0}


@pytest.mark.parametrize(
    "text",
    [
        {"num_hidden_layers": 0, "layer_types": []},
        {"num_hidden_layers": "3"},
        {"num_hidden_layers": 2.0},
        {"head_dim": "8"},
        {"head_dim": 8.0},
        {"num_key_value_heads": "2"},
        {"num_key_value_heads": 2.0},
        {"global_head_dim": "16"},
        {"layer_types": FULL},
        {"layer_types": [1, 2, 3]},
        {"layer_types": 5},
        {"per_layer_config": []},
        {"per_layer_config": {"last": {"head_dim": 16}}},
        {"per_layer_config": {"1": 5}},
        {"per_layer_config": {"2": {"head_dim": "16"}}},
        {"rope_parameters": []},
        {"rope_parameters": {SLIDING: None, FULL: FULL_ROPE}},
        {"rope_parameters": {SLIDING: {"rope_theta": "wide"}, FULL: FULL_ROPE}},
        {"rope_parameters": {SLIDING: {"rope_theta": 0.0}, FULL: FULL_ROPE}},
        {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 0.0}, FULL: FULL_ROPE}},
        {"rope_parameters": {SLIDING: {"rope_type": "proportional", "partial_rotary_factor": 1.5}, FULL: FULL_ROPE}},
        {"rope_parameters": {SLIDING: {"dtype": "float32"}, FULL: FULL_ROPE}},
        {"rms_norm_eps": "1e-6"},
        {"rms_norm_eps": -1.0},
        {"attention_bias": "yes"},
        {"final_logit_softcapping": float("nan")},
        {"eos_token_id": "end"},
        {"eos_token_id": [1, "end"]},
        {"pad_token_id": "0"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_of_the_text_part(text: dict[str, Any]) -> None:
    data = config_dict()
    data["text_config"] |= text
    with pytest.raises(ConfigError):
        ModelConfig.from_dict(data)


@pytest.mark.parametrize(
    "top",
    [
        {"text_config": []},
        {"vision_config": 3},
        {"canvas_length": "8"},
        {"canvas_length": 8.0},
        {"canvas_length": True},
        {"image_token_id": "picture"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_of_the_whole(top: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ModelConfig.from_dict({**config_dict(), **top})
