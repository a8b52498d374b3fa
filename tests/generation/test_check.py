"""``check``: what agrees, what differs, what could not be looked at, on headers of every published layout and on whole models."""

import json
import math
import os
import re
import resource
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, NotASafetensorsRepoError, SafetensorsParsingError
from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo
from safetensors.torch import load_file, save_file

from diffusiongemma.errors import CheckpointError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.generation.check import Report, check
from diffusiongemma.generation.check.layout import layout_of
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.weights.headers import BITS
from tests import released
from tests.tiny import config_dict, tiny_model

INDEX = "model.safetensors.index.json"
PUBLISHED = "published number of tensors"
Headers = dict[str, tuple[str, tuple[int, ...]]]


def asked(kind: str) -> Headers:
    """Every tensor of a released checkpoint: name -> dtype and shape."""
    return dict(_asked(kind))


@cache
def _asked(kind: str) -> Headers:
    tensors = layout_of(ModelConfig.from_dict(released.config(kind))).tensors
    assert tensors is not None
    choose = {"fp8": "BF16", "nvfp4": "BF16", "bf16": "BF16"}[kind]
    return {name: (choose if choose in one.dtypes else min(one.dtypes), one.shapes[0]) for name, one in tensors.items()}


def write_headers(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """A safetensors file of the right size without data: a hole after the header."""
    at, header = 0, {}
    for name, (dtype, shape) in tensors.items():
        size = BITS[dtype] * math.prod(shape) // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    content = json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content)
    os.truncate(path, 8 + len(content) + at)


def folder_of(folder: Path, kind: str, tensors: Headers | None = None, shards: int = 2) -> Path:
    """A released checkpoint as headers alone, with its small JSON files."""
    folder.mkdir(exist_ok=True)
    released.write(folder, kind)
    tensors = asked(kind) if tensors is None else tensors
    names = list(tensors)
    files = {name: f"model-{1 + i * shards // len(names):05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(files.values())):
        write_headers(folder / file, {name: tensors[name] for name in names if files[name] == file})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def verdicts(report: Report) -> dict[str, str]:
    return {row.what: row.verdict for row in report.rows}


def wrong(report: Report) -> list[str]:
    return [f"{row.what}: {row.detail}" for row in report.rows if row.verdict in ("differs", "damaged")]


@pytest.mark.parametrize(("kind", "count"), [("bf16", 1_047), ("fp8", 24_232), ("nvfp4", 47_067)])
def test_the_published_layouts_of_full_size_agree_within_seconds(tmp_path: Path, kind: str, count: int) -> None:
    """Headers of 52, 27 and 19 GB of holes: nothing after a header is read."""
    folder = folder_of(tmp_path, kind, shards={"bf16": 11, "fp8": 1, "nvfp4": 2}[kind])
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = check(folder)
    assert time.process_time() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024
    assert wrong(report) == [] and report.agrees and report.published
    result = verdicts(report)
    for what in (
        "headers",
        "names",
        "shapes",
        "dtypes",
        "published config.json",
        PUBLISHED,
        "sampling defaults",
        "loader",
    ):
        assert result[what] == "agrees", what
    assert result["tokenizer"] == result["denoising step"] == "not checked"
    assert any(f"{count:,}" in row.detail for row in report.rows if row.what == PUBLISHED)
    assert "no data" in report.rows[-1].detail


Q, EXPERT = "model.decoder.layers.3.self_attn.q_proj.weight", "model.decoder.layers.3.experts.5.up_proj.weight_scale"


def drop(name: str) -> Callable[[Headers], Any]:
    return lambda tensors: tensors.pop(name)


def put(name: str, dtype: str, *shape: int) -> Callable[[Headers], Any]:
    return lambda tensors: tensors.update({name: (dtype, shape)})


@pytest.mark.parametrize(
    ("kind", "spoil", "needle"),
    [
        ("bf16", drop(Q), f"names: 1,046 of 1,047 tensors are there; missing: {Q}"),
        ("bf16", drop("model.encoder.language_model.layers.7.layer_scalar"), "missing: model.encoder.language_model.layers.7"),
        ("bf16", drop("model.encoder.vision_tower.std_bias"), "missing: model.encoder.vision_tower.std_bias"),
        ("bf16", put("model.decoder.layers.5.self_attn.v_proj.weight", "BF16", 1024, 2816), "names: 1 tensors have no place"),
        ("bf16", put(Q, "BF16", 4096, 2817), f"shapes: 1 of 1,047: {Q} is [4096, 2817], not [4096, 2816]"),
        ("bf16", put(Q, "F32", 4096, 2816), f"dtypes: 1 of 1,047: {Q} is F32, not BF16"),
        ("bf16", put(Q, "F8_E4M3", 4096, 2816), f"{Q} is F8_E4M3, not BF16"),
        ("nvfp4", drop(EXPERT), "47,066 of 47,067"),
        ("nvfp4", put(EXPERT, "BF16", 704, 176), f"{EXPERT} is BF16, not F8_E4M3"),
        ("fp8", put(EXPERT, "BF16", 704, 2), f"{EXPERT} is [704, 2], not [704, 1]"),
        ("fp8", put(Q, "BF16", 4096, 2816), f"{Q} is BF16, not F8_E4M3"),
    ],
)
def test_one_tensor_that_is_wrong(tmp_path: Path, kind: str, spoil: Callable[[Headers], Any], needle: str) -> None:
    tensors = asked(kind)
    spoil(tensors)
    report = check(folder_of(tmp_path, kind, tensors))
    assert not report.agrees
    assert any(needle in line for line in wrong(report)), wrong(report)
    assert report.rows[-1].verdict == "not checked", "the step is not computed"


def test_modelopt_may_say_it_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "nvfp4")
    how = released.config("nvfp4")["quantization_config"]
    (folder / "config.json").write_text(json.dumps(released.config()))
    own = {"quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": "FP8", "exclude_modules": how["ignore"]}
    (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": own}))
    report = check(folder, forward=False)
    assert report.agrees and report.format == "NVFP4 (modelopt)" and verdicts(report)[PUBLISHED] == "agrees"


def test_tied_copies_are_no_surplus_and_a_copy_alone_is_enough(tmp_path: Path) -> None:
    tensors = asked("bf16")
    tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"]
    tensors[Q.replace("model.decoder", "model.encoder.language_model")] = tensors.pop(Q)
    report = check(folder_of(tmp_path, "bf16", tensors), forward=False)
    names = next(row for row in report.rows if row.what == "names")
    assert names.verdict == "agrees" and "1 tied copies" in names.detail


def test_a_copy_for_text_alone(tmp_path: Path) -> None:
    tensors = {name: one for name, one in asked("bf16").items() if "vision" not in name}
    report = check(folder_of(tmp_path, "bf16", tensors), forward=False)
    assert report.agrees
    assert verdicts(report)["vision tower"] == verdicts(report)[PUBLISHED] == "not checked"


def test_a_config_that_is_not_the_published_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "bf16")
    config = released.config()
    config["text_config"]["sliding_window"] = 512
    config["text_config"]["rope_parameters"]["full_attention"]["rope_theta"] = 1e4
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(released.read("generation_config.json") | {"eos_token_id": [1]}))
    lines = wrong(check(folder))
    assert any("sliding_window is 512, not 1024" in line and "rope" in line for line in lines)
    assert any("sampling defaults: eos_token_id is [1], not [1, 106, 50]" in line for line in lines)


