"""Quantised checkpoints that are not whole, sound, or what config.json says: refused by the tensor's name, with nothing loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffusiongemma.errors import CheckpointError
from diffusiongemma.generation import DiffusionGemmaModel
from tests.quantised_files import Checkpoint, compressed

UP = "model.decoder.layers.1.experts.4.up_proj"
GATE = UP.replace("up_proj", "gate_proj")
Q = "model.decoder.layers.0.self_attn.q_proj"
NAN, INF = float("nan"), float("inf")


def refusal(checkpoint: Checkpoint, folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        DiffusionGemmaModel.from_pretrained(checkpoint.write(folder))
    return str(caught.value)


def drop(name: str) -> Callable[[Checkpoint], None]:
    return lambda checkpoint: checkpoint.stored.pop(name) is None


def put(name: str, tensor: torch.Tensor) -> Callable[[Checkpoint], None]:
    return lambda checkpoint: checkpoint.stored.update({name: tensor})


def change(name: str, how: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Checkpoint], None]:
    return lambda checkpoint: checkpoint.stored.update({name: how(checkpoint.stored[name])})


def at(index: tuple[int, ...], value: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def set_one(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        if tensor.dtype == torch.float8_e4m3fn:
            tensor.view(torch.uint8)[index] = value
        else:
            tensor[index] = value
        return tensor

    return set_one


def say(**fields: Any) -> Callable[[Checkpoint], None]:
    """Change quantization_config."""
    return lambda checkpoint: checkpoint.config["quantization_config"].update(fields)


def weights(**fields: Any) -> Callable[[Checkpoint], None]:
    """Change the weights of compressed-tensors' first group."""
    return lambda checkpoint: checkpoint.config["quantization_config"]["config_groups"]["group_0"]["weights"].update(fields)


