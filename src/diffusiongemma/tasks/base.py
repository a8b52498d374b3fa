"""What a task is: prompts from a seed, and a scorer."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Example", "Task", "example_number", "example_rng"]


@dataclass(frozen=True)
class Example:
    """One problem.

    Attributes:
        prompt: the user's message.
        answer: a right answer, as the model should write it; None where only the scorer knows.
        group: the part of the task it is also reported under (a clue band, a schema); empty: none.
        detail: what the scorer needs besides; never shown to the model.
    """

    prompt: str
    answer: str | None
    group: str = ""
    detail: Any = None


class Task(Protocol):
    """A task plug-in.

    Attributes:
        name: what one writes on the command line.
        summary: one line for the list of tasks.
        max_tokens: of an answer.
    """

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...

    def examples(self, count: int, seed: int) -> Sequence[Example]:
        """The first ``count`` examples of a seed; the same whenever it is asked.

        Raises:
            InputError: the package the task comes from is not installed, or it has fewer examples.
        """

    def score(self, example: Example, text: str) -> float:
        """From 0 (wrong) to 1 (right); never raises for what a model wrote."""


def example_number(task: str, seed: int, index: int) -> int:
    """A 48-bit number that only this example of this seed has: what training has seen is no neighbour of it."""
    return int.from_bytes(hashlib.sha256(f"{task}/{seed}/{index}".encode()).digest()[:6], "big")


def example_rng(task: str, seed: int, index: int) -> random.Random:
    """The random numbers of one example."""
    return random.Random(example_number(task, seed, index))
