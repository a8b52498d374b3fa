"""The commands, run for real on the built-in checkpoint."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from diffusiongemma.cli.main import app
from diffusiongemma.examples.sudoku.command import EXAMPLE
from diffusiongemma.examples.sudoku.puzzles import Sudoku, prompt_text, reasoning_gym_puzzles, solves

runner = CliRunner()


@pytest.fixture(scope="module")
def puzzle() -> Sudoku:
    """A puzzle of the easiest band that training never saw."""
    return next(p for p in reasoning_gym_puzzles(50, 31_337) if p.clue_count >= 48)


def run_json(*arguments: str, status: int = 0) -> dict[str, Any]:
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == status, result.stdout + result.stderr
    assert result.stdout.count("\n") == 1
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def test_sudoku_json(puzzle: Sudoku) -> None:
    data = run_json("sudoku", puzzle.clues)
    assert data["solved"] is True
    assert solves(puzzle, data["grid"]) and data["grid"] == puzzle.solution
    assert 1 <= data["steps"] <= 48 and data["seconds"] > 0


def test_sudoku_pinned(puzzle: Sudoku) -> None:
    assert run_json("sudoku", puzzle.clues, "--pin")["grid"] == puzzle.solution


def test_sudoku_file_and_plain_text(tmp_path: Path, puzzle: Sudoku) -> None:
    file = tmp_path / ("a_path_as_long_as_a_puzzle_" + 81 * "x") / "puzzles.txt"
    file.parent.mkdir()
    file.write_text(f"# two puzzles\n{puzzle.clues}\n{puzzle.clues}\n")
    data = run_json("sudoku", str(file))
    assert [p["solved"] for p in data["puzzles"]] == [True, True]
    result = runner.invoke(app, ["sudoku", str(file)])
    assert "2 of 2 solved" in result.stdout and "\x1b" not in result.stdout


def test_an_unsolved_puzzle_has_status_1() -> None:
    """One step is not enough for 31 clues, and what it leaves is not called solved."""
    data = run_json("sudoku", EXAMPLE, "--steps", "1", status=1)
    assert data["solved"] is False and data["steps"] == 1


def test_generate_json_has_everything(puzzle: Sudoku) -> None:
    data = run_json("generate", "--model", "sudoku", prompt_text(puzzle), "--seed", "5", "--max-tokens", "90")
    assert data["text"].replace("\n", "") == puzzle.solution
    assert data["finish_reason"] == "stop" and len(data["token_ids"]) == 90
    assert data["usage"]["completion_tokens"] == 90
    assert data["usage"]["denoising_steps"] == sum(canvas["steps"] for canvas in data["canvases"])
    again = run_json("generate", "--model", "sudoku", prompt_text(puzzle), "--seed", "5", "--max-tokens", "90")
    assert again["token_ids"] == data["token_ids"]


def test_generate_on_a_pipe_prints_only_the_text(puzzle: Sudoku) -> None:
    result = runner.invoke(app, ["generate", "-", "--model", "sudoku", "--seed", "5"], input=prompt_text(puzzle))
    assert result.stdout.replace("\n", "") == puzzle.solution


def test_generate_causal(puzzle: Sudoku) -> None:
    data = run_json("generate", "--model", "sudoku", prompt_text(puzzle), "--mode", "causal")
    assert data["usage"]["denoising_steps"] == 0 and data["canvases"] == []
    assert data["usage"]["commit_passes"] == data["usage"]["completion_tokens"] == 90


def test_chat_remembers_the_conversation(puzzle: Sudoku) -> None:
    line = " ".join(prompt_text(puzzle).split())
    result = runner.invoke(app, ["chat", "--model", "sudoku", "--seed", "1", "--json"], input=f"{line}\n/reset\n{line}\n/exit\n")
    messages = json.loads(result.stdout)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]


def test_info_counts_what_the_file_holds() -> None:
    data = run_json("info", "sudoku")
    assert data["next"] == "It fits this machine's memory: diffusiongemma chat -m sudoku"
    weights = Path(__file__).parents[2] / "src/diffusiongemma/checkpoints/sudoku/model.safetensors"
    assert 0 < weights.stat().st_size - data["weight_bytes"]["bfloat16"] < 100_000
    assert weights.stat().st_size < 5_000_000
    assert data["fits"]["cpu"]["float32"] is True


def in_a_terminal(arguments: list[str], interrupt_after: str | None = None) -> tuple[int, str]:
    """Run the command with a terminal as its output; returns its status and all it wrote."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "diffusiongemma", *arguments],
        stdin=follower, stdout=follower, stderr=follower, env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"},
    )  # fmt: skip
    os.close(follower)
    seen = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            chunk = os.read(leader, 4096)
        except OSError:
            break
        seen += chunk
        if interrupt_after and interrupt_after.encode() in seen:
            process.send_signal(signal.SIGINT)
            interrupt_after = None
    status = process.wait(timeout=10)
    os.close(leader)
    return status, seen.decode()


