"""Tasks that are one function from random numbers to an example, and one from an example and a text to a score."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from diffusiongemma.tasks.base import Example, example_rng

__all__ = ["GeneratedTask", "exact", "same_json"]

Make = Callable[[random.Random], Example]
Score = Callable[[Example, str], float]


class GeneratedTask:
    """A task whose examples are made, never stored.

    Args:
        name: of the task.
        summary: one line.
        make: an example from the random numbers of its seed and index.
        score: from 0 to 1.
        max_tokens: most tokens of an answer.
    """

    def __init__(self, name: str, summary: str, make: Make, score: Score, max_tokens: int = 128) -> None:
        self.name, self.summary, self.max_tokens = name, summary, max_tokens
        self._make, self._score = make, score

    def examples(self, count: int, seed: int) -> Sequence[Example]:
        """See ``Task``."""
        return [self.example(seed, index) for index in range(count)]

    def example(self, seed: int, index: int) -> Example:
        """Example ``index`` of a seed."""
        return self._make(example_rng(self.name, seed, index))

    def score(self, example: Example, text: str) -> float:
        """See ``Task``."""
        return self._score(example, text)


def exact(example: Example, text: str) -> float:
    """1 for the answer itself; blanks at its ends do not count."""
    return float(example.answer is not None and text.strip() == example.answer.strip())


def same_json(example: Example, text: str) -> float:
    """1 for JSON of the answer's value, however it is laid out; 1 and 1.0 are one number, 1 and true are not."""
    assert example.answer is not None
    try:
        return float(_typed(json.loads(text)) == _typed(json.loads(example.answer)))
    except (ValueError, RecursionError):
        return 0.0


def _typed(value: Any) -> Any:
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    return [_typed(inner) for inner in value] if isinstance(value, list) else value
