"""What the roofline counts, against the model itself and against sums done by hand."""

import pytest
import torch

from diffusiongemma.bench.presets import PRESETS, preset_config
from diffusiongemma.bench.roofline import Cost, Rates, measure_rates, parameters, step_cost
from diffusiongemma.generation import empty_transformer
from diffusiongemma.generation.roles import touched_experts
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.transformer import Transformer
from tests.tiny import tiny_config


@pytest.mark.parametrize(
    "config",
    [
        *(preset_config(preset) for preset in PRESETS.values()),
        preset_config(PRESETS["26b"], layers=6),
        tiny_config(attention_bias=True),
        tiny_config(num_global_key_value_heads=None, num_experts=8, top_k_experts=3),
    ],
    ids=[*PRESETS, "26b, 6 layers", "bias", "other heads"],
)
def test_counted_parameters_are_those_of_the_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(parameters(config).values()) == sum(weight.numel() for weight in model.parameters())


def test_each_part_is_its_own() -> None:
    """The sum could be right and two parts wrong."""
    config = tiny_config()
    model = empty_transformer(config, torch.float32, torch.device("meta"))
    parts = parameters(config)
    named = {name: weight.numel() for name, weight in model.named_parameters()}
    for part, mark in {"experts": ".experts.", "router": ".router.", "dense": ".mlp.", "attention": ".self_attn."}.items():
        assert parts[part] == sum(size for name, size in named.items() if mark in name), part
    assert parts["self_conditioning"] == sum(size for name, size in named.items() if name.startswith("self_conditioning"))


def test_touched_experts() -> None:
    assert touched_experts(8, 2, 1) == pytest.approx(2)
    assert touched_experts(4, 1, 2) == pytest.approx(1.75)  # a quarter of the time both choose the same
    assert touched_experts(128, 8, 4096) == pytest.approx(128)
    assert touched_experts(1, 1, 1) == 1


def test_a_step_by_hand() -> None:
    """Two sliding layers (window 8) and a full one, batch 2, canvas 8, context 20, bfloat16."""
    config = tiny_config()
    cost = step_cost(config, batch=2, context=20, element_bytes=2)
    # Keys and values: 2 heads of 8 for the last 7 tokens, 1 head of 16 for all 20.
    assert cost.moved["cache"] == 2 * 2 * (2 * (2 * 2 * 8) * 7 + (2 * 1 * 16) * 20)
    assert cost.moved["head"] == cost.moved["soft_embedding"] == 2 * 64 * 32
    assert cost.moved["embedding"] == 2 * 16 * 32
    assert cost.operations["head"] == 2 * 16 * 64 * 32
    # Scores and weighted sums: 4 heads, each query sees its context and the canvas.
    assert cost.operations["scores"] == 2 * 16 * 2 * 4 * (2 * 8 * (7 + 8) + 16 * (20 + 8))
    assert cost.operations["experts"] == 2 * 16 * 3 * 2 * (3 * 32 * 16)
    assert cost.total_bytes == sum(cost.moved.values()) and cost.total_operations == sum(cost.operations.values())


def test_the_slower_of_two_decides() -> None:
    rates = Rates(copy_bytes_per_second=100.0, operations_per_second=1000.0)
    assert rates.floor_seconds(Cost({"a": 150.0, "b": 50.0}, {"a": 1000.0})) == 2.0
    assert rates.floor_seconds(Cost({"a": 100.0}, {"a": 1000.0, "b": 4000.0})) == 5.0


def test_rates_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusiongemma.bench.roofline.COPY_BYTES", {"cpu": 1 << 22})
    monkeypatch.setattr("diffusiongemma.bench.roofline.MATRIX_SIZE", {"cpu": 128})
    rates = measure_rates(torch.device("cpu"), torch.float32)
    assert 1e7 < rates.copy_bytes_per_second < 1e13
    assert 1e7 < rates.operations_per_second < 1e15
