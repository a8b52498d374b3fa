"""Names of checkpoints: built-in, folder, hub id; anything else is refused with what there is."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from diffusiongemma.errors import CheckpointError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.weights.resolve import Hub, builtin_folder, builtin_names, resolve


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
    with pytest.raises(CheckpointError, match="give a GGUF file, or the folder"):
        resolve(file)


def test_a_hub_id_is_downloaded_without_anything_that_could_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    (tmp_path / "config.json").touch()

    def download(hub_id: str, allow_patterns: list[str], **_: Any) -> str:
        asked.append((hub_id, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("RedHatAI/x-FP8") == tmp_path
    assert resolve("RedHatAI/x-FP8", config_only=True) == tmp_path
    assert asked == [
        ("RedHatAI/x-FP8", ["*.json", "*.safetensors", "*.jinja"]),
        ("RedHatAI/x-FP8", ["config.json", "generation_config.json", "sampling.json"]),
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


def test_a_gguf_file_and_a_folder_with_one(tmp_path: Path) -> None:
    file = tmp_path / "model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    assert resolve(file) == resolve(tmp_path) == file
    (tmp_path / "mmproj-model-f16.gguf").write_bytes(b"GGUF")
    assert resolve(tmp_path) == file
    (tmp_path / "model.safetensors").touch()
    assert resolve(tmp_path) == tmp_path  # a whole checkpoint with a GGUF beside it


def test_several_gguf_files_in_a_folder_are_listed(tmp_path: Path) -> None:
    for name in ("a-Q4_0.gguf", "b-Q8_0.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"a-Q4_0\.gguf, b-Q8_0\.gguf; give the path of one of them"):
        resolve(tmp_path)


FILES = [
    "README.md",
    "config.json",
    "diffusiongemma-26B-A4B-it-Q4_K_M.gguf",
    "diffusiongemma-26B-A4B-it-Q8_0.gguf",
    "diffusiongemma-26B-A4B-it-UD-Q4_K_XL.gguf",
    "BF16/diffusiongemma-26B-A4B-it-BF16.gguf",
    "mmproj-F16.gguf",
]
ROOT = "diffusiongemma-26B-A4B-it"


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("Q4_K_M", f"{ROOT}-Q4_K_M.gguf"),
        ("q8_0", f"{ROOT}-Q8_0.gguf"),
        ("Q4_K_XL", f"{ROOT}-UD-Q4_K_XL.gguf"),
        ("UD-Q4_K_XL", f"{ROOT}-UD-Q4_K_XL.gguf"),
        ("BF16", f"BF16/{ROOT}-BF16.gguf"),
        (f"{ROOT}-Q8_0.gguf", f"{ROOT}-Q8_0.gguf"),
        (f"BF16/{ROOT}-BF16.gguf", f"BF16/{ROOT}-BF16.gguf"),
    ],
)
def test_one_of_a_repository_s_gguf_files(wanted: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda hub_id, **_: FILES if hub_id == "unsloth/x-GGUF" else [])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda hub_id, file, **_: f"/cache/{hub_id}/{file}")
    assert resolve(f"unsloth/x-GGUF:{wanted}") == Path(f"/cache/unsloth/x-GGUF/{name}")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("Q4_K", "none of its GGUF files is 'Q4_K'; add one of BF16/"),
        ("Q5_K_M", "none of its GGUF files is 'Q5_K_M'"),
        ("A4B", "several GGUF files with 'A4B'"),
    ],
)
def test_none_or_several_of_a_repository_s_gguf_files(wanted: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: FILES)
    with pytest.raises(CheckpointError, match=message):
        resolve(f"unsloth/x-GGUF:{wanted}")


def test_a_repository_of_gguf_files_without_a_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: FILES)
    with pytest.raises(CheckpointError, match=r"several GGUF files; add one of .*unsloth/x-GGUF:Q4_K_M"):
        resolve("unsloth/x-GGUF")
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: FILES[:3])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda hub_id, file, **_: f"/cache/{file}")
    assert resolve("unsloth/x-GGUF") == Path("/cache") / FILES[2]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: FILES[:1])
    with pytest.raises(CheckpointError, match="unsloth/x-GGUF has no GGUF file"):
        resolve("unsloth/x-GGUF")
    with pytest.raises(CheckpointError, match="a GGUF file holds its configuration itself"):
        resolve("unsloth/x-GGUF:Q4_K_M", config_only=True)


def test_a_gguf_file_of_the_cache_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / FILES[2]).touch()

    def offline(*_: Any, **__: Any) -> list[str]:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda hub_id, file, **_: str(tmp_path / file))
    assert resolve("unsloth/x-GGUF:Q4_K_M") == tmp_path / FILES[2]


@pytest.mark.parametrize("name", ["google/diffusiongemma-26b-nvfp4", "google/DiffusionGemma-26B-NVFP4"])
def test_a_name_that_no_repository_has(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def download(hub_id: str, allow_patterns: list[str], **_: Any) -> str:
        asked.append(hub_id)
        return str(tmp_path)

    (tmp_path / "config.json").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve(name) == tmp_path
    assert asked == ["nvidia/diffusiongemma-26B-A4B-it-NVFP4"]
    assert f"there is no {name} on the hub; {asked[0]} is taken" in caplog.text


def test_a_folder_of_that_name_is_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "google" / "diffusiongemma-26b-nvfp4"
    folder.mkdir(parents=True)
    assert resolve("google/diffusiongemma-26b-nvfp4").resolve() == folder


def test_a_revision_a_token_and_a_cache_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def download(hub_id: str, **options: Any) -> str:
        asked.append(options)
        return str(builtin_folder() / "nano")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    options = {"revision": "v2", "token": "hf_x", "cache_dir": tmp_path}
    model = DiffusionGemmaModel.from_pretrained("google/diffusiongemma-x", device="auto", dtype="auto", **options)
    assert model.dtype == torch.float32
    [given] = asked
    assert options.items() <= given.items()
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda hub_id, **given: asked.append(given) or FILES)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda hub_id, file, **given: asked.append(given) or f"/cache/{file}")
    resolve("unsloth/x-GGUF:Q4_K_M", hub=Hub(**options))
    assert asked[1:] == [{"revision": "v2", "token": "hf_x"}, options]
