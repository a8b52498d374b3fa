"""What ``info`` says a model takes is what it takes, by its headers alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.bench.presets import PRESETS, preset_config
from diffusiongemma.cli.info import memory_report
from diffusiongemma.cli.main import app
from diffusiongemma.generation.check.layout import layout_of
from diffusiongemma.generation.machine import resident
from diffusiongemma.generation.resident import PUBLISHED, planned_weights, resident_bytes, stored_weights
from diffusiongemma.opened import read_config
from diffusiongemma.weights.quantise import FORMATS, quantise
from diffusiongemma.weights.resolve import resolve
from tests.gguf_files import write_model
from tests.quantised_files import Checkpoint

SOURCES = [
    "bfloat16", "fp8 channel", "fp8 block", "fp8 tensor", "int8", "int8 asymmetric", "nvfp4", "nvfp4 modelopt", "mxfp4", "int4",
    "gptq act-order", "awq", "Q8_0", "Q4_0", "BF16",
]  # fmt: skip


def written(kind: str, folder: Path) -> Path:
    if kind == "bfloat16":
        return resolve("nano")
    if kind[0].isupper():
        write_model(folder / "m.gguf", kind, apart="F16" if kind == "Q4_0" else None)
        return folder / "m.gguf"
    return Checkpoint(kind).write(folder)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(("dtype", "quantize"), [(torch.float32, None), (torch.bfloat16, None), (torch.float32, "int8")])
def test_the_bytes_of_a_loaded_model(kind: str, dtype: torch.dtype, quantize: str | None, tmp_path: Path) -> None:
    path = written(kind, tmp_path)
    model = DiffusionGemmaModel.from_pretrained(path, dtype=dtype, quantize=quantize).transformer
    taken = sum(record.nbytes for _, record in model.packed()) + sum(tensor.nbytes for tensor in model.state_dict().values())
    assert resident_bytes(stored_weights(path, read_config(path)), dtype, quantize=quantize) == taken


@pytest.mark.parametrize("kind", FORMATS)
def test_config_json_alone_says_the_same(kind: str, tmp_path: Path) -> None:
    source = resolve("nano")
    parts = ["attention", "mlp"] if kind == "int4" else None
    quantise(source, tmp_path / "copy", kind, read_config(source).to_dict(), search=False, parts=parts)
    config = read_config(tmp_path / "copy")
    planned = planned_weights(layout_of(config), config)
    assert planned is not None
    assert {weight.name: weight for weight in planned} == {
        weight.name: weight for weight in stored_weights(tmp_path / "copy", config)
    }


def test_info_counts_this_process_and_rounding_at_load(tmp_path: Path) -> None:
    shutil.copytree(resolve("nano"), tmp_path / "nano")
    reports = []
    for more in ([], ["--quantize", "int8"]):
        result = CliRunner().invoke(app, ["info", str(tmp_path / "nano"), "--json", *more])
        assert result.exit_code == 0, result.output
        reports.append(json.loads(result.stdout))
    exact, fast = reports
    assert fast["weight_bytes"]["float32"] < 0.3 * exact["weight_bytes"]["float32"]
    beside = exact["resident_bytes"]["float32"] - exact["weight_bytes"]["float32"]
    assert 0.5 * resident() < beside < 2 * resident()
    assert CliRunner().invoke(app, ["info", "nano", "--quantize", "int3"]).exit_code == 2


def test_the_published_files_of_the_26b(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusiongemma.generation.machine.free_memory", lambda place: 20_000_000_000)
    result = {row["name"]: row for row in memory_report(preset_config(PRESETS["26b"]))["published"]}
    assert len(result) == len(PUBLISHED)
    for one in PUBLISHED:
        row = result[one.name]
        # Files hold vision too, and Intel's the layers twice.
        assert 0.46 * row["bytes"] < row["weight_bytes"] <= 1.02 * row["bytes"], row
    fit = {name for name, row in result.items() if row["fits"]["cpu"]}
    assert fit == {
        one.name for one in PUBLISHED if any(part in one.name for part in ("NVFP4", "INT4", "AutoRound", "Q5_K_M", "Q4_K_M"))
    }
    assert "published" not in memory_report(preset_config(PRESETS["cpu-600m"]))
