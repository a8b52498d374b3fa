"""A dozen of reasoning-gym's short-answer tasks, at sizes a small model can learn, judged by its own scorers."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusiongemma.errors import InputError
from diffusiongemma.tasks.base import Example, example_number

__all__ = ["REASONING_TASKS", "ReasoningTask"]

_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "aiw": ("brothers and sisters of Alice in Wonderland", {}),
    "chain_sum": (
        "sums and differences of two numbers of one or two digits",
        {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    ),
    "complex_arithmetic": ("sums, differences, products and quotients of complex numbers", {}),
    "family_relationships": ("who is who in a family", {}),
    "leg_counting": (
        "legs of one or two kinds of animals",
        {"min_animals": 1, "max_animals": 2, "min_instances": 1, "max_instances": 5},
    ),
    "needle_haystack": ("who likes what, among three to six statements", {"min_num_statements": 3, "max_num_statements": 6}),
    "number_filtering": (
        "three to five numbers, those above or below a bound taken out",
        {"min_numbers": 3, "max_numbers": 5, "min_decimals": 0, "max_decimals": 1},
    ),
    "products": (
        "products of two numbers of one or two digits",
        {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    ),
    "rotate_matrix": ("a matrix of 2 x 2 or 3 x 3 digits, turned", {"min_n": 2, "max_n": 3}),
    "simple_equations": (
        "linear equations in one unknown",
        {"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 20, "operators_weights": [0.5, 0.5, 0.0]},
    ),
    "syllogism": ("whether a conclusion follows", {}),
    "word_sequence_reversal": ("three to six words in reverse order", {"min_words": 3, "max_words": 6}),
}


class ReasoningTask:
    """One of reasoning-gym's generators.

    Args:
        name: of the generator.
        summary: one line.
        settings: of the generator, where they differ from its defaults.
    """

    max_tokens = 64

    def __init__(self, name: str, summary: str, settings: Mapping[str, Any]) -> None:
        self.name, self.summary, self.settings = name, summary, dict(settings)
        self._dataset: Any = None

    def examples(self, count: int, seed: int) -> Sequence[Example]:
        """See ``Task``."""
        return [self.example(seed, index) for index in range(count)]

    def example(self, seed: int, index: int) -> Example:
        """Example ``index`` of a seed."""
        item = self._generator()[example_number(self.name, seed, index)]
        return Example(item["question"], str(item["answer"]), detail=item)

    def score(self, example: Example, text: str) -> float:
        """The generator's own score: 1 for right; some generators give a little for an answer in the right form."""
        if self.name == "complex_arithmetic" and "nan" in text.lower():
            return 0.0  # Its scorer takes a distance that is no number for none at all, and gives 1.
        try:
            return float(self._generator().score_answer(text.strip() or None, example.detail))
        except InputError:
            raise
        except Exception:  # Their parsers raise what they like (OverflowError for 1e200 + 1e200i): not an answer.
            return 0.0

    def _generator(self) -> Any:
        if self._dataset is None:
            try:
                import reasoning_gym
            except ImportError as error:
                raise InputError(
                    f"the task {self.name} comes from reasoning-gym, which is not installed; install it with: "
                    "pip install 'diffusiongemma[train]'"
                ) from error
            # The generators draw item i from seed + i: any i will do, and ours are hashes (see example_number).
            self._dataset = reasoning_gym.create_dataset(self.name, seed=0, size=1 << 48, **self.settings)
        return self._dataset


REASONING_TASKS = tuple(ReasoningTask(name, summary, settings) for name, (summary, settings) in _SETTINGS.items())
