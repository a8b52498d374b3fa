"""The step of ``check`` against transformers: all layers and the first ones, in bfloat16, and what is said of the distance."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, DiffusionGemmaForBlockDiffusion

from diffusiongemma.generation.check import check, forward, published, run, texts
from diffusiongemma.model.config import ModelConfig
from tests.parity.reference import write_checkpoint
from tests.tiny import letters

PROMPT = [2, 5, 7, 11, 13, 17]
LAYERS = 8


def theirs(folder: Path, layers: int) -> torch.Tensor:
    """transformers' logits of the first step, loaded with so many layers as its own test does it."""
    config = AutoConfig.from_pretrained(folder)
    config.text_config.num_hidden_layers = layers
    config.text_config.layer_types = config.text_config.layer_types[:layers]
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(
        folder, config=config, dtype=torch.bfloat16, experts_implementation="eager"
    )
    with torch.no_grad():
        out = model.eval()(input_ids=torch.tensor([PROMPT]), decoder_input_ids=torch.arange(32)[None])
    return out.logits[0, :10, :12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(
        target, scale=0.2, canvas_length=32, weight_dtype=torch.bfloat16, num_hidden_layers=LAYERS,
        layer_types=(["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention", "full_attention"]),
    )  # fmt: skip
    letters(target)
    return target


@pytest.fixture
def as_published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is published, as if this model were the released one."""
    config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    result = replace(
        published.published(),
        config=config,
        tensors={},
        control_tokens={},
        generation_config={},
        prompt=PROMPT,
        logits=theirs(folder, LAYERS).tolist(),
        logits_of_six_layers=theirs(folder, 6).tolist(),
    )
    for module in (published, forward, run, texts):
        monkeypatch.setattr(module, "published", lambda: result)
    monkeypatch.setitem(forward.TOLERANCES, LAYERS, forward.TOLERANCES[30])
    return result


def steps(folder: Path) -> dict[str, tuple[str, str]]:
    return {row.what: (row.verdict, row.detail) for row in check(folder).rows if row.what.startswith("denoising step")}


def test_both_stages_are_those_of_transformers(folder: Path, as_published: Any) -> None:
    result = steps(folder)
    assert set(result) == {"denoising step, first 6 layers", f"denoising step, all {LAYERS} layers"}
    for verdict, detail in result.values():
        assert verdict == "agrees" and "from the 120 published logits" in detail
        assert float(detail.split()[0]) < 0.1, "far inside of what is allowed"


def test_logits_of_other_weights_differ(folder: Path, as_published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(as_published, logits=(torch.tensor(as_published.logits) + 0.5).tolist())
    monkeypatch.setattr(forward, "published", lambda: other)
    result = steps(folder)
    assert result["denoising step, first 6 layers"][0] == "agrees"
    assert result[f"denoising step, all {LAYERS} layers"][0] == "differs"


def test_memory_that_is_not_there(folder: Path, as_published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "free_memory", lambda place: 1 << 20)
    ((verdict, detail),) = steps(folder).values()
    assert verdict == "not checked" and "are free" in detail
