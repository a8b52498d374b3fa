"""``diffusiongemma eval``, run for real on the built-in checkpoint."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from diffusiongemma.cli.main import app
from diffusiongemma.tasks.registry import TASKS

runner = CliRunner()
QUICK = ["--steps", "3"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results go to runs/eval under the working directory: here, not into the repository."""
    monkeypatch.chdir(tmp_path)


def run_eval(*arguments: str, status: int = 0) -> tuple[str, str]:
    result = runner.invoke(app, ["eval", *arguments])
    assert result.exit_code == status, result.stdout + result.stderr
    return result.stdout, result.stderr


def run_json(*arguments: str, status: int = 0) -> dict[str, Any]:
    out, _ = run_eval(*arguments, "--json", status=status)
    assert out.count("\n") == 1
    data: dict[str, Any] = json.loads(out)
    return data


def test_no_task_lists_them_all() -> None:
    out, _ = run_eval()
    assert [line.split()[0] for line in out.splitlines()] == list(TASKS)
    assert [row["name"] for row in run_json()["tasks"]] == list(TASKS)


def test_a_table_with_groups_and_results_that_are_found_again(tmp_path: Path) -> None:
    out, err = run_eval("sudoku", "--n", "5", *QUICK)
    titles = out.splitlines()[1].split()
    total = out.splitlines()[2].split()
    assert titles == ["task", "n", "score", "canvas", "forward", "commits", "second", "finished"]
    assert total[:2] == ["sudoku", "5"] and total[2].endswith("%") and "\x1b" not in out
    groups = [line.split()[:2] for line in out.splitlines()[3:]]
    assert all("-" in name for name, _ in groups) and sum(int(count) for _, count in groups) == 5
    file = tmp_path / "runs/eval/sudoku-diffusion.jsonl"
    assert file.read_text().count("\n") == 5 and str(file.relative_to(tmp_path)) in err
    again, err = run_eval("sudoku", "--n", "5", *QUICK)
    assert again == out and "5 of an earlier run" in err and file.read_text().count("\n") == 5
    run_eval("sudoku", "--n", "5", *QUICK, "--fresh")
    assert file.read_text().count("\n") == 10


def test_json_has_totals_and_groups(tmp_path: Path) -> None:
    data = run_json("sudoku", "--n", "4", *QUICK, "--out", "here.jsonl", "--batch", "3")
    assert (data["model"], data["mode"], data["seed"], data["n"]) == ("sudoku", "diffusion", 1_000_777, 4)
    assert data["results"] == "here.jsonl" and data["skipped"] == {}
    [row] = data["tasks"]
    lines = [json.loads(line) for line in (tmp_path / "here.jsonl").read_text().splitlines()]
    assert row["examples"] == 4 == len(lines) and row["score"] == sum(line["score"] for line in lines) / 4
    assert row["mean_steps"] == sum(line["steps"] for line in lines) / 4 <= 3
    assert sum(group["examples"] for group in row["groups"].values()) == 4
    assert not (tmp_path / "runs").exists()


def test_a_sweep_is_drawn_and_goes_into_the_same_file(tmp_path: Path) -> None:
    options = ("sudoku", "--n", "3", "--sweep", "num_diffusion_steps=1,3", "--plot", "curve.png")
    data = run_json(*options)
    assert [row["num_diffusion_steps"] for row in data["tasks"]] == [1, 3]
    assert data["tasks"][0]["mean_steps"] == 1 < data["tasks"][1]["mean_steps"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert run_json("sudoku", "--n", "3", "--steps", "3")["tasks"][0]["resumed"] == 3
    out, _ = run_eval(*options)
    assert len(out.splitlines()) == 4 and "num_diffusion_steps" in out
    run_eval("sudoku", "--n", "2", *QUICK, "--sweep", "stop_rule=canvas,answer", "--plot", "rules.png")
    assert (tmp_path / "rules.png").read_bytes().startswith(b"\x89PNG")


def test_one_option_is_varied_at_a_time() -> None:
    error = run_json("sudoku", "--sweep", "t_min=0.1,0.2", "--sweep", "t_max=0.8,1", status=2)["error"]
    assert "--sweep is given 2 times" in error["message"]


def test_all_passes_over_what_the_checkpoint_cannot_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    monkeypatch.setattr(TASKS["human-eval-infill"], "_problems", [])
    data = run_json("all", "--model", "sudoku", "--n", "2", *QUICK, "--plot", "bars.png")
    assert [row["task"] for row in data["tasks"]] == ["sudoku"]
    assert list(data["skipped"]) and set(data["skipped"]) == set(TASKS) - {"sudoku"}
    assert "pip install" in data["skipped"]["human-eval-infill"]
    assert "no token for" in data["skipped"]["json-extract"]
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    error = run_json("human-eval-infill", "--n", "2", status=2)["error"]
    assert "not installed" in error["message"]


def test_by_name_what_the_checkpoint_cannot_serve_scores_nothing() -> None:
    out, _ = run_eval("json-extract", "sudoku", "--model", "sudoku", "--n", "2", *QUICK)
    assert "refused 2" in out and "json-extract: 2 refused: the tokenizer" in out
    assert "31-34" not in out, "groups are for one task"


def test_nano_is_asked_unless_sudoku_stands_alone() -> None:
    data = run_json("syllogism", "sudoku", "--n", "1", "--steps", "1")
    assert data["model"] == "nano" and [row["examples"] for row in data["tasks"]] == [1, 1]
    assert run_json("sudoku", "--n", "1", "--steps", "1")["model"] == "sudoku"


def test_pins_and_the_causal_role() -> None:
    pinned = run_json("sudoku", "--n", "3", *QUICK, "--pin")["tasks"][0]
    assert pinned["resumed"] == 0
    causal = run_json("sudoku", "--n", "2", "--mode", "causal")["tasks"][0]
    assert causal["mean_steps"] is None and causal["tokens_per_forward"] == 1
    out, _ = run_eval("sudoku", "--n", "2", "--mode", "causal")
    assert out.splitlines()[2].split()[3] == "-"


def test_a_stopped_run_goes_on_and_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    arguments = ["sudoku", "--n", "6", "--steps", "4", "--batch", "1", "--out"]
    # Interrupted from within, so that neither a busy nor a quick machine decides how many lines there are by then.
    code = """
import os, signal, sys
from diffusiongemma.cli.main import main
from diffusiongemma.lines import LinesFile
append = LinesFile.append
def interrupted(self, *lines):
    append(self, *lines)
    os.kill(os.getpid(), signal.SIGINT)
LinesFile.append = interrupted
sys.argv = ["diffusiongemma", *sys.argv[1:]]
main()
"""
    command = [sys.executable, "-c", code, "eval", *arguments, str(file)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = process.stderr
    assert process.returncode == 130 and "the same command goes on" in said and "Traceback" not in said
    kept = file.read_bytes()
    done = kept.count(b"\n")
    assert done == 1
    # What a power cut in the middle of a line leaves.
    file.write_bytes(kept + b'{"task": "sudoku", "ind')
    resumed, unbroken = run_json(*arguments, str(file))["tasks"][0], run_json(*arguments, "unbroken.jsonl")["tasks"][0]
    assert resumed.pop("resumed") == done and unbroken.pop("resumed") == 0
    for name in ("seconds", "tokens_per_second"):
        assert resumed.pop(name) > 0 and unbroken.pop(name) > 0
    assert resumed == unbroken
    assert file.read_bytes().startswith(kept) and file.read_bytes().count(b"\n") == 6