CASES: dict[str, tuple[str, Callable[[Checkpoint], None], list[str]]] = {
    # -- something is missing or left over
    "codes without a scale": ("fp8 channel", drop(f"{UP}.weight_scale"), [f"{UP}.weight", "weight_scale", "fp8"]),
    "a scale without its weight": ("fp8 channel", drop(f"{UP}.weight"), [f"{UP}.weight_scale", "without the weight"]),
    "packed scales alone": ("nvfp4", drop(f"{UP}.weight_packed"), [UP, "without the weight"]),
    "no second scale": ("nvfp4 modelopt", drop(f"{UP}.weight_scale_2"), [f"{UP}.weight has no weight_scale_2"]),
    "no global scale": ("nvfp4", drop(f"{UP}.weight_global_scale"), [UP]),
    "no shape": ("int4", drop(f"{UP}.weight_shape"), [UP, "weight_shape"]),
    "no zero points": ("int4 asymmetric", drop(f"{UP}.weight_zero_point"), [UP, "weight_zero_point"]),
    "no zero points of awq": ("awq", drop(f"{UP}.qzeros"), [UP, "qzeros"]),
    "no scales of gptq": ("gptq", drop(f"{UP}.scales"), [UP, "scales"]),
    "no order": ("gptq act-order", drop(f"{UP}.g_idx"), [UP, "g_idx", "desc_act"]),
    "an activation's scale alone": (
        "fp8 channel",
        put("model.decoder.layers.0.q.input_scale", torch.ones(())),
        ["layers.0.q.input_scale"],
    ),
    "an activation's scale of a plain weight": (
        "fp8 channel",
        put("model.decoder.layers.0.router.proj.input_scale", torch.ones(())),
        ["router.proj.input_scale", "not quantised"],
    ),
    "a scale of a plain weight": (
        "fp8 channel",
        put("model.decoder.layers.0.router.proj.weight_scale", torch.ones(1)),
        ["router.proj.weight_scale"],
    ),
    "a scale too many": ("fp8 channel", put(f"{Q}.weight_scale_2", torch.ones(())), [f"{Q}.weight_scale_2", "no place"]),
    "two ways at once": ("int4", put(f"{Q}.weight", torch.zeros(64, 64)), [Q]),
    "an unknown suffix": ("fp8 channel", put(f"{Q}.weight_scale_3", torch.ones(1)), [f"{Q}.weight_scale_3", "no place for"]),
    "an expert's linear missing": (
        "int4",
        lambda c: [c.stored.pop(f"{UP}.{s}") for s in ("weight_packed", "weight_scale", "weight_shape")] and None,
        [UP, "lacks 1 tensor"],
    ),
    "an expert too many": (
        "fp8 channel",
        lambda c: c.stored.update(
            {f"{UP.replace('.4.', '.12.')}.{s}": c.stored[f"{UP}.{s}"].clone() for s in ("weight", "weight_scale")}
        ),
        ["layers.1.experts.12.up_proj.weight", "no place for"],
    ),
    "experts whole and in parts": (
        "fp8 channel",
        put("model.decoder.layers.1.experts.gate_up_proj", torch.zeros(12, 64, 64)),
        ["experts.gate_up_proj whole", "one by one"],
    ),
    "a quantised head": (
        "fp8 channel",
        lambda c: c.stored.update(
            {"lm_head.weight": torch.zeros(64, 64).to(torch.float8_e4m3fn), "lm_head.weight_scale": torch.ones(64, 1)}
        ),
        ["lm_head.weight", "embed_tokens", "head"],
    ),
    # -- shapes and dtypes
    "codes of another shape": (
        "fp8 channel",
        change(f"{UP}.weight", lambda t: t[:, :32].contiguous()),
        [f"{UP}.weight", "[32, 32]", "[32, 64]"],
    ),
    "half the codes": (
        "nvfp4",
        change(f"{UP}.weight_packed", lambda t: t[:, :8].contiguous()),
        [f"{UP}.weight_packed", "[32, 8]", "[32, 32]"],
    ),
    "codes of another dtype": ("nvfp4", change(f"{UP}.weight_packed", lambda t: t.to(torch.int16)), [f"{UP}.weight_packed", "I16"]),
    "e5m2": ("fp8 channel", change(f"{UP}.weight", lambda t: t.float().to(torch.float8_e5m2)), [f"{UP}.weight", "F8_E5M2"]),
    "scales of another shape": (
        "nvfp4",
        change(f"{UP}.weight_scale", lambda t: t[:, :2].contiguous()),
        [f"{UP}.weight_scale", "[32, 4]"],
    ),
    "scales of another dtype": ("nvfp4", change(f"{UP}.weight_scale", lambda t: t.float()), [f"{UP}.weight_scale", "F32"]),
    "scales of bytes": ("int4", change(f"{UP}.weight_scale", lambda t: t.to(torch.uint8)), [f"{UP}.weight_scale", "U8"]),
    "a scale for each of three rows": (
        "fp8 channel",
        change(f"{UP}.weight_scale", lambda t: t[:3].contiguous()),
        [f"{UP}.weight_scale", "[3, 1]"],
    ),
    "second scales in a row": (
        "nvfp4",
        change(f"{UP}.weight_global_scale", lambda t: t.expand(2).contiguous()),
        [f"{UP}.weight_global_scale"],
    ),
    "zero points of another shape": (
        "int4 asymmetric",
        change(f"{UP}.weight_zero_point", lambda t: t[:2].contiguous()),
        [f"{UP}.weight_zero_point"],
    ),
    "qzeros of another shape": ("gptq", change(f"{UP}.qzeros", lambda t: t[:, :1].contiguous()), [f"{UP}.qzeros"]),
    "a shape that lies": ("int4", change(f"{UP}.weight_shape", lambda t: t.flip(0)), [f"{UP}.weight_shape", "[32, 64]"]),
    "awq packed as gptq": ("awq", change(f"{UP}.qweight", lambda t: t.T.contiguous()), [f"{UP}.qweight"]),
    "unlike experts": (
        "fp8 channel",
        change(f"{UP}.weight_scale", lambda t: t.half()),
        [UP, "float16", "bfloat16", "stored alike"],
    ),
    # -- values
    "a scale that is no number": ("fp8 channel", change(f"{UP}.weight_scale", at((3, 0), NAN)), [f"{UP}.weight_scale", "nan"]),
    "an infinite scale": ("int8", change(f"{UP}.weight_scale", at((3, 0), INF)), [f"{UP}.weight_scale", "inf"]),
    "a negative scale": ("int8", change(f"{Q}.weight_scale", at((5, 0), -0.5)), [f"{Q}.weight_scale", "-0.5"]),
    "a negative scale of int4": ("int4", change(f"{GATE}.weight_scale", at((3, 1), -0.5)), [f"{GATE}.weight_scale", "-0.5"]),
    "a negative scale of gptq": ("gptq", change(f"{UP}.scales", at((1, 3), -0.5)), [f"{UP}.scales", "-0.5"]),
    "auto-round's may be negative, not infinite": (
        "auto-round",
        change(f"{UP}.scales", at((1, 3), -INF)),
        [f"{UP}.scales", "-inf"],
    ),
    "a code that is no number": ("fp8 channel", change(f"{UP}.weight", at((3, 9), 0x7F)), [f"{UP}.weight holds nan"]),
    "another such code": ("fp8 tensor", change(f"{Q}.weight", at((3, 9), 0xFF)), [f"{Q}.weight holds nan"]),
    "a block scale that is no number": ("nvfp4", change(f"{UP}.weight_scale", at((3, 1), 0x7F)), [f"{UP}.weight_scale", "nan"]),
    "a negative block scale": ("nvfp4 modelopt", change(f"{GATE}.weight_scale", at((3, 1), 0xB8)), [f"{GATE}.weight_scale", "-1"]),
    "division by zero": ("nvfp4", change(f"{UP}.weight_global_scale", at((0,), 0.0)), [f"{UP}.weight_global_scale", "above 0"]),
    "a negative second scale": ("nvfp4 modelopt", put(f"{UP}.weight_scale_2", torch.tensor(-1.0)), [f"{UP}.weight_scale_2", "-1"]),
    "a power of two that is no number": ("mxfp4", change(f"{UP}.weight_scale", at((3, 1), 255)), [f"{UP}.weight_scale", "nan"]),
    "a group that is not there": ("gptq act-order", change(f"{UP}.g_idx", at((5,), 2)), [f"{UP}.g_idx", "holds 2", "from 0 to 1"]),
    "an order that config.json denies": ("gptq", change(f"{UP}.g_idx", lambda t: t.flip(0).contiguous()), [f"{UP}.g_idx"]),
    # -- config.json says something else
    "no word of it": ("nvfp4", lambda c: c.config.pop("quantization_config") is None, ["nvfp4", "no quantization_config"]),
    "fp8 that is nvfp4": (
        "nvfp4",
        lambda c: c.config.update(quantization_config=Checkpoint("fp8 channel").config["quantization_config"]),
        ["stored as nvfp4", "says fp8"],
    ),
    "nvfp4 that is fp8": (
        "fp8 channel",
        lambda c: c.config.update(quantization_config=Checkpoint("nvfp4 modelopt").config["quantization_config"]),
        ["stored as fp8", "says nvfp4"],
    ),
    "gptq that is awq": (
        "awq",
        lambda c: c.config.update(quantization_config=Checkpoint("gptq").config["quantization_config"]),
        ["qweight"],
    ),
    "gptq that is compressed-tensors": (
        "int4",
        lambda c: c.config.update(quantization_config=Checkpoint("gptq").config["quantization_config"]),
        ["weight_packed", "checkpoints of gptq do not have"],
    ),
    "compressed-tensors that is gptq": (
        "gptq",
        lambda c: c.config.update(quantization_config=Checkpoint("int4").config["quantization_config"]),
        ["qweight", "checkpoints of compressed-tensors do not have"],
    ),
    "compressed-tensors that is modelopt": (
        "nvfp4 modelopt",
        lambda c: c.config.update(quantization_config=Checkpoint("nvfp4").config["quantization_config"]),
        ["weight_scale_2", "checkpoints of compressed-tensors do not have"],
    ),
    "modelopt that is compressed-tensors": (
        "nvfp4",
        lambda c: c.config.update(quantization_config=Checkpoint("nvfp4 modelopt").config["quantization_config"]),
        ["weight_global_scale", "checkpoints of modelopt do not have"],
    ),
    "blocks that are rows": (
        "fp8 channel",
        lambda c: c.config.update(quantization_config=Checkpoint("fp8 block").config["quantization_config"]),
        ["weight_scale", "config.json asks for"],
    ),
    "blocks that are a matrix": (
        "fp8 tensor",
        lambda c: c.config.update(quantization_config=Checkpoint("fp8 block").config["quantization_config"]),
        ["weight_scale", "config.json asks for"],
    ),
    "another group size": ("int4", weights(group_size=16), ["weight_scale", "16"]),
    "another group size of gptq": ("gptq", say(group_size=64), ["scales", "64"]),
    "rows that are groups": ("int4", weights(strategy="channel", group_size=None), ["weight_scale", "whole row"]),
    "zero points that are not there": ("int4", weights(symmetric=False), ["no weight_zero_point"]),
    "blocks of another size": ("fp8 block", weights(block_structure=[32, 48]), ["weight_scale"]),
    # -- what is not read
    "three bits": ("int4", weights(num_bits=3), ["3 bits", "allowed"]),
    "eight bits of gptq": ("gptq", say(bits=8), ["bits 8", "allowed: 4"]),
    "marlin": ("gptq", say(checkpoint_format="marlin"), ["marlin", "gptq_v2"]),
    "gemv": ("awq", say(version="gemv"), ["gemv", "allowed: gemm"]),
    "an unknown method": ("int4", say(quant_method="hqq"), ["'hqq'", "compressed-tensors"]),
    "an unknown algorithm": ("nvfp4 modelopt", say(quant_algo="W4A16_AWQ"), ["W4A16_AWQ", "NVFP4"]),
    "an algorithm that is no name": ("nvfp4 modelopt", say(quant_algo=["NVFP4"]), ["quant_algo"]),
    "an unknown packing": ("auto-round", say(packing_format="marlin"), ["packing_format"]),
    "transforms": ("int4", say(transform_config={"config_groups": {"a": {}}}), ["transform_config"]),
    "sparse": ("int4", say(sparsity_config={"format": "sparse-24-bitmask"}), ["sparsity_config"]),
    "groups that are none": ("int4", say(config_groups=3), ["config_groups"]),
    "no groups": ("int4", say(config_groups={}), ["no weights"]),
    "a group size that is none": ("gptq", say(group_size="32"), ["group_size"]),
    "quark in another format": ("mxfp4 quark", say(global_quant_config={"weight": {"dtype": "int4"}}), ["int4", "mxfp4"]),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_by_name(case: str, tmp_path: Path) -> None:
    fmt, damage, needles = CASES[case]
    checkpoint = Checkpoint(fmt)
    damage(checkpoint)
    message = refusal(checkpoint, tmp_path / "q")
    assert all(needle in message for needle in needles), message


def test_quantised_by_word_only(tmp_path: Path) -> None:
    checkpoint = Checkpoint("fp8 channel", plain_part=("self_attn", "mlp", "experts"))
    assert "says that weights are quantised, but none is" in refusal(checkpoint, tmp_path / "q")


def test_mlx(tmp_path: Path) -> None:
    checkpoint = Checkpoint("fp8 channel")
    checkpoint.config["quantization"] = {"group_size": 64, "bits": 4, "mode": "affine"}
    del checkpoint.config["quantization_config"]
    for suffix in ("weight", "weight_scale"):
        del checkpoint.stored[f"{Q}.{suffix}"]
    checkpoint.stored |= {f"{Q}.weight": torch.zeros(64, 8, dtype=torch.uint32), f"{Q}.scales": torch.ones(64, 1)}
    message = refusal(checkpoint, tmp_path / "q")
    assert "MLX" in message and Q in message


def shard(checkpoint: Checkpoint, folder: Path) -> dict[str, str]:
    """Two files and an index."""
    checkpoint.write(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(checkpoint.stored)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: checkpoint.stored[name].contiguous() for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return files


def test_shards_of_one_linear(tmp_path: Path) -> None:
    """Codes in one file, scales in the other."""
    checkpoint = Checkpoint("nvfp4 modelopt")
    shard(checkpoint, tmp_path)
    model = DiffusionGemmaModel.from_pretrained(tmp_path)
    for name, record in model.transformer.packed():
        wanted = checkpoint.values[name]
        one = record.expert(3) if wanted.ndim == 3 else record
        assert torch.equal(one.dequantize(), wanted[3] if wanted.ndim == 3 else wanted)


def test_a_shard_cut_short(tmp_path: Path) -> None:
    files = shard(Checkpoint("nvfp4"), tmp_path)
    path = tmp_path / files[f"{UP}.weight_packed"]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        DiffusionGemmaModel.from_pretrained(tmp_path)


def test_an_index_that_lies(tmp_path: Path) -> None:
    files = shard(Checkpoint("nvfp4"), tmp_path)
    files[f"{UP}.weight_packed"], files[f"{UP}.weight_scale"] = files[f"{UP}.weight_scale"], files[f"{UP}.weight_packed"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    with pytest.raises(CheckpointError, match="disagree about"):
        DiffusionGemmaModel.from_pretrained(tmp_path)


def test_nothing_is_read_before_all_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer's fault is found without a byte of the first layer's weights."""
    from diffusiongemma.weights.tensor_bytes import TensorBytes

    checkpoint = Checkpoint("nvfp4")
    del checkpoint.stored["model.decoder.layers.2.experts.11.down_proj.weight_scale"]
    monkeypatch.setattr(TensorBytes, "read", lambda *_: pytest.fail("a tensor was read"))
    monkeypatch.setattr(TensorBytes, "view", lambda *_: pytest.fail("a tensor was mapped"))
    assert "layers.2.experts.11.down_proj" in refusal(checkpoint, tmp_path / "q")


def test_a_config_of_a_larger_model(tmp_path: Path) -> None:
    """Sixteen terabytes are asked for: none are allocated, and the missing experts are not listed one by one."""
    checkpoint = Checkpoint("nvfp4")
    checkpoint.config["text_config"]["num_experts"] = 1 << 30
    assert "config.json asks for [1073741824" in refusal(checkpoint, tmp_path / "q")
    for name in [name for name in checkpoint.stored if ".router." in name]:
        del checkpoint.stored[name]
    assert f"lacks {3 * 3 * (1 << 30) - 3 * 36 + 9} tensor(s)" in refusal(checkpoint, tmp_path / "r")


def test_symmetric_zero_points_that_are_stored_count(tmp_path: Path) -> None:
    """Older writers stored them; they are used as they are, whatever the config calls them."""
    checkpoint = Checkpoint("int8 asymmetric")
    checkpoint.config["quantization_config"] = compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"})
    model = DiffusionGemmaModel.from_pretrained(checkpoint.write(tmp_path / "q"))
    record = dict(model.transformer.packed())["layers.0.self_attn.q_proj.weight"]
    assert torch.equal(record.dequantize(), checkpoint.values["layers.0.self_attn.q_proj.weight"])
