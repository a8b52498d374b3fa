"""The released shape, without its weights: parameters as published (25.2 B, 3.8 B active a token)."""

from diffusiongemma.cli.info import memory_report
from diffusiongemma.model.config import ModelConfig

# Source: config.json of google/diffusiongemma-26B-A4B-it.
TEXT = {
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "num_hidden_layers": 30,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "global_head_dim": 512,
    "num_global_key_value_heads": 2,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
    "sliding_window": 1024,
    "max_position_embeddings": 262144,
    "use_bidirectional_attention": "vision",
}


def test_parameters_and_memory_of_the_26b() -> None:
    config = ModelConfig.from_dict({"model_type": "diffusion_gemma", "text_config": TEXT})
    report = memory_report(config)
    assert round(report["parameters"] / 1e9, 2) == 25.25
    assert round(report["active_parameters"] / 1e9, 2) == 3.84
    # Keys and values a token: 25 sliding layers of 8 heads of 256, 5 full layers of 2 heads of 512, two bytes each.
    assert report["cache_bytes_per_token"]["bfloat16"] == 2 * 2 * (25 * 8 * 256 + 5 * 2 * 512)
    assert config.canvas_length == 256 and config.text.vocab_size == 262_144
    assert [i for i, kind in enumerate(config.text.layer_types) if kind == "full_attention"] == [5, 11, 17, 23, 29]
