"""The faster role: by arithmetic on rates, and rates that are measured on a sample of a stack."""

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.bench.presets import PRESETS, preset_config
from diffusiongemma.cli.main import app
from diffusiongemma.errors import OptionError
from diffusiongemma.generation.resident import Resident
from diffusiongemma.generation.roles import RoleRates, Roles, measure_roles, weights_of
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.expected import text_shapes
from diffusiongemma.quant import PackedWeight
from diffusiongemma.quant.samples import sample
from tests.tiny import tiny_model, tiny_transformer

RATES = RoleRates(canvas_length=10, step=0.2, commit=0.1, token=0.05)


def test_tokens_a_second_of_both_roles() -> None:
    assert RATES.tokens_per_second("causal", 4) == pytest.approx(20)
    assert RATES.tokens_per_second("diffusion", 4) == pytest.approx(10 / 0.9)
    assert RATES.tokens_per_second("diffusion", 4, tokens=5) == pytest.approx(5 / 0.9)
    border = RATES.max_steps()
    assert RATES.tokens_per_second("diffusion", border) == pytest.approx(20)
    assert (RATES.faster(border - 0.1), RATES.faster(border + 0.1)) == ("diffusion", "causal")


def test_auto_takes_what_was_seen_to_be_faster(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, stop_ids=(5,), max_tokens=16, num_diffusion_steps=6, early_stop=False)
    model.roles.rates = RATES

    def steps(**options: Any) -> int:
        return model.generate("abc", mode="auto", seed=1, **options).usage.denoising_steps

    assert steps() > 0  # nothing has been seen
    assert steps() == 0  # 6 steps, of 0.2 s, for at most 8 tokens, of 0.05
    assert steps(pins={3: 5}) > 0 and steps(regex="[a-z]+") > 0  # what the causal role cannot do
    model.roles.rates = RoleRates(canvas_length=10, step=0.001, commit=0.001, token=0.05)
    assert steps() > 0
    with pytest.raises(OptionError, match="mode is 'other'; allowed: diffusion, causal, exact, auto"):
        model.generate("abc", mode="other")


def test_rates_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DiffusionGemmaModel(tiny_transformer(), None, None, ())  # type: ignore[arg-type]
    roles, calls = Roles(), []
    monkeypatch.setattr("diffusiongemma.generation.roles.measure_roles", lambda *args, **options: calls.append(args) or RATES)
    monkeypatch.setattr(roles, "_canvases", 1)
    assert [roles.choose(model.transformer) for _ in range(3)] == ["causal"] * 3 and len(calls) == 1  # no token in one canvas


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_rates_of_a_sample_are_near_those_of_the_model(quantize: str | None) -> None:
    """Within a factor that a busy machine does not change: what is wrong would be wrong by more."""
    model = DiffusionGemmaModel.from_pretrained("nano", quantize=quantize)
    rates = measure_roles(model.config, weights_of(model.transformer), torch.float32, quantize=quantize)
    options: dict[str, Any] = {"seed": 1, "early_stop": False, "max_tokens": 64, "stop_rule": "canvas"}
    canvas = model.generate("abc", num_diffusion_steps=8, **options).canvases[0]
    assert rates.canvas_length == 64 and min(rates.step, rates.commit, rates.token) > 0
    assert 1 / 6 < rates.step / (canvas.seconds / 8) < 6
    assert 1 < rates.max_steps() < 1000


def cut(config: ModelConfig, **kinds: str) -> list[Resident]:
    """Weights of a shape, those whose names have a word in them of a kind."""
    result = []
    for name, shape in text_shapes(config.text).items():
        kind = next((kind for word, kind in kinds.items() if word in name and len(shape) > 1), "plain")
        result.append(Resident(name, shape, 2 * torch.Size(shape).numel(), kind))
    return result


def test_more_experts_and_words_than_a_sample_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halving the sample's experts and rows of the head must not halve what is told of the whole."""
    config = preset_config(PRESETS["tiny"])
    monkeypatch.setattr("diffusiongemma.generation.roles._MAX_ROWS", 128)
    monkeypatch.setattr("diffusiongemma.generation.roles._MAX_EXPERT_WEIGHTS", 2 * 3 * 32 * 16)
    rates = measure_roles(config, cut(config, experts="nvfp4", embed="fp8"), torch.float32, context=8)
    assert rates.step > 0 and rates.token > 0


@pytest.mark.parametrize("kind", ["plain", "fp8", "int8", "int4", "nvfp4", "mxfp4", "gguf-q4_k", "gguf-q8_0 + gguf-f16"])
def test_samples_are_finite_weights_of_their_kind(kind: str) -> None:
    weight = sample(kind, (2, 64, 256), torch.float32)
    one = weight[1] if isinstance(weight, torch.Tensor) else weight.expert(1).dequantize()
    assert one.shape == (64, 256) and bool(one.isfinite().all())
    assert isinstance(weight, PackedWeight) == (kind != "plain")
    if not kind.startswith("gguf"):
        assert 0.2 < one.square().mean().sqrt() * 256**0.5 < 5


def test_info_tells_both_roles() -> None:
    result = CliRunner().invoke(app, ["info", "nano", "--roles", "--steps", "5"])
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "at 5 steps a canvas" in said and "steps a canvas" in said
