"""Sampling defaults that transformers has no name for stand in a file of their own, and saved copies keep them there."""

import json
from pathlib import Path

from transformers import GenerationConfig

from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.options import OWN_SAMPLING
from diffusiongemma.weights.resolve import builtin_folder


def test_nanos_defaults_are_its_own_file_s(tmp_path: Path) -> None:
    nano = DiffusionGemmaModel.from_pretrained("nano")
    assert json.loads((builtin_folder() / "nano" / OWN_SAMPLING).read_text()) == {"repair": 2}
    assert nano.defaults.repair == 2
    nano.save_pretrained(tmp_path)
    assert DiffusionGemmaModel.from_pretrained(tmp_path).defaults == nano.defaults
    assert "diffusiongemma" not in json.loads((tmp_path / "generation_config.json").read_text())
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [1, 5]


def test_a_field_of_an_older_generation_config_is_read_and_saved_in_the_file(tmp_path: Path) -> None:
    nano = DiffusionGemmaModel.from_pretrained("nano")
    nano.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / OWN_SAMPLING).unlink()
    config = tmp_path / "old" / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"diffusiongemma": {"stop_rule": "answer"}}))
    old = DiffusionGemmaModel.from_pretrained(tmp_path / "old")
    assert (old.defaults.stop_rule, old.defaults.repair) == ("answer", 0)
    old.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / OWN_SAMPLING).read_text()) == {"stop_rule": "answer"}
    assert GenerationConfig.from_pretrained(tmp_path / "new").eos_token_id == [1, 5]
    assert DiffusionGemmaModel.from_pretrained(tmp_path / "new").defaults == old.defaults


def test_defaults_of_their_own_go_when_none_are_left(tmp_path: Path) -> None:
    nano = DiffusionGemmaModel.from_pretrained("nano")
    nano.save_pretrained(tmp_path)
    nano.defaults = nano.defaults.replaced(repair=0)
    nano.save_pretrained(tmp_path)
    assert not (tmp_path / OWN_SAMPLING).exists()
    assert DiffusionGemmaModel.from_pretrained(tmp_path).defaults.repair == 0
