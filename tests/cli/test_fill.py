"""The commands that write in a text which is there already, run for real on built-in checkpoints."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from diffusiongemma.cli.display import PINNED, RowsCanvas
from diffusiongemma.cli.main import app
from diffusiongemma.engine.events import Draft
from tests.cli.test_commands import in_a_terminal

runner = CliRunner()
QUICK = ["--seed", "1", "--steps", "3"]


def run(*arguments: str, status: int = 0, input: str | None = None) -> str:
    result = runner.invoke(app, list(arguments), input=input)
    assert result.exit_code == status, result.output
    return result.stdout_bytes.decode() if status == 0 else result.stderr


@pytest.fixture
def texts(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "prefix").write_text("def f(a):\n    ")
    (tmp_path / "suffix").write_bytes("(a)  # früh\r\n    return a\n".encode())
    return str(tmp_path / "prefix"), str(tmp_path / "suffix")


def test_infill_prints_the_whole_text(texts: tuple[str, str]) -> None:
    out = run("infill", "--prefix-file", texts[0], "--suffix-file", texts[1], "--max-tokens", "2", *QUICK)
    assert out.startswith("def f(a):\n    ") and out.endswith("(a)  # früh\r\n    return a\n")
    data = json.loads(run("infill", "--prefix-file", texts[0], "--suffix-file", texts[1], "--max-tokens", "2", *QUICK, "--json"))
    assert data["text"] == out and out == "def f(a):\n    " + data["spans"]["span"] + "(a)  # früh\r\n    return a\n"
    assert {tried["lengths"]["span"] for tried in data["tried"]} == {1, 2}


def test_infill_reads_standard_input(texts: tuple[str, str]) -> None:
    assert run("infill", "--prefix-file", "-", "--max-tokens", "1", *QUICK, input="import ").startswith("import ")


def test_fill_takes_a_template_a_file_or_standard_input(tmp_path: Path) -> None:
    template = "Dear {{name:1-2}}, it is {{what:1}}."
    (tmp_path / "t").write_text(template)
    out = run("fill", template, *QUICK)
    assert re.fullmatch(r"Dear .*, it is .*\.\n", out, re.DOTALL)
    assert run("fill", "--file", str(tmp_path / "t"), *QUICK) == run("fill", "-", *QUICK, input=template) == out
    assert set(json.loads(run("fill", template, *QUICK, "--json"))["spans"]) == {"name", "what"}


def test_edit_says_how_many_steps_it_took(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("A text.")
    data = json.loads(run("edit", str(tmp_path / "t"), "Make it longer", *QUICK, "--repair", "0", "--json"))
    assert 1 <= data["usage"]["denoising_steps"] <= 3 * len(data["canvases"])


def test_vary_goes_on_after_a_kill(tmp_path: Path) -> None:
    """Killed for real, by SIGKILL, once some rows are there."""
    rows = [{"text": f"The number {i} is a number, and so is {i + 1}."} for i in range(40)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["vary", str(tmp_path / "in.jsonl"), "--field", "text", "--n", "3", "--strength", "0.2", "--steps", "2", "--out"]
    cut, whole = tmp_path / "cut.jsonl", tmp_path / "whole.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "diffusiongemma", *command, str(cut)], env=os.environ)
    deadline = time.monotonic() + 60
    while not (cut.exists() and cut.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    data = json.loads(run(*command, str(cut), "--json"))
    assert 0 < data["resumed"] < 40
    run(*command, str(whole))
    assert cut.read_bytes() == whole.read_bytes()
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    assert len({line["text"] for line in lines}) == len(lines) == data["lines"]


def test_a_terminal_shows_pinned_tokens_apart(texts: tuple[str, str]) -> None:
    status, seen = in_a_terminal(["infill", "--prefix-file", texts[0], "--suffix-file", texts[1], "--max-tokens", "3", *QUICK])
    assert status == 0 and "\x1b[2m" in seen and "\x1b[1;38;" in seen and "candidates; best" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l"), "the cursor is visible again"


def test_rows_are_drawn_up_to_the_last_hole() -> None:
    canvas = RowsCanvas(str, lambda: "title")
    pinned = [True, False, False, *[True] * 40]

    def draft(row: int, step: int) -> Draft:
        return Draft(row, 0, step, list(range(43)), [0.0] * 43, [True] * 43, "", pinned)

    canvas(draft(0, 1))
    console = Console(width=200)
    with console.capture() as seen:
        console.print(canvas(draft(1, 1)))
    line = "".join(str(token) for token in range(15))
    assert seen.get().split() == ["title", line, line]
    assert {str(span.style) for span in canvas._line(draft(0, 1)).spans} == {PINNED, "bold #4ade80"}
    with console.capture() as seen:
        console.print(canvas(draft(0, 1)))
    assert seen.get().split() == ["title", line], "a new batch begins"


ERRORS: list[tuple[list[str], str]] = [
    (["infill"], "nothing around the span"),
    (["infill", "--prefix-file", "-", "--suffix-file", "-"], "both standard input"),
    (["infill", "--prefix-file", "none"], "cannot be read"),
    (["infill", "--prefix-file", "README.md", "--min-tokens", "0", "--max-tokens", "0"], "fewest must be at least 1"),
    (["fill", "no span"], "has no span"),
    (["fill", "{{a:0}}"], "fewest must be at least 1"),
    (["fill", "{{a}}", "--file", "x"], "not both"),
    (["edit", "none", "do"], "cannot be read"),
    (["vary", "none", "--field", "text", "--out", "o.jsonl"], "cannot be read"),
    (["vary", "README.md", "--field", "text", "--out", "README.md"], "the input itself"),
    (["vary", "README.md", "--field", "text", "--out", "no/such/x.jsonl"], "make it first"),
    (["vary", "README.md", "--field", "text", "--out", "o.jsonl"], "line 1 is not JSON"),
]


@pytest.mark.parametrize(("arguments", "needle"), ERRORS)
def test_a_mistake_is_named(arguments: list[str], needle: str) -> None:
    assert needle in run(*arguments, status=2)
    result: dict[str, Any] = json.loads(runner.invoke(app, [*arguments, "--json"]).stdout)
    assert needle in result["error"]["message"]


def test_a_strength_outside_0_to_1_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    out = ["--field", "text", "--out", str(tmp_path / "out.jsonl")]
    assert "strength is 2.0" in run("vary", str(tmp_path / "in.jsonl"), *out, "--strength", "2", status=2)
