"""Every quantised safetensors format loads as what it stands for: each value, each pass and whole generations, to the bit."""

import json
import logging
from pathlib import Path

import pytest
import torch

from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.model.assemble import assemble
from diffusiongemma.model.transformer import Transformer
from tests.quant.records import values
from tests.quantised_files import FORMATS, Checkpoint
from tests.tiny import tiny_model

IDS = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(3))


def load(folder: Path) -> DiffusionGemmaModel:
    return DiffusionGemmaModel.from_pretrained(folder)


def twin(checkpoint: Checkpoint, model: DiffusionGemmaModel) -> Transformer:
    """The same weights, plain."""
    return assemble(model.config, checkpoint.values.items(), torch.float32, torch.device("cpu"), keep=False)


def passes(model: DiffusionGemmaModel) -> list[torch.Tensor]:
    cache = model.new_cache(2, 64)
    hidden = model.encode(IDS, cache)
    canvas = IDS[:, :8]
    denoised = model.denoise(canvas, cache, model.soften(model.logits(hidden[:, :8])))
    return [hidden, denoised, model.logits(denoised)]


@pytest.mark.parametrize("fmt", FORMATS)
def test_values_passes_and_generations(fmt: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(fmt)
    model = load(checkpoint.write(tmp_path / "q"))
    plain = twin(checkpoint, model)
    packed = dict(model.transformer.packed())
    assert {record.kind for record in packed.values()} == {checkpoint.kind}
    assert len(packed) == 3 * 2 + 11 + 9, "experts, attention and dense MLP of three layers"
    for name, record in packed.items():
        result, wanted = values(record), checkpoint.values[name]
        if fmt == "nvfp4":  # compressed-tensors rounds twice; tests/quant has its bits
            assert torch.allclose(result, wanted, rtol=2e-7, atol=0), name
        else:
            assert torch.equal(result, wanted), name
    for name, tensor in model.transformer.state_dict().items():
        assert torch.equal(tensor.float(), checkpoint.values[name]), name
    exact = tiny_model(tmp_path, plain)
    for mine, theirs in zip(passes(model), passes(exact), strict=True):
        assert torch.equal(mine, theirs)
    for options in ({"num_diffusion_steps": 4}, {"mode": "causal"}):
        said = [one.generate("abc", seed=5, max_tokens=16, **options).token_ids for one in (model, exact)]
        assert said[0] == said[1] and len(said[0]) == 16


@pytest.mark.parametrize("part", ["self_attn", "mlp", "experts"])
def test_parts_that_are_not_quantised(part: str, tmp_path: Path) -> None:
    """Experts too, though they are stored one by one; and in float16, as one publisher has them."""
    checkpoint = Checkpoint("int4", plain_part=(part,), dtype=torch.float16)
    model = load(checkpoint.write(tmp_path / "q"))
    assert not any(f".{part}." in name for name, _ in model.transformer.packed())
    exact = tiny_model(tmp_path, twin(checkpoint, model))
    for mine, theirs in zip(passes(model), passes(exact), strict=True):
        assert torch.equal(mine, theirs)


def test_two_formats_in_one_file(tmp_path: Path) -> None:
    """FP8 attention and MLP, NVFP4 experts."""
    one, other = Checkpoint("fp8 channel"), Checkpoint("nvfp4")
    experts = {name: tensor for name, tensor in other.stored.items() if ".experts." in name}
    one.stored = {name: tensor for name, tensor in one.stored.items() if ".experts." not in name} | experts
    one.values |= {name: tensor for name, tensor in other.values.items() if ".experts." in name}
    groups = [checkpoint.config["quantization_config"]["config_groups"]["group_0"] for checkpoint in (one, other)]
    one.config["quantization_config"] = {
        **one.config["quantization_config"],
        "format": "mixed-precision",
        "config_groups": {"group_0": groups[0], "group_1": groups[1]},
    }
    model = load(one.write(tmp_path / "q"))
    assert {record.kind for _, record in model.transformer.packed()} == {"fp8", "nvfp4"}
    exact = tiny_model(tmp_path, twin(one, model))
    assert all(torch.equal(*pair) for pair in zip(passes(model), passes(exact), strict=True))


def test_what_stays_as_it_is_stored(tmp_path: Path) -> None:
    model = load(Checkpoint("fp8 channel").write(tmp_path / "q"))
    assert model.dtype == torch.float32
    dtypes = {(tensor.ndim > 1, tensor.dtype) for tensor in model.transformer.state_dict().values()}
    assert dtypes == {(True, torch.bfloat16), (False, torch.float32)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fmt", ["fp8 channel", "nvfp4 modelopt", "int4 asymmetric"])
def test_a_computation_in_sixteen_bits(fmt: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = Checkpoint(fmt)
    folder = checkpoint.write(tmp_path / "q")
    model, exact = DiffusionGemmaModel.from_pretrained(folder, dtype=dtype), load(folder)
    mine, theirs = passes(model)[0], passes(exact)[0]
    assert mine.dtype == model.dtype == dtype
    assert (mine.float() - theirs).abs().mean() < 0.1 * theirs.abs().mean()


def test_encoder_names_alone(tmp_path: Path) -> None:
    """As GPTQModel writes them."""
    checkpoint = Checkpoint("gptq")
    renamed = {}
    for name, tensor in checkpoint.stored.items():
        of_layer = ".layers." in name and "layer_scalar" not in name
        renamed[name.replace("model.decoder.", "model.encoder.language_model.") if of_layer else name] = tensor
    checkpoint.stored = renamed
    model = load(checkpoint.write(tmp_path / "q"))
    exact = tiny_model(tmp_path, twin(checkpoint, model))
    assert all(torch.equal(*pair) for pair in zip(passes(model), passes(exact), strict=True))


def doubled(changed: bool) -> Checkpoint:
    """Both stacks stored; the encoder's differs from the decoder's in one code."""
    checkpoint = Checkpoint("auto-round")
    copies = {
        name.replace("model.decoder.", "model.encoder.language_model."): tensor.clone()
        for name, tensor in checkpoint.stored.items()
        if name.startswith("model.decoder.layers.") and "layer_scalar" not in name
    }
    if changed:
        copies["model.encoder.language_model.layers.1.experts.4.up_proj.qweight"][0, 0] ^= 1
    checkpoint.stored |= copies
    return checkpoint


@pytest.mark.parametrize("changed", [False, True])
def test_both_stacks_stored(changed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The decoder's copies serve both roles; one warning where the encoder's are others."""
    checkpoint = doubled(changed)
    with caplog.at_level(logging.WARNING):
        model = load(checkpoint.write(tmp_path / "q"))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == changed
    if changed:
        assert "layers.1.experts.4.up_proj.qweight" in warnings[0] and "serve both roles" in warnings[0]
    exact = tiny_model(tmp_path, twin(checkpoint, model))
    assert all(torch.equal(*pair) for pair in zip(passes(model), passes(exact), strict=True))


def test_what_has_no_effect_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Checkpoint("nvfp4 modelopt")
    checkpoint.stored["model.decoder.layers.0.self_attn.k_proj.k_scale"] = torch.tensor(1.0)
    with caplog.at_level(logging.INFO):
        load(checkpoint.write(tmp_path / "q"))
    text = caplog.text
    assert "scales of activations and of the cache are not used" in text
    assert "activations are not quantised" in text and "the cache keeps them in the dtype of the computation" in text


def test_modelopt_that_says_so_only_in_its_own_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint("nvfp4 modelopt")
    del checkpoint.config["quantization_config"]
    folder = checkpoint.write(tmp_path / "q")
    said = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": ["lm_head", "*router*"]}
    (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": said}))
    assert {record.kind for _, record in load(folder).transformer.packed()} == {"nvfp4"}


def test_large_tensors_stay_in_their_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint("fp8 channel", intermediate_size=1 << 14)
    model = load(checkpoint.write(tmp_path / "q"))
    maps = Path("/proc/self/smaps").read_text() if Path("/proc/self/smaps").exists() else ""
    if not maps:
        pytest.skip("only Linux tells what is mapped")
    assert str(tmp_path / "q" / "model.safetensors") in maps
    gate = model.transformer.layers[0].mlp.gate_proj.packed["weight"]
    assert torch.equal(gate.dequantize(), checkpoint.values["layers.0.mlp.gate_proj.weight"])
    del model, gate
    assert str(tmp_path / "q" / "model.safetensors") not in Path("/proc/self/smaps").read_text()
