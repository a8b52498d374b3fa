"""What a task is: prompts from a seed, and a scorer."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

__all__ = [
    "EVAL_SEED",
    "FIRST_EVAL_SEED",
    "CountedTask",
    "Example",
    "PinnedTask",
    "SchemaTask",
    "Task",
    "ToolTask",
    "example_number",
    "example_rng",
]

FIRST_EVAL_SEED = 1_000_000
"""Seeds from here on are for evaluation only: training takes smaller ones."""
EVAL_SEED = 1_000_777
"""The seed of examples that are evaluated on unless another is asked for."""


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
    """A task plug-in."""

    @property
    def name(self) -> str:
        """What one writes on the command line."""

    @property
    def summary(self) -> str:
        """One line for the list of tasks."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of an answer."""

    def examples(self, count: int, seed: int) -> Sequence[Example]:
        """The first ``count`` examples of a seed; the same whenever it is asked.

        Raises:
            InputError: the package the task comes from is not installed, or it has fewer examples.
        """

    def score(self, example: Example, text: str) -> float:
        """From 0 (wrong) to 1 (right); never raises for what a model wrote."""


@runtime_checkable
class CountedTask(Protocol):
    """A task that has only so many examples."""

    @property
    def count(self) -> int:
        """How many; ``examples`` refuses more."""


@runtime_checkable
class PinnedTask(Protocol):
    """A task that can hold what is known of an answer fixed on the canvas."""

    def pins(self, encode: Callable[[str], list[int]], example: Example) -> list[int]:
        """Token ids to hold fixed from the start of the answer, -1 where the model writes.

        Args:
            encode: text to the checkpoint's token ids.
            example: one of this task's.

        Raises:
            InputError: this checkpoint's tokens do not let the places be found.
        """


@runtime_checkable
class SchemaTask(Protocol):
    """A task whose answers are JSON of a known schema."""

    def schema(self, example: Example) -> dict[str, Any]:
        """The JSON schema of an answer to this example."""


@runtime_checkable
class ToolTask(Protocol):
    """A task whose prompts declare functions."""

    def tools(self, example: Example) -> list[dict[str, Any]]:
        """The declarations of an example, in OpenAI's form."""


def example_number(task: str, seed: int, index: int) -> int:
    """A 48-bit number that only this example of this seed has: what training has seen is no neighbour of it."""
    return int.from_bytes(hashlib.sha256(f"{task}/{seed}/{index}".encode()).digest()[:6], "big")


def example_rng(task: str, seed: int, index: int) -> random.Random:
    """The random numbers of one example."""
    return random.Random(example_number(task, seed, index))
