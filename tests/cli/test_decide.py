"""``diffusiongemma decide``: what is typed becomes questions, what is found is printed."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from diffusiongemma.cli.decide import parse_question
from diffusiongemma.cli.main import app
from diffusiongemma.errors import InputError
from diffusiongemma.text.questions import Choice, Predicate, Score

PROMPT = "Is this so?\n(Answer Yes or No)"


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("a=Yes/No", Predicate("a")),
        ("a=true/false: Is it?", Predicate("a", "Is it?", "true", "false")),
        ("a = 1..5", Score("a", 1, 5)),
        ("a=-3..3:How: much?", Score("a", -3, 3, "How: much?")),
        ("a=No/Yes", Choice("a", ["No", "Yes"])),
        ("a=red/dark blue/x", Choice("a", ["red", "dark blue", "x"])),
    ],
)
def test_questions_as_they_are_typed(text: str, question: object) -> None:
    assert parse_question(text) == question


@pytest.mark.parametrize("text", ["", "a", "a=", "a=:b"])
def test_what_is_no_question(text: str) -> None:
    with pytest.raises(InputError, match="NAME=Yes/No"):
        parse_question(text)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["decide", *arguments])


def test_json_holds_every_decision() -> None:
    result = invoke(PROMPT, "-q", "so=Yes/No", "-q", "n=1..3", "--threshold", "1", "--json")
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)
    assert [decision["name"] for decision in results["decisions"]] == ["so", "n"] and results["passes"] == 1
    assert [decision["answer"] for decision in results["decisions"]] == [None, None]
    assert sum(results["decisions"][1]["probabilities"].values()) == pytest.approx(1)


def test_text_says_answer_and_probabilities() -> None:
    result = invoke(PROMPT, "-q", "so=Yes/No", "-q", "one=0..1", "--seed", "3", "--draws", "2")
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()[:2]
    assert first.startswith(("so: yes (", "so: no (")) and "Yes" in first and "nats" in first
    assert second.startswith(("one: 0 (", "one: 1 (")) and "mean" in second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([PROMPT], "no questions"),
        ([PROMPT, "-q", "so"], "NAME=Yes/No"),
        ([PROMPT, "-q", "so=Yes/No", "--threshold", "2"], "threshold is 2.0"),
        ([PROMPT, "-q", "so=a/a"], "must differ"),
    ],
)
def test_mistakes_end_with_status_two(arguments: list[str], message: str) -> None:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 2 and message in json.loads(result.stdout)["error"]["message"]
