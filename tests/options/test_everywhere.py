"""One list of options: what is declared once is an option of the library, the server and the command line, with one check."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer

from diffusiongemma.cli.main import app
from diffusiongemma.errors import OptionError
from diffusiongemma.generation import ReplyOptions
from diffusiongemma.options import PromptKeywords, PromptOptions, SamplingOptions, SamplingParams, options_of
from diffusiongemma.options.option import check_options, documented, option
from diffusiongemma.server import protocol
from diffusiongemma.server.errors import ApiError
from diffusiongemma.server.parsing import parse

ROOT = Path(__file__).parent.parent.parent
SAMPLING, PROMPT = options_of(SamplingParams), options_of(PromptOptions)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ENDS = {"max_tokens", "stop"}
"""What commands do not take where a text says itself where it ends."""
LEFT_OUT: dict[str, set[str]] = {
    "generate": set(), "chat": set(), "infill": ENDS, "fill": ENDS, "edit": set(), "vary": ENDS, "sudoku": ENDS,
    "serve": {"seed", "stop"}, "eval": {"stop"},
}  # fmt: skip


@pytest.mark.parametrize("command", LEFT_OUT)
def test_the_command_line_has_every_sampling_parameter(command: str) -> None:
    taken = {parameter.name for parameter in COMMANDS[command].params}
    assert taken >= SAMPLING.keys() - LEFT_OUT[command]


@pytest.mark.parametrize("body", [protocol.ChatRequest, protocol.CompletionRequest, protocol.FimRequest, protocol.EditRequest])
def test_bodies_have_every_sampling_parameter(body: type) -> None:
    assert body.model_fields.keys() >= SAMPLING.keys()  # type: ignore[attr-defined]


def test_chats_have_every_option_of_prompts() -> None:
    assert protocol.ChatRequest.model_fields.keys() >= PROMPT.keys() - {"raw"}


@pytest.mark.parametrize(("keywords", "options"), [(SamplingOptions, SAMPLING), (PromptKeywords, PROMPT)])
def test_keywords_are_the_options(keywords: type, options: dict[str, Any]) -> None:
    """Type checkers read the TypedDict, programs the dataclass: names and types are the same, but that a keyword may be None."""
    hints = get_type_hints(keywords)
    assert hints.keys() == options.keys() <= get_type_hints(ReplyOptions).keys()
    declared = get_type_hints(SamplingParams if keywords is SamplingOptions else PromptOptions)
    for name in options.keys() - {"stop"}:  # a string is a stop string too
        assert hints[name] == declared[name] | None, name


def test_docs_name_every_sampling_parameter() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in SAMPLING if f"`{name}`" not in page] == []
    assert all(name in (SamplingParams.__doc__ or "") for name in SAMPLING)


WRONG = [
    ("num_diffusion_steps", 0),
    ("entropy_bound", 0),
    ("accept", "all"),
    ("accept_probability", 1.5),
    ("accept_count", 0),
    ("t_min", -1),
    ("temperature", 3),
    ("commit", "worst"),
    ("early_stop", 1),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_one_check_and_one_error_everywhere(name: str, value: object) -> None:
    with pytest.raises(OptionError) as ours:
        SamplingParams().replaced(**{name: value})
    assert ours.value.param == name
    body = {"messages": [{"role": "user", "content": "x"}], name: value}
    with pytest.raises(ApiError) as theirs:
        parse(json.dumps(body).encode(), protocol.ChatRequest)
    assert theirs.value.param == name and str(theirs.value) == str(ours.value)


def test_a_new_option_needs_one_line() -> None:
    @documented
    @dataclass(frozen=True)
    class Small:
        """Two."""

        size: int = option(3, "How large.", ge=1, le=9)
        kind: bool = option(False, "Which.")

        def __post_init__(self) -> None:
            check_options(self)

    assert "size: How large." in (Small.__doc__ or "")
    with pytest.raises(OptionError, match="size is 10; it must be an integer from 1 to 9"):
        Small(size=10)
    body = protocol._options("Small", options_of(Small))
    assert body.model_json_schema()["properties"]["size"]["anyOf"][0] == {
        "type": "integer", "minimum": 1, "maximum": 9, "description": "How large.",
    }  # fmt: skip


SNIPPET = """
from diffusiongemma import DiffusionGemmaModel, Result
model = DiffusionGemmaModel.from_pretrained("nano")
one: Result = model.generate("x", num_diffusion_steps=3, response_format={"type": "object"})
three: list[Result] = model.generate("x", n=3)
lists: list[list[Result]] = model.generate(["x", "y"], n=3, temperature=0.5)
filled = model.infill("a", "b", seed=1, entropy_bound=0.2)
model.edit("a", "b", max_tokens=3)
model.vary("a", 0.5, enable_thinking=True)
"""
MISSPELT = ['model.generate("x", num_difusion_steps=3)', 'model.generate("x", commit="worst")', 'model.infill("a", "b", stop="x")',
            'model.generate("x", max_tokens="many")', 'model.decide("x", num_diffusion_steps=3)']  # fmt: skip


def test_a_type_checker_refuses_a_misspelt_option(tmp_path: Path) -> None:
    file = tmp_path / "snippet.py"
    file.write_text(SNIPPET + "\n".join(MISSPELT))
    run = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(file)]
    said = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, env={"MYPYPATH": str(ROOT / "src"), "PATH": ""}).stdout
    lines = {int(line.split(":")[1]) for line in said.splitlines() if ": error: " in line}
    first = SNIPPET.count("\n") + 1
    assert lines == set(range(first, first + len(MISSPELT))), said
