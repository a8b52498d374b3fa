"""A packed model is saved as it is stored, byte for byte, or refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.errors import CheckpointError
from diffusiongemma.weights import stream
from diffusiongemma.weights.quantise import quantise
from tests.gguf_files import write_model
from tests.quantised_files import Checkpoint
from tests.tiny import tiny_model

PROMPT: dict[str, Any] = {"prompt": "abc", "max_tokens": 8, "seed": 1}


@pytest.mark.parametrize("fmt", ["fp8 channel", "nvfp4 modelopt", "nvfp4", "int4", "gptq", "awq", "int8 asymmetric"])
def test_every_byte_comes_back(fmt: str, tmp_path: Path) -> None:
    source = Checkpoint(fmt).write(tmp_path / "source")
    model = DiffusionGemmaModel.from_pretrained(source)
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    again = DiffusionGemmaModel.from_pretrained(tmp_path / "saved")
    assert {name: record.kind for name, record in again.transformer.packed()} == {
        name: record.kind for name, record in model.transformer.packed()
    }
    assert again.config.quantization == model.config.quantization
    assert again.generate(**PROMPT).token_ids == model.generate(**PROMPT).token_ids


def test_what_was_changed_is_saved_in_its_stored_dtype(tmp_path: Path) -> None:
    source = Checkpoint("fp8 channel").write(tmp_path / "source")
    model = DiffusionGemmaModel.from_pretrained(source)
    model.transformer.norm.weight.fill_(0.25)
    model.transformer.embed_tokens.weight[3] = 2.0
    model.save_pretrained(source)  # over itself
    result = load_file(source / "model.safetensors")
    assert result["model.decoder.norm.weight"].dtype == torch.bfloat16 and set(result["model.decoder.norm.weight"].tolist()) == {
        0.25
    }
    assert set(result["model.decoder.embed_tokens.weight"][3].tolist()) == {2.0}
    again = DiffusionGemmaModel.from_pretrained(source)
    assert again.generate(**PROMPT).token_ids == model.generate(**PROMPT).token_ids


def test_shards_replace_a_checkpoint_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusiongemma.weights import quantise as writer

    monkeypatch.setattr(writer, "SHARD_BYTES", 1 << 12)
    plain = tmp_path / "plain"
    plain.mkdir()
    tiny_model(plain).save_pretrained(plain)
    config = DiffusionGemmaModel.from_pretrained(plain).config.to_dict()
    quantise(plain, tmp_path / "shards", "fp8", config)
    model = DiffusionGemmaModel.from_pretrained(tmp_path / "shards")
    model.save_pretrained(plain)
    assert not (plain / "model.safetensors").exists() and (plain / stream.INDEX).exists()
    again = DiffusionGemmaModel.from_pretrained(plain)
    assert again.generate(**PROMPT).token_ids == model.generate(**PROMPT).token_ids
    tiny_model(tmp_path).save_pretrained(plain)  # and back
    assert sorted(path.name for path in plain.glob("*.safetensors*")) == ["model.safetensors"]


def test_a_gguf_file_stays_one_file(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", "Q4_0")
    model = DiffusionGemmaModel.from_pretrained(tmp_path / "m.gguf")
    tiny_model(tmp_path).save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "m.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()
    model.transformer.norm.weight.fill_(0.5)
    model.save_pretrained(tmp_path / "saved")
    again = DiffusionGemmaModel.from_pretrained(tmp_path / "saved")
    assert again.folder == tmp_path / "saved" / "m.gguf" and set(again.transformer.norm.weight.tolist()) == {0.5}
    shutil.copy(tmp_path / "m.gguf", tmp_path / "saved" / "other.gguf")
    with pytest.raises(CheckpointError, match=r"has the GGUF file other\.gguf"):
        model.save_pretrained(tmp_path / "saved")
    model.defaults = model.defaults.replaced(max_tokens=9)
    with pytest.raises(CheckpointError, match="sampling defaults or stop tokens"):
        model.save_pretrained(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_bfloat16_in_memory_does_not_round_what_is_stored(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", "Q8_0")
    DiffusionGemmaModel.from_pretrained(tmp_path / "m.gguf", dtype="bfloat16").save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "m.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


def test_what_has_no_stored_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rounded to int8 as they were loaded"):
        DiffusionGemmaModel.from_pretrained("nano", quantize="int8").save_pretrained(tmp_path / "saved")
    source = Checkpoint("int4").write(tmp_path / "source")
    model = DiffusionGemmaModel.from_pretrained(source)
    nowhere = DiffusionGemmaModel(model.transformer, model.tokenizer, model.defaults, model.stop_ids)
    with pytest.raises(CheckpointError, match="no checkpoint to copy them from"):
        nowhere.save_pretrained(tmp_path / "saved")
    shutil.rmtree(source)  # a mapped file stays readable; another in its place is not it
    Checkpoint("int4", seed=1).write(source)
    with pytest.raises(CheckpointError, match="the checkpoint was replaced"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    nowhere.save_pretrained(tmp_path / "saved", dequantize=True)
    again = DiffusionGemmaModel.from_pretrained(tmp_path / "saved")
    assert not dict(again.transformer.packed()) and again.config.quantization is None
