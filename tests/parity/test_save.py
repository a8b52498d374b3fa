"""What we write, transformers reads, and what it writes in other ways, we read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaGenerationConfig

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.errors import CheckpointError
from diffusiongemma.generation import DiffusionGemmaModel
from tests import released
from tests.parity.reference import CONFIGS, load_ours, with_encoder_states, write_checkpoint
from tests.tiny import letters

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def written(folder: Path, **options: Any) -> Path:
    """A checkpoint by transformers, with a tokenizer beside it, so that the whole of our loading runs."""
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder, **options)
    letters(folder)
    return folder


def load_theirs(folder: Path, dtype: torch.dtype = torch.float32) -> DiffusionGemmaForBlockDiffusion:
    """transformers' load, which must find every tensor it wants and want every tensor it finds."""
    model, info = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")} == {
        "missing_keys": [],
        "unexpected_keys": [],
        "mismatched_keys": [],
    }
    return model.eval()


def their_numbers(folder: Path) -> tuple[Tensor, Tensor]:
    """Encoder states and canvas logits of a folder."""
    model = load_theirs(folder)
    generator = torch.Generator().manual_seed(3)
    vocabulary = model.config.text_config.vocab_size
    ids = torch.randint(0, vocabulary, (1, 13), generator=generator)
    canvas = torch.randint(0, vocabulary, (1, 8), generator=generator)
    with torch.no_grad():
        out, encoded = with_encoder_states(model, input_ids=ids, decoder_input_ids=canvas)
    return encoded, out.logits


SAVED = [
    "two sliding to one full",
    "nested spelling, one size",
    "full first",
    "default pattern",
    "attention bias",
    "rope proportional factor",
    "rope linear",
    "odd sizes",
    "soft cap 2",
]


@pytest.mark.parametrize("name", SAVED)
def test_transformers_loads_what_we_save(tmp_path: Path, name: str) -> None:
    """Same tensors by name, same configuration by meaning, same numbers."""
    source = written(tmp_path / "source", **{**CONFIGS[name], "vocab_size": 64})
    target = tmp_path / "target"
    DiffusionGemmaModel.from_pretrained(source).save_pretrained(target)
    for ours, theirs in zip(their_numbers(target), their_numbers(source), strict=True):
        assert torch.equal(ours, theirs)
    before, after = load_file(source / WEIGHTS), load_file(target / WEIGHTS)
    assert before.keys() == after.keys(), "transformers' own file holds the same names"
    assert all(torch.equal(before[key], after[key]) for key in before), "vision included"
    assert load_ours(target).config == load_ours(source).config


def test_a_loaded_dtype_is_kept_in_the_file(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    DiffusionGemmaModel.from_pretrained(source, dtype="bfloat16").save_pretrained(tmp_path / "target")
    assert json.loads((tmp_path / "target" / "config.json").read_text())["dtype"] == "bfloat16"
    text = {k: v for k, v in load_file(tmp_path / "target" / WEIGHTS).items() if "decoder" in k or "layer_scalar" in k}
    assert {tensor.dtype for tensor in text.values()} == {torch.bfloat16}
    load_theirs(tmp_path / "target", torch.bfloat16)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_diffusion_steps": 7, "entropy_bound": 0.25, "t_min": 0.1, "t_max": 1.5, "stability": 0, "confidence": 0.5},
        {"entropy_bound": 1, "confidence": 1},
    ],
)
def test_transformers_reads_our_generation_config(tmp_path: Path, options: dict[str, Any]) -> None:
    """Every value that we accept must be one that transformers accepts too, or the saved folder is of no use there."""
    model = DiffusionGemmaModel.from_pretrained(written(tmp_path / "source"))
    params = SamplingParams(max_tokens=77, **options)
    DiffusionGemmaModel(model.transformer, model.tokenizer, params, (5, 9), model.folder).save_pretrained(tmp_path / "target")
    theirs = DiffusionGemmaGenerationConfig.from_pretrained(tmp_path / "target")
    assert (theirs.max_denoising_steps, theirs.max_new_tokens) == (params.num_diffusion_steps, 77)
    assert (theirs.t_min, theirs.t_max) == (params.t_min, params.t_max)
    assert (theirs.stability_threshold, theirs.confidence_threshold) == (params.stability, params.confidence)
    assert theirs.sampler_config.entropy_bound == params.entropy_bound
    assert theirs.eos_token_id == [5, 9]
    again = DiffusionGemmaModel.from_pretrained(tmp_path / "target")
    assert (again.defaults, again.stop_ids) == (params, (5, 9))


