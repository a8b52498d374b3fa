"""``diffusiongemma check`` and ``info`` on folders as they are downloaded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from diffusiongemma.cli.main import app
from diffusiongemma.generation import DiffusionGemmaModel
from tests import released
from tests.generation.test_check import asked, folder_of

runner = CliRunner()


def run_json(*arguments: str, status: int = 0) -> dict[str, Any]:
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == status, result.stdout + result.stderr
    assert result.stdout.count("\n") == 1
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def test_a_built_in_in_a_process_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-m", "diffusiongemma", "check", "nano"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "nano: nothing disagrees" in done.stdout and "finite logits" in done.stdout
    assert "Traceback" not in done.stderr and "\x1b" not in done.stdout


def test_json_has_the_rows_and_the_sum_of_them(tmp_path: Path) -> None:
    DiffusionGemmaModel.from_pretrained("nano").save_pretrained(tmp_path / "checkpoint")
    data = run_json("check", str(tmp_path / "checkpoint"))
    assert data["agrees"] is True and data["published"] is False and data["format"] == "float32"
    assert {row["verdict"] for row in data["rows"]} == {"agrees", "not applicable"}
    left_out = run_json("check", str(tmp_path / "checkpoint"), "--no-forward")["rows"][-1]
    assert (left_out["what"], left_out["verdict"]) == ("denoising step", "not checked")


def test_status_1_says_that_something_is_wrong(tmp_path: Path) -> None:
    tensors = asked("bf16")
    del tensors["model.decoder.norm.weight"]
    folder = folder_of(tmp_path, "bf16", tensors)
    assert run_json("check", str(folder), status=1)["agrees"] is False
    result = runner.invoke(app, ["check", str(folder)])
    assert result.exit_code == 1
    assert "something is wrong" in result.stdout and "model.decoder.norm.weight" in " ".join(result.stdout.split())


@pytest.mark.parametrize("name", ["nowhere", "a" * 300])
def test_status_2_says_that_there_is_nothing_to_check(name: str) -> None:
    assert run_json("check", name, status=2)["error"]["type"] == "CheckpointError"


@pytest.mark.parametrize(
    ("kind", "form", "least", "most"),
    [
        ("bf16", "bfloat16", 50.4e9, 50.6e9),
        ("fp8", "float-quantized (compressed-tensors)", 25.9e9, 26.2e9),
        ("nvfp4", "NVFP4 (modelopt)", 17.5e9, 17.9e9),
    ],
)
def test_info_needs_nothing_but_the_released_config(tmp_path: Path, kind: str, form: str, least: float, most: float) -> None:
    """Bytes of the text part: the published files have 1.15 GB of vision besides."""
    (tmp_path / "config.json").write_text(json.dumps(released.config(kind)))
    data = run_json("info", str(tmp_path))
    assert data["format"] == form and data["parameters"] // 10**9 == 25
    assert least < data["weight_bytes"]["bfloat16"] < most
    assert data["config"]["text_config"] == released.config()["text_config"]
    assert form in runner.invoke(app, ["info", str(tmp_path)]).stdout
