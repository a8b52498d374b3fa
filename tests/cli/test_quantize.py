"""``diffusiongemma quantize``: what it writes, what it says, and what it refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffusiongemma.cli.main import app
from tests.gguf_files import write_model


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["quantize", *map(str, arguments)])
    return done.exit_code, done.stdout


@pytest.mark.parametrize(("fmt", "name"), [("int8", "copy"), ("gguf:q8_0", "copy.gguf")])
def test_a_copy_with_its_errors_and_scores(fmt: str, name: str, tmp_path: Path) -> None:
    code, said = run("nano", tmp_path / name, "--format", fmt, "--eval", "json-extract", "--n", 3, "--json")
    assert code == 0
    result = json.loads(said)
    assert result["format"] == fmt and 0 < result["bytes"]["copy"] < result["bytes"]["original"]
    assert {error["layer"] for error in result["errors"]} >= set(range(6)) and all(e["error"] > 0 for e in result["errors"])
    assert set(result["scores"]["json-extract"]) == {"nano", str(tmp_path / name)}


def test_for_people(tmp_path: Path) -> None:
    code, said = run("sudoku", tmp_path / "copy.gguf", "--format", "gguf:q4_0")
    assert code == 0 and "embedding" in said and "self_conditioning" in said and "MB" in said


@pytest.mark.parametrize(("fmt", "message"), [("gguf:q6_k", "q8_0, q5_1"), ("fp8", "is a GGUF file")])
def test_mistakes(fmt: str, message: str, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    code, said = run(tmp_path / "m.gguf", tmp_path / "out.gguf", "--format", fmt, "--json")
    assert code == 2 and message in json.loads(said)["error"]["message"]
    assert not (tmp_path / "out.gguf").exists()