def test_a_sharded_checkpoint_of_transformers(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    load_theirs(source).save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    assert (tmp_path / "shards" / INDEX).is_file()
    whole, parts = load_ours(source).state_dict(), load_ours(tmp_path / "shards").state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_saving_over_a_sharded_checkpoint_leaves_nothing_of_it(tmp_path: Path) -> None:
    """The new weights must be what loads afterwards, whatever files lay there before."""
    source = written(tmp_path / "source")
    load_theirs(source).save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    letters(tmp_path / "shards")
    model = DiffusionGemmaModel.from_pretrained(tmp_path / "shards")
    model.transformer.norm.weight += 1.0
    model.save_pretrained(tmp_path / "shards")
    again = DiffusionGemmaModel.from_pretrained(tmp_path / "shards")
    assert torch.equal(again.transformer.norm.weight, model.transformer.norm.weight)
    assert torch.equal(load_theirs(tmp_path / "shards").model.decoder.norm.weight, model.transformer.norm.weight)


def test_saving_over_the_checkpoint_it_came_from(tmp_path: Path) -> None:
    """Vision tensors are copied out of the very file that is replaced."""
    folder = written(tmp_path)
    before = load_file(folder / WEIGHTS)
    DiffusionGemmaModel.from_pretrained(folder).save_pretrained(folder)
    after = load_file(folder / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


FILES = {
    "processor_config.json": b'{"image_seq_length": 280}',
    "preprocessor_config.json": b'{"do_resize": true}',
    "chat_template.jinja": b"{{ messages[0].content }}",
    "chat_template.json": b'{"chat_template": "x"}',
    "special_tokens_map.json": b"{}",
    "added_tokens.json": b'{"<x>": 3}',
    "tokenizer_config.json": b'{"padding_side": "left", "unknown": [1]}',
    "model_index.json": b'{"_class_name": "DiffusionGemmaPipeline"}',
    "scheduler/scheduler_config.json": b'{"block_length": 32}',
    "README.md": b"# card",
    "LICENSE": b"words",
}


def decorate(folder: Path) -> dict[str, Any]:
    """Give a checkpoint everything that released and re-saved ones have; returns its config.json."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    generation = released.read("generation_config.json") | {"eos_token_id": [1, 6, 50], "disable_compile": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    config = json.loads((folder / "config.json").read_text())
    config |= {name: value for name, value in released.config().items() if name not in ("text_config", "vision_config")}
    config |= {"eos_token_id": [1, 6], "canvas_length": 8, "pad_token_id": 0, "audio_config": None, "video_token_id": 258884}
    config |= {"unsloth_fixed": True, "flavour": "sweet"}
    config["text_config"] |= {"enable_moe_block": True, "num_kv_shared_layers": 0, "dtype": "float32", "colour": None, "smell": [1]}
    config["vision_config"] |= {"taste": 1}
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return config | {"dtype": "float32"}


def content_of(folder: Path, *but: str) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {name: path.read_bytes() for path in paths if (name := str(path.relative_to(folder))) not in but}


@pytest.mark.parametrize("spelling", ["flat", "nested"])
def test_every_field_and_file_is_given_back(tmp_path: Path, spelling: str) -> None:
    source, target = written(tmp_path / "source", spelling=spelling), tmp_path / "target"
    config = decorate(source)
    DiffusionGemmaModel.from_pretrained(source).save_pretrained(target)
    assert json.loads((target / "config.json").read_text()) == config
    names = ("config.json", "generation_config.json", WEIGHTS)
    assert content_of(target, *names) == content_of(source, *names)
    generation = [json.loads((folder / "generation_config.json").read_text()) for folder in (source, target)]
    assert generation[0] == generation[1]
    theirs = AutoConfig.from_pretrained(target)
    assert (theirs.eos_token_id, theirs.flavour, theirs.text_config.smell) == ([1, 6], "sweet", [1])
    for ours, expected in zip(their_numbers(target), their_numbers(source), strict=True):
        assert torch.equal(ours, expected)


def test_saving_over_the_source_loses_nothing(tmp_path: Path) -> None:
    folder = written(tmp_path)
    config = decorate(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "deep").mkdir()
    (folder / "deep" / "er.txt").write_text("mine too")
    before = content_of(folder, "config.json", "generation_config.json", WEIGHTS)
    DiffusionGemmaModel.from_pretrained(folder).save_pretrained(folder)
    assert content_of(folder, "config.json", "generation_config.json", WEIGHTS) == before
    assert json.loads((folder / "config.json").read_text()) == config


def test_a_copy_in_another_dtype_says_so(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    decorate(source)
    DiffusionGemmaModel.from_pretrained(source, dtype="bfloat16").save_pretrained(tmp_path / "target")
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    assert (config["dtype"], config["text_config"]["dtype"]) == ("bfloat16", "bfloat16")
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(tmp_path / "target", dtype="auto")
    assert model.model.decoder.norm.weight.dtype == torch.bfloat16


def test_changed_sampling_defaults_keep_the_other_fields(tmp_path: Path) -> None:
    """Unknown ones too, which transformers would refuse in the source as well."""
    source = written(tmp_path / "source")
    decorate(source)
    (source / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 6, "top_h": 0.5, **SamplingParams().to_generation_config()})
    )
    model = DiffusionGemmaModel.from_pretrained(source)
    model.defaults = model.defaults.replaced(t_max=0.9, schedule="cosine")
    model.save_pretrained(tmp_path / "target")
    result = json.loads((tmp_path / "target" / "generation_config.json").read_text())
    expected = json.loads((source / "generation_config.json").read_text())
    assert result == expected | {"t_max": 0.9}
    assert json.loads((tmp_path / "target" / "sampling.json").read_text()) == {"schedule": "cosine"}
    again = DiffusionGemmaModel.from_pretrained(tmp_path / "target")
    again.defaults = again.defaults.replaced(schedule="linear")
    again.save_pretrained(tmp_path / "third")
    assert json.loads((tmp_path / "third" / "generation_config.json").read_text()) == expected | {"t_max": 0.9}


@pytest.mark.parametrize(
    ("generation", "top", "stops"),
    [([1, 6, 50], [1, 6], (1, 6, 50)), (50, [1, 6], (50,)), (None, [1, 6], (1, 6)), (None, None, (1,)), (None, 7, (7,))],
)
def test_stop_tokens_come_from_the_nearest(tmp_path: Path, generation: Any, top: Any, stops: tuple[int, ...]) -> None:
    """generation_config.json, then the top of config.json, then its text_config (whose default is 1)."""
    source = written(tmp_path / "source")
    config = decorate(source) | {"eos_token_id": top}
    (source / "config.json").write_text(json.dumps(config))
    (source / "generation_config.json").write_text(json.dumps({} if generation is None else {"eos_token_id": generation}))
    model = DiffusionGemmaModel.from_pretrained(source)
    assert model.stop_ids == stops
    model.save_pretrained(tmp_path / "target")
    assert DiffusionGemmaModel.from_pretrained(tmp_path / "target").stop_ids == stops


def test_a_generation_config_inside_config_json_counts_where_there_is_no_file(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    config = decorate(source) | {"generation_config": {"eos_token_id": [9], "max_denoising_steps": 7}}
    (source / "config.json").write_text(json.dumps(config))
    assert DiffusionGemmaModel.from_pretrained(source).stop_ids == (1, 6, 50)
    (source / "generation_config.json").unlink()
    model = DiffusionGemmaModel.from_pretrained(source)
    assert (model.stop_ids, model.defaults.num_diffusion_steps) == ((9,), 7)


def encoder_copies(content: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor that encoder and decoder share, under the encoder's name."""
    alone = ("self_conditioning", "layer_scalar")
    return {
        name.replace("model.decoder", "model.encoder.language_model"): tensor.clone()
        for name, tensor in content.items()
        if name.startswith("model.decoder.") and not any(part in name for part in alone)
    }


def test_a_checkpoint_with_all_encoder_copies(tmp_path: Path) -> None:
    folder = written(tmp_path)
    content = load_file(folder / WEIGHTS)
    expected = load_ours(folder).state_dict()
    copies = encoder_copies(content)
    assert len(copies) > 40
    save_file({**content, **copies}, folder / WEIGHTS, metadata={"format": "pt"})
    loaded = load_ours(folder).state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize("part", ["mlp.up_proj.weight", "experts.down_proj", "router.per_expert_scale", "input_layernorm.weight"])
def test_a_copy_that_differs_is_refused(tmp_path: Path, part: str) -> None:
    """Whichever of the two were taken, one role would run on weights that are not its own."""
    folder = written(tmp_path)
    content = load_file(folder / WEIGHTS)
    copies = encoder_copies(content)
    name = f"model.encoder.language_model.layers.1.{part}"
    copies[name].view(-1)[-1] += 0.5
    save_file({**content, **copies}, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="differs from") as caught:
        DiffusionGemmaModel.from_pretrained(folder)
    assert name.replace("encoder.language_model", "decoder") in str(caught.value)


def test_biases_of_the_two_roles_that_differ_are_refused(tmp_path: Path) -> None:
    """transformers ties no biases, so a checkpoint may hold two different ones; one stack of weights cannot."""
    folder = written(tmp_path, attention_bias=True)
    content = load_file(folder / WEIGHTS)
    content["model.encoder.language_model.layers.0.self_attn.q_proj.bias"] += 0.5
    save_file(content, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"q_proj\.bias differs"):
        DiffusionGemmaModel.from_pretrained(folder)
