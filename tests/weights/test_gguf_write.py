"""GGUF files that are written here: the package gguf and our own reader see the same model in them, or nothing is written."""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.errors import CheckpointError, InputError, OptionError
from diffusiongemma.generation.quantising import quantize_checkpoint
from diffusiongemma.model.assemble import assemble
from diffusiongemma.opened import open_checkpoint
from diffusiongemma.quant import PackedWeight
from diffusiongemma.weights.gguf_names import to_ours
from diffusiongemma.weights.gguf_write import WRITABLE
from diffusiongemma.weights.resolve import resolve
from tests.gguf_files import write_model
from tests.quant.records import values
from tests.tiny import tiny_config, tiny_model, tiny_transformer

WIDE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "global_head_dim": 32, "moe_intermediate_size": 32,
}  # fmt: skip
"""Rows that blocks of 32 divide."""


def source(folder: Path, seed: int = 0, **text: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(**{**WIDE, **text})
    tiny_model(folder, tiny_transformer(config, seed=seed, scale=0.2), (5, 9), confidence=0.1).save_pretrained(folder)
    return folder


def read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The types and values of all tensors, by the package's own reader, under our names."""
    types, result = {}, {}
    for tensor in gguf.GGUFReader(path).tensors:
        types[tensor.name] = tensor.tensor_type.name
        shape = tuple(int(size) for size in reversed(tensor.shape))
        plain = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        if (name := to_ours(tensor.name)) is not None:
            result[name] = torch.from_numpy(plain.copy())
    return types, result


@pytest.mark.parametrize("kind", WRITABLE)
def test_the_package_and_our_reader_agree_to_the_bit(kind: str, tmp_path: Path) -> None:
    folder, path = source(tmp_path / "source"), tmp_path / "copy.gguf"
    seen: list[tuple[int, int]] = []
    errors = quantize_checkpoint(folder, path, f"gguf:{kind.lower()}", progress=lambda *at: seen.append(at))
    types, expected = read(path)
    ours = dict(open_checkpoint(path).load(None))
    assert set(ours) == set(expected)
    for name, weight in ours.items():
        result = values(weight) if isinstance(weight, PackedWeight) else weight.float()
        assert torch.equal(result, expected[name]), name
    assert types["blk.0.attn_q.weight"] == ("Q8_0" if kind == "MXFP4" else kind) and types["blk.1.ffn_down_exps.weight"] == kind
    assert types["blk.0.ffn_gate_inp.weight"] == types["output_norm.weight"] == "F32"
    assert types["token_embd.weight"] == (kind if "16" in kind or "32" in kind else "Q8_0")
    matrices = {(layer, part) for layer in range(3) for part in ("attention", "mlp", "experts")}
    assert {(error.layer, error.part) for error in errors} == {*matrices, (-1, "embedding"), (-1, "self_conditioning")}
    assert all(error.error == 0 if kind == "F32" else 0 < error.error < 0.15 for error in errors)
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert [file.name for file in tmp_path.iterdir() if not file.is_dir()] == ["copy.gguf"]


def test_a_generation_is_that_of_the_dequantised_twin(tmp_path: Path) -> None:
    quantize_checkpoint(source(tmp_path / "source"), tmp_path / "copy.gguf", "gguf:q5_0")
    model = DiffusionGemmaModel.from_pretrained(tmp_path / "copy.gguf")
    stack = assemble(model.config, read(tmp_path / "copy.gguf")[1].items(), torch.float32, torch.device("cpu"), keep=False)
    twin = DiffusionGemmaModel(stack, model.tokenizer, model.defaults, model.stop_ids)
    options: dict[str, Any] = {"max_tokens": 24, "num_diffusion_steps": 5, "seed": 3}
    for prompts in (["abc", "hello"], ["a"]):
        results, wanted = model.generate(prompts, **options), twin.generate(prompts, **options)
        assert [result.token_ids for result in results] == [result.token_ids for result in wanted]


@pytest.mark.parametrize(("name", "text"), [("nano", "R4=7 one, two: 3"), ("sudoku", "A1=4\nB7=?")])
def test_everything_but_the_weights_comes_back(name: str, text: str, tmp_path: Path) -> None:
    """Tokenizers of another kind than Gemma's too, and sampling defaults that the published keys have no room for."""
    quantize_checkpoint(resolve(name), tmp_path / "copy.gguf", "gguf:bf16")
    result, wanted = DiffusionGemmaModel.from_pretrained(tmp_path / "copy.gguf"), DiffusionGemmaModel.from_pretrained(name)
    assert result.defaults == wanted.defaults and result.stop_ids == wanted.stop_ids
    assert result.config.text.layers == wanted.config.text.layers and result.config.canvas_length == wanted.config.canvas_length
    for key, tensor in wanted.transformer.state_dict().items():
        assert torch.equal(result.transformer.state_dict()[key], tensor), key
    messages = [{"role": "user", "content": text}]
    assert result.prompt_ids(messages=messages) == wanted.prompt_ids(messages=messages)


def test_gemma_s_tokenizer_is_written_as_lists(tmp_path: Path) -> None:
    """A file of llama.cpp's converter, through safetensors and back: the same keys, and no copy of tokenizer.json."""
    write_model(tmp_path / "first.gguf", "BF16")
    first = DiffusionGemmaModel.from_pretrained(tmp_path / "first.gguf")
    first.save_pretrained(tmp_path / "folder")
    quantize_checkpoint(tmp_path / "folder", tmp_path / "second.gguf", "gguf:bf16")
    before, after = (open_checkpoint(tmp_path / f"{name}.gguf").metadata for name in ("first", "second"))
    assert before is not None and after is not None and not any("huggingface" in key or "diffusiongemma." in key for key in after)
    assert {key: after.get(key) for key in before if key != "general.alignment"} == dict(before)


def test_another_gguf_file_and_packed_weights_are_sources(tmp_path: Path) -> None:
    """Blocks of the type that is asked for are copied; others are expanded and rounded again."""
    folder = source(tmp_path / "source")
    quantize_checkpoint(folder, tmp_path / "8.gguf", "gguf:q8_0")
    quantize_checkpoint(tmp_path / "8.gguf", tmp_path / "same.gguf", "gguf:q8_0")
    assert (tmp_path / "8.gguf").read_bytes() == (tmp_path / "same.gguf").read_bytes()
    quantize_checkpoint(tmp_path / "8.gguf", tmp_path / "16.gguf", "gguf:f32")
    for name, tensor in read(tmp_path / "8.gguf")[1].items():
        assert torch.equal(read(tmp_path / "16.gguf")[1][name], tensor)
    quantize_checkpoint(folder, tmp_path / "packed", "fp8")
    quantize_checkpoint(tmp_path / "packed", tmp_path / "from-fp8.gguf", "gguf:f32")
    weight = dict(open_checkpoint(tmp_path / "packed").load(None))["layers.1.experts.down_proj"]
    assert isinstance(weight, PackedWeight)
    assert torch.equal(read(tmp_path / "from-fp8.gguf")[1]["layers.1.experts.down_proj"], values(weight))
    with pytest.raises(CheckpointError, match="is a GGUF file; int8 is made of 16- or 32-bit safetensors"):
        quantize_checkpoint(tmp_path / "8.gguf", tmp_path / "out", "int8")


def test_parts_can_be_chosen_and_rows_that_do_not_fit_stay(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", moe_intermediate_size=16)
    quantize_checkpoint(folder, tmp_path / "a.gguf", "gguf:q4_0", parts=["experts"])
    types, _ = read(tmp_path / "a.gguf")
    assert types["blk.0.ffn_gate_up_exps.weight"] == "Q4_0"
    assert {types[name] for name in ("blk.0.ffn_down_exps.weight", "token_embd.weight", "blk.0.attn_q.weight")} == {"BF16"}


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a K-quant": ("gguf:q4_k", {}, "format is 'gguf:q4_k'; .*q8_0, q5_1.*llama-quantize"),
    "no type": ("gguf:", {}, "format is 'gguf:'"),
    "another format": ("int3", {}, "format is 'int3'; allowed: fp8.*gguf:q8_0"),
    "a bias": ("gguf:q8_0", {"attention_bias": True}, r"no place for layers\.0\.self_attn\.\w+\.bias"),
    "an activation": ("gguf:q8_0", {"hidden_activation": "silu"}, "cannot hold this model's hidden_activation"),
    "stretched positions": (
        "gguf:q8_0",
        {"rope_parameters": {
            "sliding_attention": {"rope_type": "linear", "factor": 4.0},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25},
        }},
        "rope_parameters of sliding_attention",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    kind, text, message = REFUSED[case]
    folder = source(tmp_path / "source", **text)
    (tmp_path / "out").mkdir()
    with pytest.raises(OptionError, match=message):
        quantize_checkpoint(folder, tmp_path / "out" / "copy.gguf", kind)
    assert not list((tmp_path / "out").iterdir())


def test_a_diffusion_process_that_the_format_has_no_place_for_is_not_dropped(tmp_path: Path) -> None:
    folder = source(tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    config["diffusiongemma"] = {"process": {"name": "absorbing", "mask_token_id": 3}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(OptionError, match="cannot hold this model's diffusion process"):
        quantize_checkpoint(folder, tmp_path / "copy.gguf", "gguf:q8_0")


def test_an_interruption_and_a_value_that_does_not_fit_leave_nothing(tmp_path: Path) -> None:
    folder, out = source(tmp_path / "source"), tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(folder, out / "copy.gguf", "gguf:q8_0", progress=stop)
    assert not list(out.iterdir())
    model = DiffusionGemmaModel.from_pretrained(folder)
    model.transformer.layers[0].mlp.up_proj.weight[0, 0] = 1e5  # type: ignore[union-attr,operator,index]
    model.save_pretrained(tmp_path / "large")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight has a value .* too large for F16"):
        quantize_checkpoint(tmp_path / "large", out / "copy.gguf", "gguf:f16")
    assert not list(out.iterdir())


def test_names_that_are_taken_or_no_file_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = source(tmp_path / "source")
    (tmp_path / "mine.gguf").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already"):
        quantize_checkpoint(folder, tmp_path / "mine.gguf", "gguf:q8_0")
    assert (tmp_path / "mine.gguf").read_text() == "mine"
    with pytest.raises(OptionError, match=r"does not end in \.gguf"):
        quantize_checkpoint(folder, tmp_path / "copy", "gguf:q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'diffusiongemma\[gguf\]'"):
        quantize_checkpoint(folder, tmp_path / "copy.gguf", "gguf:q8_0")


@pytest.mark.parametrize("content", ["{", "[1]", json.dumps({"t_min": 1}), json.dumps({"eos_token_id": 1})])
def test_a_spoilt_generation_config(content: str, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", change={"diffusiongemma.generation_config": content})
    with pytest.raises(CheckpointError, match=r"the metadata key diffusiongemma\.generation_config is no"):
        DiffusionGemmaModel.from_pretrained(tmp_path / "m.gguf")
