"""The tokenizer's files in a checkpoint folder: which one counts, what is refused, what is copied."""

import json
from pathlib import Path

import pytest

from diffusiongemma.errors import CheckpointError
from diffusiongemma.text.tokenizer import Tokenizer
from tests.tiny import letters

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    letters(tmp_path)
    return tmp_path


def configure(folder: Path, **settings: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def rendered(folder: Path) -> str:
    template = Tokenizer.from_folder(folder).template
    assert template is not None
    return template.render(MESSAGES)


def test_no_template_is_allowed(folder: Path) -> None:
    assert Tokenizer.from_folder(folder).template is None
    configure(folder, bos_token="<b>")
    assert Tokenizer.from_folder(folder).template is None


def test_the_jinja_file_counts_before_the_config(folder: Path) -> None:
    configure(folder, chat_template="config {{ messages[0].content }}")
    assert rendered(folder) == "config hi"
    (folder / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    assert rendered(folder) == "file hi"


@pytest.mark.parametrize("bos", ["<b>", {"content": "<b>", "lstrip": False}])
def test_special_tokens_are_known_to_the_template(folder: Path, bos: object) -> None:
    configure(folder, bos_token=bos, chat_template="{{ bos_token }}!")
    assert rendered(folder) == "<b>!"


@pytest.mark.parametrize("content", ['{"bos_token": ', "[]", '"text"'])
def test_a_broken_tokenizer_config_is_refused(folder: Path, content: str) -> None:
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer.from_folder(folder)


def test_saving_copies_the_files_byte_for_byte(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    configure(folder, chat_template="x")
    (folder / "chat_template.jinja").write_text("ä{{ messages }}", "utf-8")
    target = tmp_path_factory.mktemp("target")
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.save(target)
    tokenizer.save(folder)
    names = ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in target.iterdir()) == names
    assert all((target / name).read_bytes() == (folder / name).read_bytes() for name in names)
