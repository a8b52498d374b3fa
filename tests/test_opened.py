"""Sampling defaults that transformers has no name for stand in a file of their own, and saved copies keep them there."""

import json
from pathlib import Path

from transformers import GenerationConfig

from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.opened import OWN_SAMPLING
from diffusiongemma.weights.resolve import builtin_folder


def test_nanos_defaults_are_its_own_file_s(tmp_path: Path) -> None:
    nano = DiffusionGemmaModel.from_pretrained("nano")
    assert json.loads((builtin_folder() / "nano" / OWN_SAMPLING).read_text()) == {"repair": 2}
    assert nano.defaults.repair == 2
    nano.save_pretrained(tmp_path)
    assert DiffusionGemmaModel.from_pretrained(tmp_path).defaults == nano.defaults
    assert "diffusiongemma" not in json.loads((tmp_path / "generation_config.json").read_text())
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [1, 5]