@pytest.mark.parametrize(
    "how",
    [
        {"quant_method": "gptq", "bits": 4},
        {"bits": 4, "group_size": 64, "mode": "affine"},
        {"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": {}},
        {"quant_method": "modelopt", "quant_algo": "W4A8"},
    ],
)
def test_a_format_that_is_not_known_is_said_so(tmp_path: Path, how: dict[str, Any]) -> None:
    folder = folder_of(tmp_path, "bf16")
    (folder / "config.json").write_text(json.dumps(released.config() | {"quantization_config": how}))
    report = check(folder, forward=False)
    assert verdicts(report)["tensors"] == verdicts(report)[PUBLISHED] == "not checked"
    # The loader reads GPTQ, and finds none here.
    assert verdicts(report)["loader"] == ("differs" if how.get("quant_method") == "gptq" else "not checked")


@pytest.mark.parametrize("pattern", ["re:(a+)+$", "re:(.*.*)*x", "*a" * 50 + "x", "re:" + ".*a" * 40 + "$", "[!a]" * 100])
def test_patterns_of_a_config_cannot_hang(tmp_path: Path, pattern: str) -> None:
    how = released.config("fp8" if pattern.startswith("re:") else "nvfp4")["quantization_config"] | {"ignore": [pattern, "lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(released.config() | {"quantization_config": how}))
    write_headers(tmp_path / "model.safetensors", {"a" * 200: ("U8", (1,))})
    began = time.process_time()
    report = check(tmp_path, forward=False)
    assert time.process_time() - began < 10
    assert verdicts(report)["tensors"] == "not checked"


@pytest.mark.parametrize(
    "pattern",
    ["re:.*router.*", "re:.*\\.router\\.proj$", "re:^model\\.decoder\\.layers\\.\\d+", "*.router.*", "model.decoder.*router*"],
)
def test_ignore_lists_mean_what_their_writers_mean_by_them(pattern: str) -> None:
    """Simple expressions are read as wildcards; others are not read at all."""
    how = released.config("fp8")["quantization_config"] | {"ignore": [pattern]}
    if not pattern.startswith("re:"):
        how = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": [pattern]}
    layout = layout_of(ModelConfig.from_dict(released.config() | {"quantization_config": how}))
    if "\\d" in pattern:
        assert layout.tensors is None
        return
    assert layout.tensors is not None
    plain = {
        name.removesuffix(".weight") for name, one in layout.tensors.items() if "BF16" in one.dtypes and name.endswith(".weight")
    }
    expected = re.compile(".*router.*")
    assert {name for name in plain if name.endswith("proj") and "vision" not in name} == {
        name for name in plain if expected.match(name)
    }


def test_damage_is_a_row_and_no_traceback(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "bf16", shards=4)
    paths = sorted(folder.glob("*.safetensors"))
    os.truncate(paths[0], paths[0].stat().st_size - 1)
    paths[1].write_bytes(b"\xff" * 100)
    paths[2].unlink()
    os.mkfifo(paths[2])
    report = check(folder)
    damaged = {row.what for row in report.rows if row.verdict == "damaged"}
    assert damaged == {path.name for path in paths[:3]}
    assert "(a file could not be read)" in next(row.detail for row in report.rows if row.what == "names")


@pytest.mark.parametrize("content", [None, "", "[]", '{"model_type": "llama"}', '{"weight_map": {"a": "../x.safetensors"}}'])
def test_damaged_small_files(tmp_path: Path, content: str | None) -> None:
    folder = folder_of(tmp_path, "bf16")
    name = INDEX if content and "weight_map" in content else "config.json"
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    report = check(folder)
    assert not report.agrees and wrong(report)


def test_the_built_ins() -> None:
    for name in ("nano", "sudoku"):
        report = check(name)
        assert report.agrees and not report.published
        result = verdicts(report)
        assert result["names"] == result["shapes"] == result["dtypes"] == result["tokenizer"] == "agrees"
        assert result["prompt"] == result["published config.json"] == result[PUBLISHED] == "not applicable"
        assert "finite" in report.rows[-1].detail and report.rows[-1].verdict == "agrees"


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    tiny_model(tmp_path).save_pretrained(folder)
    assert check(folder).agrees
    content = load_file(folder / "model.safetensors")
    content["model.decoder.norm.weight"][3] = math.nan
    save_file(content, folder / "model.safetensors", {"format": "pt"})
    assert not check(folder).agrees


def test_what_we_save_agrees_in_every_dtype(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        DiffusionGemmaModel.from_pretrained("nano", dtype=dtype).save_pretrained(tmp_path / dtype)
        report = check(tmp_path / dtype)
        assert wrong(report) == [] and report.format == dtype
    tiny = tmp_path / "tiny"
    tiny_model(tmp_path).save_pretrained(tiny)
    (tiny / "config.json").write_text(json.dumps(config_dict() | {"dtype": "bfloat16"}))
    assert any("F32, not BF16" in line for line in wrong(check(tiny, forward=False)))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for a repository: its small files, and headers without files after them."""
    tensors = asked("nvfp4")
    released.write(tmp_path, "nvfp4")

    def small(hub_id: str, allow_patterns: list[str], **_: Any) -> str:
        assert hub_id == "nvidia/x" and not any("safetensors" in pattern for pattern in allow_patterns)
        return str(tmp_path)

    def headers(hub_id: str) -> SafetensorsRepoMetadata:
        info: dict[str, TensorInfo] = {}
        for name, (dtype, shape) in tensors.items():
            size = BITS[dtype] * math.prod(shape) // 8
            info[name] = TensorInfo(dtype=dtype, shape=list(shape), data_offsets=(0, size))  # type: ignore[arg-type]
        files = {"model-1.safetensors": SafetensorsFileMetadata(metadata={}, tensors=info)}
        return SafetensorsRepoMetadata(
            metadata=None, sharded=True, weight_map=dict.fromkeys(info, "model-1.safetensors"), files_metadata=files
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", small)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", headers)
    return tmp_path


def test_a_hub_id_needs_headers_alone(hub: Path) -> None:
    report = check("nvidia/x")
    assert report.agrees and verdicts(report)["names"] == verdicts(report)[PUBLISHED] == "agrees"
    assert "headers alone were downloaded" in report.rows[-1].detail


@pytest.mark.parametrize("error", [NotASafetensorsRepoError("x"), SafetensorsParsingError("x"), LocalEntryNotFoundError("x")])
def test_a_hub_that_does_not_give_them(hub: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(hub_id: str) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", fail)
    report = check("nvidia/x")
    assert any(line.startswith("files of weights") for line in wrong(report))


def test_no_such_checkpoint() -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        check("nowhere")


def test_progress_says_what_is_read(tmp_path: Path) -> None:
    said: list[str] = []
    check(folder_of(tmp_path, "bf16", shards=3), progress=said.append)
    assert [one for one in said if "header" in one] == [f"header of model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def test_every_device_is_asked_for(tmp_path: Path) -> None:
    from diffusiongemma.errors import OptionError

    with pytest.raises(OptionError, match="abacus"):
        check("sudoku", device="abacus")
    assert torch.get_default_dtype() == torch.float32
