"""Names of checkpoints: built-in, folder, hub id; anything else is refused with what there is."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from diffusiongemma.errors import CheckpointError
from diffusiongemma.weights.resolve import builtin_folder, builtin_names, resolve


def test_built_in_names_come_first() -> None:
    assert builtin_names() == ["nano", "sudoku"]
    assert resolve("sudoku") == builtin_folder() / "sudoku"


def test_a_folder(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["sudokku", "no/such/folder", "./here", "/nowhere/at/all", "a/b/c"])
def test_an_unknown_name_lists_what_there_is(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"not a built-in name \(nano, sudoku\)"):
        resolve(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="give the folder"):
        resolve(file)


def test_a_hub_id_is_downloaded_without_anything_that_could_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("google/diffusiongemma-26b-nvfp4") == tmp_path
    assert resolve("google/diffusiongemma-26b-nvfp4", config_only=True) == tmp_path
    assert asked == [
        ("google/diffusiongemma-26b-nvfp4", ["*.json", "*.safetensors", "*.jinja"]),
        ("google/diffusiongemma-26b-nvfp4", ["config.json", "generation_config.json"]),
    ]


def test_an_unreachable_hub_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match="google/x is not in the local cache and the hub cannot be reached"):
        resolve("google/x")


def test_an_invalid_hub_id() -> None:
    with pytest.raises(CheckpointError, match="no valid hub id"):
        resolve("google/..--bad")
