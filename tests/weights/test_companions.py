"""What a save takes along, what it takes away, and what it never touches."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusiongemma.errors import CheckpointError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.weights.companions import companions, left_behind
from tests.tiny import tiny_model

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def index(folder: Path, **files: str) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_only_the_shards_of_an_index_go(tmp_path: Path) -> None:
    """An index may name anything: a user's own files stay, wherever they are."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in (folder / "thesis.txt", tmp_path / "outside.safetensors", folder / "thesis.safetensors"):
        path.write_bytes(b"years of work")
    save_file({"other": torch.zeros(1)}, folder / "mine.safetensors")
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, folder / "model-1.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    os.mkfifo(folder / "pipe.safetensors")
    index(
        folder,
        a="model-1.safetensors",
        b="model-1.safetensors",
        c="thesis.txt",
        d="../outside.safetensors",
        e=str(tmp_path / "outside.safetensors"),
        f="thesis.safetensors",
        g="mine.safetensors",
        h="link.safetensors",
        i="pipe.safetensors",
        j="gone.safetensors",
        k="x\0y.safetensors",
    )
    before = {path.name for path in folder.iterdir()}
    assert names(left_behind(folder)) == [INDEX, "model-1.safetensors"]
    tiny_model(tmp_path).save_pretrained(folder)
    after = {path.name for path in folder.iterdir()}
    assert before - after == {INDEX, "model-1.safetensors"}
    assert (tmp_path / "outside.safetensors").read_bytes() == (folder / "thesis.txt").read_bytes() == b"years of work"
    assert DiffusionGemmaModel.from_pretrained(folder).folder == folder


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"weight_map": [1]}', b'{"weight_map": {"a": 5}}'])
def test_a_damaged_index_goes_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INDEX).write_bytes(content)
    save_file({"a": torch.zeros(1)}, tmp_path / "model-1.safetensors")
    assert names(left_behind(tmp_path)) == [INDEX]


def test_notes_on_quantisation_are_not_taken_along_and_go(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny_model(tmp_path).save_pretrained(source)
    (source / "hf_quant_config.json").write_text("{}")
    model = DiffusionGemmaModel.from_pretrained(source)
    model.save_pretrained(tmp_path / "target")
    assert not (tmp_path / "target" / "hf_quant_config.json").exists()
    model.save_pretrained(source)
    assert not (source / "hf_quant_config.json").exists()


def test_a_link_out_of_the_checkpoint_is_not_copied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Or a downloaded folder could have a private file published with the next upload."""
    (tmp_path / "secret.json").write_text("{}")
    source = tmp_path / "source"
    source.mkdir()
    (source / "README.md").symlink_to(tmp_path / "secret.json")
    (source / "processor_config.json").symlink_to(tmp_path / "secret.json")
    (source / "inner.json").write_text("{}")
    (source / "outer.json").symlink_to("inner.json")
    assert set(companions(source, tmp_path / "target")) == {"inner.json", "outer.json"}
    assert "processor_config.json leads out of" in caplog.text


def test_links_of_the_hubs_cache_are_files(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "ff").write_text("{}")
    (snapshot / "processor_config.json").symlink_to("../../blobs/ff")
    assert set(companions(snapshot, tmp_path / "target")) == {"processor_config.json"}


def test_a_chat_template_does_not_outlive_its_tokenizer(tmp_path: Path) -> None:
    """It would write the prompts of a model that never saw it."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    tiny_model(tmp_path).save_pretrained(target)
    assert DiffusionGemmaModel.from_pretrained(target).tokenizer.template is None
    DiffusionGemmaModel.from_pretrained("nano").save_pretrained(target)
    assert DiffusionGemmaModel.from_pretrained(target).tokenizer.template is not None


def test_a_readme_of_the_target_stays(tmp_path: Path) -> None:
    model = DiffusionGemmaModel.from_pretrained("sudoku")
    target = tmp_path / "target"
    target.mkdir()
    (target / "README.md").write_text("mine")
    model.save_pretrained(target)
    assert (target / "README.md").read_text() == "mine"
    model.save_pretrained(tmp_path / "fresh")
    assert (tmp_path / "fresh" / "README.md").read_text() != "mine"


def test_an_error_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the last file is written: no new weights beside an old config.json."""
    folder = tmp_path / "checkpoint"
    tiny_model(tmp_path).save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = DiffusionGemmaModel.from_pretrained(folder)
    model.transformer.norm.weight += 1.0
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "tokenizer" in path.name or "generation" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left"):
        model.save_pretrained(tmp_path / "checkpoint")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(CheckpointError, match="cannot be written"):
            tiny_model(tmp_path).save_pretrained(target)


def test_a_vanished_source_is_said_so(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny_model(tmp_path).save_pretrained(source)
    model = DiffusionGemmaModel.from_pretrained(source)
    for path in source.iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        model.save_pretrained(tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_the_weights_of_a_save_are_whole(tmp_path: Path) -> None:
    target = tmp_path / "target"
    tiny_model(tmp_path).save_pretrained(target)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json"]
    assert len(load_file(target / WEIGHTS)) > 40
