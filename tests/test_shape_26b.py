"""The released files, without the weights: what they say of shape and size, as published (25.2 B, 3.8 B active a token)."""

import logging
from typing import Any

import pytest

from diffusiongemma.cli.info import memory_report
from diffusiongemma.model.config import ModelConfig
from tests import released


def test_parameters_and_memory_of_the_26b() -> None:
    config = ModelConfig.from_dict(released.config())
    report = memory_report(config)
    assert round(report["parameters"] / 1e9, 2) == 25.25
    assert round(report["active_parameters"] / 1e9, 2) == 3.84
    # Keys and values a token: 25 sliding layers of 8 heads of 256, 5 full layers of 2 heads of 512, two bytes each.
    assert report["cache_bytes_per_token"]["bfloat16"] == 2 * 2 * (25 * 8 * 256 + 5 * 2 * 512)
    assert report["cache_bytes_per_token_before_the_window"]["bfloat16"] == 2 * 2 * 5 * 2 * 512
    # At 128 K: all tokens in 5 full layers (2.5 GiB), a window and a chunk of 1,024 in 25 sliding ones (0.39 GiB).
    at = {row["tokens"]: row["bfloat16"] for row in report["cache_bytes"]}
    assert list(at) == [4096, 32_768, 131_072, 262_144]
    assert at[131_072] == 131_072 * 20_480 + 2047 * 204_800 and round(at[131_072] / 2**30, 2) == 2.89
    assert round(131_072 * report["cache_bytes_per_token"]["bfloat16"] / 2**30, 1) == 27.5, "were every token kept in every layer"
    assert config.canvas_length == 256 and config.text.vocab_size == 262_144
    assert [i for i, kind in enumerate(config.text.layer_types) if kind == "full_attention"] == [5, 11, 17, 23, 29]


@pytest.mark.parametrize("kind", ["bf16", "fp8", "nvfp4"])
def test_the_released_configs_are_read_as_they_are_and_given_back(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    data = released.config(kind)
    with caplog.at_level(logging.DEBUG):
        config = ModelConfig.from_dict(data)
    assert not caplog.records, "every field is known"
    assert config.to_dict() == data == released.config(kind)
    assert config.quantization == data.get("quantization_config")
    assert (config.stop_ids, config.text.eos_token_id) == ((1, 106), (1,))
    assert config.text == ModelConfig.from_dict(released.config()).text
    assert config.vision is not None and config.vision["num_hidden_layers"] == 27


CIRCULATING: dict[str, Any] = {
    "pad_token_id": 0,
    "bos_token_id": 2,
    "audio_config": None,
    "audio_token_id": 258881,
    "video_token_id": 258884,
    "unsloth_fixed": True,
    "unsloth_version": "2026.6.1",
    "quantization": None,
    "generation_config": released.read("generation_config.json"),
    "text_config": {
        "is_causal": True,
        "enable_moe_block": True,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "use_double_wide_mlp": False,
        "attention_k_eq_v": True,
        "per_layer_config": None,
        "attention_dropout": None,
        "rope_scaling": None,
        "attn_logit_softcapping": None,
    },
}


def test_fields_seen_in_copies_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    plain = released.config()
    data = {**plain, **CIRCULATING, "text_config": {**plain["text_config"], **CIRCULATING["text_config"]}}
    config = ModelConfig.from_dict(data)
    assert config == ModelConfig.from_dict(plain)
    assert not caplog.records
    written = config.to_dict()
    assert written.pop("quantization", None) is None
    assert written == {name: value for name, value in data.items() if name != "quantization"}


def test_transformers_reads_the_released_config_as_we_do() -> None:
    from transformers import DiffusionGemmaConfig

    theirs = DiffusionGemmaConfig(**released.config())
    again = ModelConfig.from_dict(theirs.to_dict())
    ours = ModelConfig.from_dict(released.config())
    assert (again.text, again.canvas_length, again.stop_ids) == (ours.text, ours.canvas_length, ours.stop_ids)
