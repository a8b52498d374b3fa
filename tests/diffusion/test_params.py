"""Sampling parameters: defaults from the checkpoint, the caller's word over them, and no value that makes no sense."""

import logging
from typing import Any

import pytest

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.errors import ConfigError, OptionError


def test_defaults_are_the_references() -> None:
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaGenerationConfig

    theirs = DiffusionGemmaGenerationConfig._get_default_generation_params()
    ours = SamplingParams()
    assert (ours.num_diffusion_steps, ours.max_tokens) == (theirs["max_denoising_steps"], theirs["max_new_tokens"])
    assert (ours.t_min, ours.t_max) == (theirs["t_min"], theirs["t_max"])
    assert (ours.stability, ours.confidence) == (theirs["stability_threshold"], theirs["confidence_threshold"])
    assert ours.entropy_bound == theirs["sampler_config"].entropy_bound


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_diffusion_steps": 0},
        {"num_diffusion_steps": 2.5},
        {"num_diffusion_steps": True},
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"entropy_bound": 0},
        {"entropy_bound": float("nan")},
        {"entropy_bound": "much"},
        {"t_min": -0.1},
        {"t_max": 0.0, "t_min": 0.0},
        {"t_max": 0.3},
        {"t_max": float("inf")},
        {"stability": -1},
        {"confidence": 0.0},
        {"seed": -1},
        {"seed": 2**63},
        {"commit": "worst"},
        {"schedule": "steps"},
        {"stop_rule": "never"},
        {"self_conditioning": "off"},
        {"early_stop": 1},
        {"stop": ("",)},
        {"temperature": -1.0},
    ],
)
def test_values_that_make_no_sense_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))) as caught:
        SamplingParams().replaced(**wrong)
    assert repr(next(iter(wrong.values()))) in str(caught.value)


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"unknown option top_a; allowed: .*entropy_bound"):
        SamplingParams().replaced(top_a=0.9)


def test_unset_keeps_the_default_and_stop_takes_a_string() -> None:
    params = SamplingParams(num_diffusion_steps=5).replaced(num_diffusion_steps=None, seed=3, stop="END")
    assert (params.num_diffusion_steps, params.seed, params.stop) == (5, 3, ("END",))
    assert SamplingParams().replaced(stop=["a", "b"]).stop == ("a", "b")


def test_generation_config_there_and_back() -> None:
    params = SamplingParams(
        num_diffusion_steps=7, entropy_bound=0.3, t_min=0.1, t_max=0.2, stability=2, confidence=0.01, max_tokens=9
    )
    assert SamplingParams.from_generation_config(params.to_generation_config()) == params


def test_what_transformers_has_no_name_for_goes_there_and_back_too() -> None:
    params = SamplingParams(schedule="cosine", stop_rule="answer", commit="accepted", self_conditioning=False)
    written = params.to_generation_config()
    assert set(written["diffusiongemma"]) == {"schedule", "stop_rule", "commit", "self_conditioning"}
    assert SamplingParams.from_generation_config(written) == params
    assert "diffusiongemma" not in SamplingParams().to_generation_config()
    with pytest.raises(ConfigError, match="stop_rule"):
        SamplingParams.from_generation_config({"diffusiongemma": {"stop_rules": "answer"}})
    with pytest.raises(ConfigError, match="diffusiongemma"):
        SamplingParams.from_generation_config({"diffusiongemma": "answer"})


def test_nulls_in_a_generation_config_are_unset() -> None:
    written = {"max_denoising_steps": None, "sampler_config": None, "t_max": None, "transformers_version": "5.23.0"}
    assert SamplingParams.from_generation_config(written) == SamplingParams()


def test_a_wrong_generation_config_is_a_config_error(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"generation_config.json: num_diffusion_steps is 0"):
        SamplingParams.from_generation_config({"max_denoising_steps": 0})
    with pytest.raises(ConfigError, match="OtherSampler"):
        SamplingParams.from_generation_config({"sampler_config": {"_cls_name": "OtherSampler", "x": 1}})
    with caplog.at_level(logging.WARNING):
        SamplingParams.from_generation_config({"repetition_penalty": 1.2})
    assert "repetition_penalty is not followed" in caplog.text
