"""Tasks as typed questions: what ``measure_decisions`` decides."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from typing import Any

from diffusiongemma.errors import InputError
from diffusiongemma.tasks.base import Example
from diffusiongemma.tasks.registry import task_named
from diffusiongemma.text.questions import Choice, Predicate, Question, Score, Value

__all__ = ["PROBLEMS", "Problem", "problems"]


@dataclass(frozen=True)
class Problem:
    """An example as questions.

    Attributes:
        prompt: the user's message.
        questions: asked jointly.
        template: the answer's text around their slots; None: the answer alone.
        answer: the whole right answer.
        values: the right value of each question.
    """

    prompt: str
    questions: tuple[Question, ...]
    template: str | None
    answer: str
    values: list[Value]


_RELATIONS = (
    "mother", "father", "sister", "brother", "daughter", "son", "wife", "husband", "grandmother", "grandfather",
    "aunt", "uncle", "niece", "nephew", "mother-in-law", "father-in-law",
)  # fmt: skip
_JOBS = ("baker", "carpenter", "chemist", "driver", "editor", "farmer", "lawyer", "nurse", "painter", "pilot", "singer", "teacher")
_COLOURS = ("black", "blue", "brown", "green", "grey", "orange", "red", "white", "yellow")
_FLAGS = ("married", "paid", "delayed", "lent", "garden")


def _alone(question: Question) -> Callable[[Example], Problem | None]:
    """The whole answer is one of the options."""

    def ask(example: Example) -> Problem | None:
        answer = example.answer or ""
        if answer not in question.texts:
            return None
        return Problem(example.prompt, (question,), None, answer, [question.values[question.texts.index(answer)]])

    return ask


def _fields(*groups: Sequence[str]) -> Callable[[Example], Problem | None]:
    """A slot for one field of each group, the other fields of the JSON pinned; None where the example asks for none of a group."""

    def ask(example: Example) -> Problem | None:
        expected: dict[str, Any] = example.detail["expected"]
        names = [next((name for name in group if name in expected), None) for group in groups]
        if None in names:
            return None
        questions = tuple(_field(name) for name in names if name is not None)
        template = example.answer or ""
        for question in questions:
            written = json.dumps(expected[question.name])
            slot = f'"{{{{{question.name}}}}}"' if isinstance(question, Choice) else f"{{{{{question.name}}}}}"
            template = re.sub(rf'("{question.name}": ){re.escape(written)}', lambda result, slot=slot: result[1] + slot, template)  # type: ignore[misc]
        values = [expected[question.name] for question in questions]
        return Problem(example.prompt, questions, template, example.answer or "", values)

    return ask


def _field(name: str) -> Question:
    if name in _FLAGS:
        return Predicate(name, yes="true", no="false")
    if name == "rooms":
        return Score(name, 1, 12)
    return Choice(name, _JOBS if name == "job" else _COLOURS)


PROBLEMS: dict[str, tuple[str, Callable[[Example], Problem | None]]] = {
    "syllogism": ("syllogism", _alone(Predicate("follows"))),
    "aiw": ("aiw", _alone(Score("count", 0, 9))),
    "leg_counting": ("leg_counting", _alone(Score("legs", 0, 99))),
    "family_relationships": ("family_relationships", _alone(Choice("relation", _RELATIONS))),
    "json boolean": ("json-extract", _fields(_FLAGS)),
    "json job or colour": ("json-extract", _fields(("job", "colour"))),
    "json two fields": ("json-extract", _fields(_FLAGS, ("job", "colour", "rooms"))),
}
"""Name to the task whose examples are asked, and how; an example without such a question is passed over."""


def problems(name: str, count: int, seed: int) -> list[Problem]:
    """The first ``count`` problems of a seed.

    Raises:
        InputError: an unknown name, or fewer than one problem.
    """
    if name not in PROBLEMS or count < 1:
        raise InputError(f"asked for {count} problems of {name!r}; at least one, of: {', '.join(PROBLEMS)}")
    task_name, ask = PROBLEMS[name]
    task, result = task_named(task_name), []
    example: Callable[[int, int], Example] = task.example  # type: ignore[attr-defined]
    for index in count_from():
        if (problem := ask(example(seed, index))) is not None:
            result.append(problem)
        if len(result) == count:
            break
    return result
