"""A quantised copy: what is in it, what it weighs, how it is interrupted, and that it loads."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.errors import CheckpointError, OptionError
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.text.files import read_json
from diffusiongemma.weights import quantise as writer
from diffusiongemma.weights.quantise import FORMATS, PARTS, quantise
from diffusiongemma.weights.resolve import resolve


def copy_of(target: Path, kind: str, **options: Any) -> list[writer.PartError]:
    source = resolve("nano")
    return quantise(source, target, kind, ModelConfig.from_dict(read_json(source / "config.json")).to_dict(), **options)


def names(folder: Path) -> dict[str, str]:
    """Tensor -> dtype, of all shards."""
    result = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            result |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  (no mapping)
    return result


@pytest.mark.parametrize("kind", FORMATS)
def test_a_copy_loads_and_says_its_error(kind: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    # nano's experts are 80 wide, which no group of 32 divides.
    parts = ("attention", "mlp") if kind == "int4" else FORMATS[kind].parts
    errors = copy_of(tmp_path / "out", kind, parts=parts, progress=lambda *at: seen.append(at))
    assert {error.part for error in errors} == set(parts)
    for error in errors:
        assert 0 < error.error <= error.absmax_error < 0.15
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)
    exact, copied = DiffusionGemmaModel.from_pretrained("nano"), DiffusionGemmaModel.from_pretrained(tmp_path / "out")
    packed = {name for name, _ in copied.transformer.packed()}
    assert len(packed) > 5 and not any("router" in name or "embed" in name for name in packed)
    ids = torch.tensor([exact.tokenizer.encode("Extract as JSON: name (string)")])
    wanted, result = (model.encode(ids, model.new_cache(1, 64)) for model in (exact, copied))
    assert 0 < (result - wanted).norm() / wanted.norm() < 0.3
    assert copied.generate("Reverse: a b", seed=1, max_tokens=16).finish_reason in ("stop", "length")


def test_names_are_those_of_the_published_files(tmp_path: Path) -> None:
    copy_of(tmp_path, "fp8", search=False)
    result = names(tmp_path)
    base = "model.decoder.layers.0."
    assert result[base + "experts.3.gate_proj.weight"] == "F8_E4M3" and result[base + "experts.3.gate_proj.weight_scale"] == "BF16"
    assert result[base + "self_attn.q_proj.weight"] == "F8_E4M3" and result[base + "router.proj.weight"] in ("BF16", "F32")
    assert not any("gate_up_proj" in name for name in result)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["format"] == "float-quantized" and config["config_groups"]["group_0"]["weights"]["strategy"] == "channel"


def test_parts_can_be_chosen(tmp_path: Path) -> None:
    errors = copy_of(tmp_path, "int8", parts=["mlp"])
    assert {error.part for error in errors} == {"mlp"}
    result = names(tmp_path)
    assert result["model.decoder.layers.0.mlp.up_proj.weight"] == "I8"
    assert result["model.decoder.layers.0.self_attn.q_proj.weight"] != "I8"
    assert "model.decoder.layers.0.experts.gate_up_proj" in result
    DiffusionGemmaModel.from_pretrained(tmp_path)


def test_an_interrupted_copy_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SHARD_BYTES", 1 << 20)
    whole = copy_of(tmp_path / "whole", "int8")
    assert len(list((tmp_path / "whole").glob("model-*"))) > 2
    written: list[Path] = []

    def stop(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, tensors)

    write = writer.write_tensors
    monkeypatch.setattr(writer, "write_tensors", stop)
    with pytest.raises(KeyboardInterrupt):
        copy_of(tmp_path / "cut", "int8")
    with pytest.raises(CheckpointError):
        DiffusionGemmaModel.from_pretrained(tmp_path / "cut")
    with pytest.raises(CheckpointError, match="other settings"):
        copy_of(tmp_path / "cut", "fp8")
    monkeypatch.setattr(writer, "write_tensors", lambda path, tensors: (written.append(path), write(path, tensors))[1])
    assert copy_of(tmp_path / "cut", "int8") == whole
    assert len(written) == len(list((tmp_path / "whole").glob("model-*")))
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="format is 'int3'; allowed: fp8"):
        copy_of(tmp_path / "a", "int3")
    with pytest.raises(OptionError, match=r"has 80 columns; int4 needs a multiple of 32. Leave experts out"):
        copy_of(tmp_path / "a", "int4")
    with pytest.raises(OptionError, match="allowed: attention, mlp, experts"):
        copy_of(tmp_path / "a", "fp8", parts=["router"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        copy_of(tmp_path / "full", "fp8")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    source = tmp_path / "source"
    shutil.copytree(resolve("nano"), source)
    with pytest.raises(CheckpointError, match="the source itself"):
        quantise(source, source, "fp8", {})
    copy_of(tmp_path / "once", "fp8")
    with pytest.raises(CheckpointError, match="quantised already"):
        quantise(tmp_path / "once", tmp_path / "twice", "int8", {})


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.decoder.layers.3.self_attn.q_proj.weight", "attention"),
        ("model.decoder.layers.3.self_attn.q_norm.weight", ""),
        ("model.decoder.layers.3.self_attn.q_proj.bias", ""),
        ("model.decoder.layers.13.mlp.down_proj.weight", "mlp"),
        ("model.decoder.layers.3.experts.gate_up_proj", "experts"),
        ("model.decoder.layers.3.experts.down_proj", "experts"),
        ("model.decoder.layers.3.router.proj.weight", ""),
        ("model.decoder.self_conditioning.gate_proj.weight", ""),
        ("model.decoder.embed_tokens.weight", ""),
        ("model.encoder.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight", ""),
        ("model.encoder.vision_tower.layers.0.mlp.up_proj.weight", ""),
    ],
)
def test_the_part_of_a_tensor(name: str, part: str) -> None:
    assert writer.part_of(name) == part
    assert part == "" or part in PARTS
