"""The tensors that a configuration asks for are those of the modules, ours and transformers'."""

import math
from typing import Any

import pytest
import torch
from transformers import AutoModel, Gemma4VisionConfig

from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.expected import text_shapes, vision_shapes
from diffusiongemma.model.transformer import Transformer
from tests import released
from tests.tiny import config_dict


@pytest.mark.parametrize("data", [config_dict(), config_dict(attention_bias=True), released.config()], ids=["tiny", "bias", "26b"])
def test_text(data: dict[str, Any]) -> None:
    config = ModelConfig.from_dict(data)
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}
    assert text_shapes(config.text) == theirs


@pytest.mark.parametrize("change", [{}, {"use_clipped_linears": True}, {"standardize": False, "num_hidden_layers": 2}])
def test_vision(change: dict[str, Any]) -> None:
    vision = released.config()["vision_config"] | change
    with torch.device("meta"):
        tower = AutoModel.from_config(Gemma4VisionConfig(**{k: v for k, v in vision.items() if k != "rope_parameters"}))
    ours = vision_shapes(vision, 2816)
    assert ours.pop("model.encoder.embed_vision.embedding_projection.weight") == (2816, 1152)
    assert ours == {f"model.encoder.vision_tower.{name}": tuple(tensor.shape) for name, tensor in tower.state_dict().items()}


def test_the_26b_has_the_published_numbers_of_tensors_and_parameters() -> None:
    config = ModelConfig.from_dict(released.config())
    text, vision = text_shapes(config.text), vision_shapes(config.vision or {}, config.text.hidden_size)
    assert (len(text), len(vision), len(text) + len(vision)) == (691, 356, 1047)
    assert sum(map(math.prod, text.values())) == 25_250_986_812
    # 51,647,562,456 bytes; 25,823,778,864 are parameters, the rest are 60 layer scalars and the tower's two buffers.
    elements = sum(map(math.prod, (text | vision).values()))
    assert 2 * elements == 51_647_562_456
    assert elements - 60 - 2 * 1152 == 25_823_778_864
