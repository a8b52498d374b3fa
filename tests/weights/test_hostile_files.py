"""Checkpoints as an attacker or an accident leaves them: our error within a second, and nothing outside the folder is read."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from diffusiongemma.cli.main import app
from diffusiongemma.errors import CheckpointError, ConfigError, DiffusionGemmaError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.weights.resolve import resolve
from tests.tiny import tiny_model

S, F = ["sliding_attention"], ["full_attention"]
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "checkpoint"
    tiny_model(tmp_path).save_pretrained(target)
    (target / "tokenizer_config.json").write_text("{}")
    (target / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return target


def refusal(folder: Path) -> str:
    began = time.process_time()
    with pytest.raises(DiffusionGemmaError) as caught:
        DiffusionGemmaModel.from_pretrained(folder)
    assert time.process_time() - began < 1
    assert isinstance(caught.value, CheckpointError | ConfigError)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def gigabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


SPOILED: dict[str, Callable[[Path], Any]] = {
    "a pipe": pipe,
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "not UTF-8": lambda path: path.write_bytes(b'{"a": "\xff"}'),
    "a gigabyte": gigabyte,
}
DEEP: dict[str, Callable[[Path], Any]] = {
    "very deep": lambda path: path.write_text('{"a":' * 200_000 + "1" + "}" * 200_000),
    "deep": lambda path: path.write_text('{"a":' + "[" * 500 + "]" * 500 + "}"),
    "a long number": lambda path: path.write_text('{"a": ' + "1" * 100_000 + "}"),
    "a list": lambda path: path.write_text("[]"),
    "empty": lambda path: path.write_text(""),
}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", INDEX])
@pytest.mark.parametrize("how", [*SPOILED, *DEEP])
def test_json_files(folder: Path, name: str, how: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (SPOILED | DEEP)[how](folder / name)
    assert name in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("how", SPOILED)
def test_other_texts(folder: Path, name: str, how: str) -> None:
    (folder / name).unlink()
    SPOILED[how](folder / name)
    assert name in refusal(folder)


SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", INDEX]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("to", ["/etc/hostname", "../outside", "sub/../../outside"])
def test_a_link_out_of_the_folder(folder: Path, tmp_path: Path, name: str, to: str) -> None:
    """What it leads to is whole and valid; still it is not the checkpoint's."""
    (folder / "sub").mkdir()
    if (folder / name).exists():
        (folder / name).rename(tmp_path / "outside")
    else:
        (tmp_path / "outside").write_text('{"weight_map": {}}')
    (folder / name).symlink_to(to)
    said = refusal(folder)
    assert f"{name} cannot be read: it is a link that leads out of its folder" in said


def test_links_within_a_folder_and_to_it(folder: Path, tmp_path: Path) -> None:
    (folder / "kept").mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        (folder / name).rename(folder / "kept" / name)
        (folder / name).symlink_to(f"kept/{name}")
    (tmp_path / "link").symlink_to(folder)
    assert DiffusionGemmaModel.from_pretrained(tmp_path / "link").tokenizer.template is not None


def test_the_cache_of_the_hub_links_to_its_blobs_and_to_nothing_else(folder: Path, tmp_path: Path) -> None:
    cache, other = tmp_path / "models--owner--name", tmp_path / "models--other--name" / "blobs"
    snapshot = cache / "snapshots" / "abc"
    for made in (snapshot, cache / "blobs", other):
        made.mkdir(parents=True)
    files = [path for path in folder.iterdir() if path.is_file()]
    for number, path in enumerate(files):
        path.rename(cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert DiffusionGemmaModel.from_pretrained(snapshot).tokenizer.template is not None
    (cache / "blobs" / str(files.index(folder / "tokenizer.json"))).rename(other / "tokenizer.json")
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(other / "tokenizer.json")
    assert "tokenizer.json cannot be read" in refusal(snapshot)


def test_a_copy_takes_nothing_from_outside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for name in ("tokenizer.model", "special_tokens_map.json", "README.md"):
        (folder / name).symlink_to(tmp_path / "secret")
    DiffusionGemmaModel.from_pretrained(folder).save_pretrained(tmp_path / "copy")
    assert not any("secret" in path.read_bytes().decode("latin-1") for path in (tmp_path / "copy").rglob("*.*") if path.is_file())


@pytest.mark.parametrize("how", SPOILED)
def test_weights(folder: Path, how: str) -> None:
    (folder / "model.safetensors").unlink()
    SPOILED[how](folder / "model.safetensors")
    assert "model.safetensors" in refusal(folder)


def change(folder: Path, top: dict[str, Any] | None = None, **text: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= text
    (folder / "config.json").write_text(json.dumps(config | (top or {})))


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ({"num_hidden_layers": 10**6, "layer_types": None, "per_layer_config": None}, "must be at most"),
        ({"num_hidden_layers": 1_000, "layer_types": (S + S + F) * 333 + F}, "lacks 22598 tensor(s)"),
        ({"vocab_size": 2**31 - 1}, "config.json asks for [2147483647, 32]"),
        ({"hidden_size": 2**31 - 1}, "config.json asks for"),
        ({"num_experts": 2**31 - 1}, "config.json asks for"),
        ({"moe_intermediate_size": 2**30}, "config.json asks for"),
        ({"vocab_size": 2**40}, "must be at most"),
    ],
)
def test_sizes_that_are_not_those_of_the_weights(folder: Path, text: dict[str, Any], needle: str) -> None:
    """Nothing is allocated before the headers are asked: these would take terabytes."""
    change(folder, **text)
    assert needle in refusal(folder)


