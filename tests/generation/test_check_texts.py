"""The published token ids, through a tokenizer and templates that give them: what agrees, and what is said of what does not."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from diffusiongemma.generation.check.published import differences, is_the_26b, published
from diffusiongemma.generation.check.texts import check_generation, check_texts
from diffusiongemma.model.config import ModelConfig
from tests import released

WORDS = {
    "user": 2364, "model": 4368, "system": 9731, "thought": 45518, "\n": 107, "Write": 6974, "▁a": 496, "▁long": 1440,
    "▁essay": 20494, "▁about": 1003, "▁Portugal": 23613, ".": 236761,
}  # fmt: skip
BEGIN = """{{ bos_token }}{% if enable_thinking %}<|turn>system
<|think|>
<turn|>
{% endif %}<|turn>user
{{ messages[0].content }}<turn|>
<|turn>model
"""
THOUGHT = """{% if not enable_thinking %}<|channel>thought
<channel|>{% endif %}"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The words of the published prompt with their ids, and a template that writes it."""
    tokens = dict(published().control_tokens)
    backend = Backend(models.WordLevel({**WORDS, **tokens}, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\w+|\n|."), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(text, special=True) for text in tokens])
    backend.save(str(tmp_path / "tokenizer.json"))
    released.write(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(BEGIN + THOUGHT)
    return tmp_path


CONFIG = ModelConfig.from_dict(released.config())


def rows(folder: Path) -> dict[str, tuple[str, str]]:
    return {row.what: (row.verdict, row.detail) for row in check_texts(folder, CONFIG, True)}


def test_the_published_ids(folder: Path) -> None:
    result = rows(folder)
    assert {what: verdict for what, (verdict, _) in result.items()} == dict.fromkeys(
        ("tokenizer", "control tokens", "prompt", "prompt with thinking"), "agrees"
    )
    assert "20 published ids" in result["prompt"][1] and "23 published ids" in result["prompt with thinking"][1]


def test_templates_without_the_empty_thought_agree_and_it_is_said(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(BEGIN + "{{ '' }}")
    assert rows(folder)["prompt"][0] == "agrees" and "empty thought" in rows(folder)["prompt"][1]


@pytest.mark.parametrize(
    ("template", "verdict", "needle"),
    [
        (BEGIN.replace("\n<|turn>model\n", "<|turn>model\n"), "differs", "from place 12: [105,"),
        (BEGIN.replace("{{ bos_token }}", ""), "differs", "from place 0: [105, 2364"),
        ("{{ raise_exception('no') }}", "differs", "refuses it"),
        ("{% for", "damaged", "compiled"),
    ],
)
def test_other_templates(folder: Path, template: str, verdict: str, needle: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    result = rows(folder).get("prompt", rows(folder)["tokenizer"])
    assert result[0] == verdict and needle in result[1]


def test_no_template_and_no_tokenizer(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert rows(folder)["prompt"] == ("not checked", "the checkpoint has no chat template")
    (folder / "tokenizer.json").write_text("{")
    assert rows(folder)["tokenizer"][0] == "damaged"
    (folder / "tokenizer.json").unlink()
    assert rows(folder)["tokenizer"][0] == "not checked"


def test_a_control_token_elsewhere(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    for token in data["added_tokens"]:
        if token["content"] == "<turn|>":
            token["id"] = 97
    data["model"]["vocab"]["<turn|>"] = 97
    (folder / "tokenizer.json").write_text(json.dumps(data))
    result = rows(folder)
    assert result["control tokens"][0] == result["prompt"][0] == "differs"
    assert "106 is '', not '<turn|>'" in result["control tokens"][1]


def test_the_released_files_are_what_is_published(folder: Path) -> None:
    assert is_the_26b(CONFIG.text) and differences(CONFIG) == []
    assert [row.verdict for row in check_generation(folder, CONFIG, True)] == ["agrees"]
    (folder / "generation_config.json").write_text('{"t_max": "hot"}')
    assert [row.verdict for row in check_generation(folder, CONFIG, True)] == ["damaged"]
    (folder / "generation_config.json").unlink()
    assert [row.verdict for row in check_generation(folder, CONFIG, True)] == ["not checked"]
