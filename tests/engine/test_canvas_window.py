"""``canvas_window`` on its way from an option, or a checkpoint, to the masks of the passes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.errors import ConfigError, OptionError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.model.transformer import PassMetadata
from diffusiongemma.text.questions import Predicate
from tests.tiny import tiny_model, tiny_transformer

LONG, SHORT = "abcdefghijklmnopqrstuvwxyz", "a"
OPTIONS: dict[str, Any] = {"num_diffusion_steps": 4, "max_tokens": 8, "seed": 1, "early_stop": False}


@pytest.fixture
def model(tmp_path: Path) -> DiffusionGemmaModel:
    return tiny_model(tmp_path, tiny_transformer(scale=0.4), stop_ids=(63,))


@pytest.fixture
def masked(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a canvas's window was masked, pass by pass and row by row."""
    seen: list[bool] = []
    denoise = model.transformer.denoise_rows

    def watched(canvases: Any, softs: Any, metadata: list[PassMetadata]) -> Any:
        seen.extend(one.segment.masks["sliding_attention"] is not None for one in metadata)
        return denoise(canvases, softs, metadata)

    monkeypatch.setattr(model.transformer, "denoise_rows", watched)
    return seen


def test_an_option_reaches_the_passes(model: DiffusionGemmaModel, masked: list[bool]) -> None:
    shared = model.generate(LONG, **OPTIONS)
    assert masked == [False] * 4
    masked.clear()
    moving = model.generate(LONG, canvas_window="per_position", **OPTIONS)
    assert masked == [True] * 4 and moving.token_ids != shared.token_ids
    assert model.generate(LONG, canvas_window="shared", **OPTIONS).token_ids == shared.token_ids


def test_each_row_has_its_own(model: DiffusionGemmaModel, masked: list[bool]) -> None:
    """In one batch a context shorter than the window, and a longer one; each as it is alone."""
    alone = [model.generate(prompt, canvas_window="per_position", **OPTIONS).token_ids for prompt in (SHORT, LONG)]
    masked.clear()
    together = model.generate([SHORT, LONG], canvas_window="per_position", **OPTIONS)
    assert masked == [True, True] * 4, "a canvas of 8 and a token are more than a window of 8"
    assert [result.token_ids for result in together] == alone


def test_a_checkpoint_may_say_it(tmp_path: Path, model: DiffusionGemmaModel) -> None:
    model.defaults = SamplingParams(canvas_window="per_position")
    model.save_pretrained(tmp_path / "saved")
    loaded = DiffusionGemmaModel.from_pretrained(tmp_path / "saved")
    assert loaded.defaults.canvas_window == "per_position"
    assert loaded.generate(LONG, **OPTIONS).token_ids == model.generate(LONG, **OPTIONS).token_ids
    with pytest.raises(ConfigError, match="canvas_window is 'moving'; allowed: shared, per_position"):
        SamplingParams.from_generation_config({"diffusiongemma": {"canvas_window": "moving"}})


def test_decisions_and_the_bare_pass_take_the_checkpoints(model: DiffusionGemmaModel, masked: list[bool]) -> None:
    questions = [Predicate("p", yes="y", no="n")]
    model.decide(LONG, questions)
    assert masked and not any(masked)
    masked.clear()
    model.defaults = SamplingParams(canvas_window="per_position")
    model.decide(LONG, questions)
    assert masked and all(masked)
    cache, canvas = model.new_cache(), torch.arange(8)[None]
    model.encode(torch.arange(26)[None], cache)
    moving, shared = model.denoise(canvas, cache), model.denoise(canvas, cache, canvas_window="shared")
    assert torch.equal(moving, model.denoise(canvas, cache, canvas_window="per_position")) and not torch.equal(moving, shared)


def test_another_word_is_refused(model: DiffusionGemmaModel) -> None:
    with pytest.raises(OptionError, match="canvas_window is 'moving'; allowed: shared, per_position"):
        model.generate(LONG, canvas_window="moving")
