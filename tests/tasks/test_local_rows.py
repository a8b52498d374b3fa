"""A file of rows as a task."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from diffusiongemma.cli.main import app
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.tasks.local_rows import LocalRows
from diffusiongemma.tasks.registry import task_named

TOOLS = Path(__file__).parent.parent.parent / "tools" / "evals"
ROW = {"prompt": "Extract as JSON: age (integer)\nKalrin is 31.", "answer": '{"age":31}', "match": "json", "group": "short"}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_rows_are_examples_in_their_order(tmp_path: Path) -> None:
    more = [{"prompt": "b", "answer": ["x", "y"], "max_tokens": 7}, "", {"prompt": "c", "answer": "Z z"}]
    file = written(tmp_path / "mine.jsonl", ROW, *more)
    task = task_named(str(file))
    assert isinstance(task, LocalRows) and (task.name, task.count, task.max_tokens) == ("mine", 3, 7)
    first, second, third = task.examples(3, 5)
    assert [one.prompt for one in task.examples(2, 9)] == [first.prompt, "b"] and first.group == "short"
    assert task.score(first, ' {"age": 31}') == 1 and task.score(first, '{"age": 32}') == task.score(first, "{") == 0
    assert task.score(second, " y\n") == 1 and task.score(second, "xy") == 0 and task.score(third, "z z") == 0
    contains = LocalRows(written(tmp_path / "c.jsonl", {"prompt": "c", "answer": "Z  z", "match": "contains"}))
    assert contains.score(contains.examples(1, 0)[0], "a z Z b") == 1 and contains.max_tokens == 256


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "has no row"),
        (["{"], "line 1 is not JSON"),
        ([ROW, []], "line 2 has no prompt"),
        ([{"prompt": "", "answer": "a"}], "no prompt"),
        ([{"prompt": "a"}], "no answer"),
        ([{"prompt": "a", "answer": []}], "no answer"),
        ([ROW | {"match": "near"}], "allowed: exact, contains, json"),
        ([ROW | {"reply": "x"}], "has reply; allowed"),
        ([ROW | {"max_tokens": 0}], "max_tokens a whole number"),
    ],
)
def test_what_is_no_row(tmp_path: Path, rows: list[Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        task_named(str(written(tmp_path / "x.jsonl", *rows))).examples(1, 0)


def test_the_command_takes_files(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.jsonl", ROW, ROW | {"answer": "no", "match": "exact", "group": "wrong"})
    result = CliRunner().invoke(app, ["eval", str(file), "--json", "-o", str(tmp_path / "out.jsonl")])
    assert result.exit_code == 0, result.output
    [report] = json.loads(result.stdout)["tasks"]
    assert report["task"] == "mine" and report["examples"] == 2 and report["score"] == 0.5
    assert report["mean_steps"] > 0 and set(report["groups"]) == {"short", "wrong"}
    missing = CliRunner().invoke(app, ["eval", str(tmp_path / "none.jsonl")])
    assert missing.exit_code == 2 and "cannot be read" in " ".join(missing.output.split())
    with pytest.raises(OptionError, match="files of rows"):
        task_named("nothing")


def test_the_rows_that_come_with_the_project(tmp_path: Path) -> None:
    facts = LocalRows(TOOLS / "facts.jsonl")
    groups = {example.group for example in facts.examples(facts.count, 0)}
    assert facts.count == 28 and len(groups) == 6
    out = tmp_path / "needle.jsonl"
    subprocess.run([sys.executable, TOOLS / "needle.py", out, "--words", "60", "300", "--each", "2"], check=True)
    needle = LocalRows(out)
    assert needle.count == 20
    for example in needle.examples(20, 0):
        assert example.answer is not None and example.prompt.count(example.answer) == 1
        assert sum(character.isdigit() for character in example.prompt) == 5