@pytest.mark.parametrize(
    ("place", "field", "value"),
    [
        ("text_config", "num_hidden_layers", 10**6),
        ("text_config", "hidden_size", 10**9),
        ("text_config", "num_experts", 2**31 - 1),
        ("text_config", "max_position_embeddings", 2**31 - 1),
        ("vision_config", "num_hidden_layers", 10**6),
        ("vision_config", "hidden_size", "a"),
    ],
)
def test_info_counts_without_building_anything(folder: Path, place: str, field: str, value: Any) -> None:
    config = json.loads((resolve("nano") / "config.json").read_text())
    config[place][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    began = time.process_time()
    said = CliRunner().invoke(app, ["info", str(folder), "--json"])
    assert time.process_time() - began < 5
    assert said.exit_code in (0, 2)
    answer = json.loads(said.stdout)
    assert "parameters" in answer if said.exit_code == 0 else "config.json" in answer["error"]["message"]


def shards(folder: Path) -> dict[str, Any]:
    content = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(content)
    files = {name: f"model-{1 + i % 2:05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: content[name] for name in names if files[name] == file}, folder / file)
    return {"weight_map": files}


@pytest.mark.parametrize(
    "file",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/b.safetensors",
        "thesis.txt",
        "x\0y.safetensors",
        "é" * 300,
        5,
        None,
    ],
)
def test_an_index_that_names_what_it_should_not(folder: Path, tmp_path: Path, file: Any) -> None:
    """The other file is a whole and valid one."""
    save_file(load_file(folder / "model.safetensors"), tmp_path / "outside.safetensors")
    (folder / "thesis.txt").write_text("mine")
    index = shards(folder)
    index["weight_map"]["model.decoder.norm.weight"] = file
    (folder / INDEX).write_text(json.dumps(index))
    assert INDEX in refusal(folder)


def test_an_index_that_lies(folder: Path) -> None:
    index = shards(folder)
    last = list(index["weight_map"])[-1]
    moved = {**index["weight_map"], last: index["weight_map"][list(index["weight_map"])[-2]]}
    for weight_map in (moved, {name: f"{i}.safetensors" for i, name in enumerate(moved)}, {"a": "x" * 300 + ".safetensors"}):
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        refusal(folder)


def test_the_same_tensor_in_two_files(folder: Path) -> None:
    index = shards(folder)
    first, second = (folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    name = next(iter(load_file(first)))
    save_file({**load_file(second), name: load_file(first)[name]}, second)
    (folder / INDEX).write_text(json.dumps(index))
    assert "disagree about" in refusal(folder)


def test_a_shard_that_is_cut(folder: Path) -> None:
    index = shards(folder)
    (folder / INDEX).write_text(json.dumps(index))
    path = folder / "model-00002-of-00002.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    assert "is damaged or cut short" in refusal(folder)
    os.truncate(path, 4)
    assert "is damaged or cut short" in refusal(folder)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "x\0y", "~nobody-of-this-name/x", "/dev/null/x"])
def test_names_that_cannot_be_folders(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve(name)
    assert len(str(caught.value)) < 1000
