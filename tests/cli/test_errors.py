"""What the command line says to bad input: one line, status 2, and with --json one object and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffusiongemma.cli.main import app

runner = CliRunner()
CLUES = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


def test_a_schema_that_is_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text('{"a":' * 50_000)
    status, out, err = invoke("generate", "x", "--json-schema", str(tmp_path / "deep.json"))
    assert (status, out) == (2, "") and "is not JSON" in " ".join(err.split())


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = runner.invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["generate", "x", "--no-such", "--json"], "--no-such"),
        (["generate", "x", "--steps", "many", "--json"], "valid integer"),
        (["generat", "--json"], "generat"),
        (["serve", "--port", "99999", "--json"], "--json"),
    ],
)
def test_wrong_usage_is_json_too_where_it_is_asked_for(arguments: list[str], needle: str) -> None:
    status, out, err = invoke(*arguments)
    assert (status, err) == (2, "")
    assert needle in json.loads(out)["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["sudoku", CLUES[:80]], "80 cells"),
        (["sudoku", "55" + CLUES[2:]], "the clue 5 twice in row A"),
        (["sudoku", "z" + CLUES[1:]], "'z' at character 1"),
        (["generate", ""], "empty"),
        (["generate", "Solve", "--max-tokens", "0"], "max_tokens is 0"),
        (["generate", "Solve", "--steps", "0"], "num_diffusion_steps is 0"),
        (["generate", "Solve", "--mode", "typewriter"], "'typewriter'; allowed: diffusion, causal"),
        (["generate", "Solve", "--max-tokens", "100000"], "the model has 2048"),
        (["generate", "Solve", "--dtype", "int3"], "allowed: auto, float32, bfloat16, float16"),
        (["generate", "Solve", "--device", "abacus"], "abacus"),
        (["generate", "Solve", "--entropy-bound", "-1"], "entropy_bound is -1.0"),
        (["generate", "quantum", "--model", "sudoku"], "no token for 'quantum'"),
        (["info", "no-such-model"], "built-in name (nano, sudoku)"),
        (["eval", "chess"], "allowed: sudoku"),
        (["eval", "all", "sudoku"], "'all' stands alone"),
        (["eval", "sudoku", "--mode", "typewriter"], "'typewriter'; allowed: diffusion, causal"),
        (["eval", "sudoku", "--sweep", "colour=1,2"], "num_diffusion_steps"),
        (["eval", "sudoku", "--sweep", "t_min=a"], "t_min is 'a'; it must be a number"),
        (["eval", "sudoku", "--sweep", "self_conditioning=yes"], "it must be on or off"),
        (["eval", "sudoku", "--sweep", "t_min=0.1,0.9"], "t_max must be at least t_min"),
        (["eval", "sudoku", "--sweep", "stability=1,2", "--mode", "causal"], "leave it out"),
        (["eval", "sudoku", "--sweep", "stability=1,2", "--stability", "1"], "give it once"),
        (["eval", "sudoku", "--plot", "no/such/folder/x.png"], "make it first"),
        (["eval", "aiw", "--pin"], "--pin is for sudoku"),
        (["eval", "aiw", "--schema"], "--schema is for json-extract"),
        (["generate", "x", "--regex", "a", "--choice", "a"], "constrained to one of them"),
        (["generate", "x", "--regex", "a("], "does not compile"),
        (["generate", "x", "--json-schema", "no-such-file.json"], "cannot be read"),
        (["generate", "x", "--json-schema", "README.md"], "README.md is not JSON"),
        (["eval", "human-eval-infill", "--n", "165"], "164 at most"),
        (["train", "no-such-recipe"], "no recipe 'no-such-recipe'"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], needle: str) -> None:
    status, out, err = invoke(*arguments)
    assert (status, out) == (2, "")
    assert needle in err.replace("\n", " ") and "Traceback" not in err
    status, out, _ = invoke(*arguments, "--json")
    assert status == 2
    assert needle in json.loads(out)["error"]["message"]


def test_an_unknown_option_is_refused() -> None:
    status, _, err = invoke("generate", "Solve", "--colour", "red")
    assert status == 2
    assert "--colour" in err


def test_a_folder_without_weights(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        source = Path("src/diffusiongemma/checkpoints/sudoku") / name
        (tmp_path / name).write_bytes((Path(__file__).parents[2] / source).read_bytes())
    status, _, err = invoke("generate", "Solve", "--model", str(tmp_path))
    assert status == 2
    assert "has no weights" in err.replace("\n", " ")


def test_input_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "puzzle.txt").write_bytes(b"53..7\xff")
    status, _, err = invoke("sudoku", str(tmp_path / "puzzle.txt"))
    assert status == 2
    assert "not UTF-8: byte 6 is 0xff" in err.replace("\n", " ")
    piped = subprocess.run(
        [sys.executable, "-m", "diffusiongemma", "generate", "-"], input=b"\xc3(", capture_output=True, check=False
    )
    assert piped.returncode == 2
    assert b"not UTF-8" in piped.stderr


def test_a_recipe_with_an_unknown_field(tmp_path: Path) -> None:
    recipe = (Path(__file__).parents[2] / "src/diffusiongemma/recipes/sudoku.toml").read_text()
    (tmp_path / "mine.toml").write_text(recipe.replace("warmup = 50", "warm_up = 50"))
    status, _, err = invoke("train", str(tmp_path / "mine.toml"))
    assert status == 2
    assert "train.warm_up" in err


def test_names_that_the_system_does_not_take_are_our_error(tmp_path: Path) -> None:
    long, rows = "x" * 300, tmp_path / "rows.jsonl"
    rows.write_text('{"a": "b"}\n')
    for command in (
        ["vary", long, "--field", "a", "--out", str(tmp_path / "out")],
        ["vary", str(rows), "--field", "a", "--out", str(tmp_path / long)],
        ["vary", str(rows), "--field", "a", "--out", str(tmp_path / long / "x")],
        ["train", long],
        ["train", "sudoku", "--out", str(tmp_path / long)],
        ["eval", "sudoku", "--n", "1", "--out", str(tmp_path / long)],
        ["eval", "sudoku", "--n", "1", "--out", str(tmp_path)],
        ["serve", "--api-key-file", long],
        ["generate", "hi", "--model", long],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2, (command, result.output, result.exception)
        assert "error:" in result.output