def test_a_terminal_shows_the_canvas_as_it_forms(puzzle: Sudoku) -> None:
    status, seen = in_a_terminal(["sudoku", puzzle.clues, "--pace", "0"])
    assert status == 0
    assert "step  1" in seen and "tokens/s" in seen and "solved in" in seen
    assert "\x1b[38;" in seen, "tokens are coloured"
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l"), "the cursor is visible again"


def test_ctrl_c_leaves_the_terminal_clean(puzzle: Sudoku) -> None:
    status, seen = in_a_terminal(["sudoku", puzzle.clues, "--pace", "5"], interrupt_after="step  1")
    assert status == 130
    assert "interrupted" in seen and "Traceback" not in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")


def test_an_answer_held_to_a_schema_a_regex_or_choices(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    answer = run_json("generate", "What?", "--json-schema", str(file), "--seed", "1")
    assert isinstance(json.loads(answer["text"])["n"], int) and answer["finish_reason"] == "stop"
    assert run_json("generate", "What?", "--choice", "yes", "--choice", "no", "--seed", "1")["text"] in ("yes", "no")
    assert run_json("generate", "What?", "--regex", "[ab]{3}", "--seed", "1")["text"].strip("ab") == ""
    assert isinstance(json.loads(run_json("generate", "What?", "--json-object", "--seed", "1")["text"]), dict)
    grammar = tmp_path / "pairs.lark"
    grammar.write_text('start: "(" start ")" | "x"')
    assert "x" in run_json("generate", "What?", "--grammar", str(grammar), "--seed", "1")["text"]


COMMANDS = {
    "generate": ["generate", "Reverse the words: a b", "--seed", "1", "--max-tokens", "16"],
    "decide": ["decide", "Is ice cold? (Answer Yes or No)", "-q", "cold=Yes/No"],
    "fill": ["fill", "a {{name:2}} b", "--seed", "1", "--steps", "2"],
    "eval": ["eval", "json-extract", "--n", "2", "--fresh", "--out", "out.jsonl"],
}
"""What loads a model and takes ``--quantize``."""


@pytest.mark.parametrize("name", COMMANDS)
def test_weights_are_rounded_at_load(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exact, fast = (run_json(*COMMANDS[name], *more) for more in ([], ["--quantize", "int8"]))
    assert exact.keys() == fast.keys()
    message = run_json(*COMMANDS[name], "--quantize", "int3", status=2)["error"]["message"]
    assert "quantize is 'int3'; allowed: 'int8'" in message


@pytest.mark.parametrize("name", ["generate", "eval"])
def test_the_soft_embedding_from_few_tokens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_json(*COMMANDS[name], "--soft-top-k", "8")
    message = run_json(*COMMANDS[name], "--soft-top-k", "0", status=2)["error"]["message"]
    assert "soft_top_k is 0" in message


def test_chat_takes_both(tmp_path: Path) -> None:
    result = runner.invoke(app, ["chat", "--quantize", "int8", "--soft-top-k", "8", "--seed", "1", "--json"], input="a b\n")
    assert result.exit_code == 0, result.output
    assert [message["role"] for message in json.loads(result.stdout)["messages"]] == ["user", "assistant"]


def test_chat_refuses_commands_that_there_are_not() -> None:
    told = "/foo\n/help\n/think maybe\n/system Be short.\n//exit is a word\n/exit\nnot reached\n"
    result = runner.invoke(app, ["chat", "--mode", "causal", "--max-tokens", "4", "--seed", "1", "--json"], input=told)
    assert result.exit_code == 0, result.output
    assert "/foo is no command; /help lists them" in result.stderr and "/think takes on or off" in result.stderr
    assert "/reset" in result.stderr
    said = json.loads(result.stdout)["messages"]
    assert [one["content"] for one in said if one["role"] != "assistant"] == ["Be short.", "/exit is a word"]


@pytest.mark.parametrize("name", ["nofile.txt", "puzzles/hard", "x"])
def test_a_file_of_puzzles_that_is_not_there(name: str) -> None:
    result = runner.invoke(app, ["sudoku", name])
    assert result.exit_code == 2 and f"there is no file '{name}'" in result.output.replace("\n", "")
