"""Loading refuses everything that is not a whole, matching checkpoint, and says what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusiongemma.errors import CheckpointError
from diffusiongemma.generation import DiffusionGemmaModel
from tests.tiny import tiny_model

Q = "model.decoder.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint of random weights."""
    target = tmp_path / "checkpoint"
    tiny_model(tmp_path).save_pretrained(target)
    return target


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, content: dict[str, torch.Tensor]) -> None:
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        DiffusionGemmaModel.from_pretrained(folder)
    return str(caught.value)


def test_a_whole_checkpoint_loads_with_every_bit(folder: Path, tmp_path: Path) -> None:
    loaded = DiffusionGemmaModel.from_pretrained(folder)
    for name, tensor in tiny_model(tmp_path).transformer.state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[name], tensor), name
    assert loaded.transformer.layers[0].layer_scalar != loaded.transformer.layers[0].encoder_layer_scalar
    assert not any(weight.requires_grad for weight in loaded.transformer.parameters())


def test_missing(folder: Path) -> None:
    content = tensors(folder)
    del content[Q]
    rewrite(folder, content)
    assert Q in refusal(folder) and "lacks 1 tensor" in refusal(folder)


@pytest.mark.parametrize("scalar", ["model.decoder.layers.1.layer_scalar", "model.encoder.language_model.layers.1.layer_scalar"])
def test_the_scalar_of_one_role_does_not_stand_in_for_the_others(folder: Path, scalar: str) -> None:
    content = tensors(folder)
    del content[scalar]
    rewrite(folder, content)
    assert scalar in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.decoder.layers.3.self_attn.q_proj.weight",  # one layer too many
        "model.decoder.layers.2.self_attn.v_proj.weight",  # full layers have none
        "model.decoder.surprise.weight",
        "something.else",
        "model.encoder.language_model.layers.0.self_attn.q_proj.lora_a",
    ],
)
def test_left_over_or_unknown(folder: Path, name: str) -> None:
    rewrite(folder, {**tensors(folder), name: torch.zeros(4, 4)})
    assert name in refusal(folder) and "no place for" in refusal(folder)


def test_mis_shaped(folder: Path) -> None:
    content = tensors(folder)
    content[Q] = content[Q].T.contiguous()[:, :5].contiguous()
    rewrite(folder, content)
    message = refusal(folder)
    assert Q in message and "[32, 5]" in message and "[32, 32]" in message


def test_integers_are_not_weights(folder: Path) -> None:
    content = tensors(folder)
    content[Q] = content[Q].to(torch.int8)
    rewrite(folder, content)
    assert f"{Q} has no weight_scale: int8 needs it" in refusal(folder)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.001])
def test_truncated(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert "model.safetensors is damaged or cut short" in refusal(folder)


def shard(folder: Path) -> dict[str, Any]:
    """Split the weights over two files with an index, as large checkpoints are."""
    content = tensors(folder)
    names = sorted(content)
    weight_map = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: content[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards(folder: Path, tmp_path: Path) -> None:
    whole = DiffusionGemmaModel.from_pretrained(folder)
    index = shard(folder)
    loaded = DiffusionGemmaModel.from_pretrained(folder)
    for name, tensor in whole.transformer.state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[name], tensor)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "lacks model-00002-of-00002.safetensors" in refusal(folder)
    index["weight_map"]["model.decoder.norm.weight"] = "../outside.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "same folder" in refusal(folder)


def test_an_index_that_promises_another_tensor(folder: Path) -> None:
    index = shard(folder)
    index["weight_map"]["model.decoder.extra"] = "model-00001-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "disagree about model.decoder.extra" in refusal(folder)


def test_copies_of_tied_tensors(folder: Path) -> None:
    content = tensors(folder)
    embed = content["model.decoder.embed_tokens.weight"]
    copies = {
        "lm_head.weight": embed.clone(),
        "model.encoder.language_model.embed_tokens.weight": embed.clone(),
        Q.replace("model.decoder", "model.encoder.language_model"): content[Q].clone(),
    }
    rewrite(folder, {**content, **copies})
    DiffusionGemmaModel.from_pretrained(folder)
    for name, copy in copies.items():
        changed = copy.clone()
        changed[0, 0] += 1
        rewrite(folder, {**content, **copies, name: changed})
        assert "differs from" in refusal(folder) and "copies are equal" in refusal(folder)


def test_a_copy_alone_is_enough(folder: Path) -> None:
    """Some exporters keep the encoder's name of a tied tensor instead of the decoder's."""
    content = tensors(folder)
    content[Q.replace("model.decoder", "model.encoder.language_model")] = content.pop(Q)
    rewrite(folder, content)
    DiffusionGemmaModel.from_pretrained(folder)


def test_no_weights_or_weights_that_could_run_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no weights" in refusal(folder)
    torch.save({}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin, which is not read" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_or_broken_files(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert "cannot be read" in refusal(folder)
    (folder / name).write_bytes(b"\xff\xfe")
    assert "cannot be read" in refusal(folder)
    (folder / name).unlink()
    assert f"has no {name}" in refusal(folder)


def test_a_failed_save_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusiongemma.weights import stream

    before = (folder / "model.safetensors").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(stream, "save_file", full)
    with pytest.raises(OSError, match="disk full"):
        DiffusionGemmaModel.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert not list(folder.glob("*.part"))


def test_dtypes_and_devices(folder: Path) -> None:
    from diffusiongemma.errors import OptionError

    assert DiffusionGemmaModel.from_pretrained(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert DiffusionGemmaModel.from_pretrained(folder, dtype=torch.float16).dtype == torch.float16
    for options, needle in (
        ({"dtype": "int4"}, "allowed: auto, float32"),
        ({"dtype": torch.int8}, "allowed"),
        ({"device": "abacus"}, "abacus"),
    ):
        with pytest.raises(OptionError, match=needle):
            DiffusionGemmaModel.from_pretrained(folder, **options)  # type: ignore[arg-type]
