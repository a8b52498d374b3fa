"""What a call of ``generate`` gives back: one Result a prompt, a list of them, the best of some, or objects of a class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusiongemma.engine.events import Result
from diffusiongemma.errors import ConstraintError, OptionError

__all__ = ["AnswerForm"]


@dataclass(frozen=True)
class AnswerForm:
    """How many answers a prompt gets, and what is made of them.

    Attributes:
        each: answers to a prompt.
        listed: whether a prompt's answers are a list; else it is the one that the causal role finds most probable.
        schema: the pydantic class whose objects are wanted; None: the Results.
        options: see ``ReplyOptions``; with what ``best_of`` and ``schema`` need.
    """

    each: int
    listed: bool
    schema: type[Any] | None
    options: Mapping[str, Any]

    @classmethod
    def of(
        cls, n: int | None, best_of: int | None, schema: type[Any] | None, options: Mapping[str, Any], judged: bool = False
    ) -> "AnswerForm":
        """What the arguments of ``generate`` ask for.

        Raises:
            OptionError: arguments that exclude each other, or a schema that is no pydantic class.
        """
        if best_of is not None and n is not None:
            raise OptionError("n and best_of are given; take n answers, or the best of some", "best_of")
        if judged and best_of is None:
            raise OptionError("a judge is given, and nothing to choose from; say with best_of how many answers there are", "judge")
        more: dict[str, Any] = {} if best_of is None else {"logprobs": options.get("logprobs") or 0}
        if schema is not None:
            if not (isinstance(schema, type) and hasattr(schema, "model_validate_json")):
                raise OptionError(
                    f"schema is {schema!r:.100}; give a pydantic class, or a JSON schema as response_format", "schema"
                )
            if options.get("response_format") is not None:
                raise OptionError("schema and response_format are given; they are the same, give one", "schema")
            more["response_format"] = schema
        given = next((count for count in (n, best_of) if count is not None), 1)
        return cls(given, n is not None, schema, {**options, **more})

    def arranged(self, results: Mapping[int, Result], many: bool, judged: Mapping[int, float] | None = None) -> Any:
        """The answers to prompts.

        Args:
            results: of each request by its number, ``prompt * each + answer``.
            many: whether the prompts were a list.
            judged: how good each is; None: what the causal role of the same weights thinks.

        Raises:
            ConstraintError: an answer that is no object of the class.
        """
        score = {row: result.confidence or 0.0 for row, result in results.items()} if judged is None else judged
        places = [range(first, first + self.each) for first in range(0, len(results), self.each)]
        best = places if self.listed else [[max(place, key=score.__getitem__)] for place in places]
        rows = [[results[row] for row in chosen] for chosen in best]
        answers: list[list[Any]] = rows if self.schema is None else [[_read(one, self.schema) for one in row] for row in rows]
        chosen = answers if self.listed else [one for [one] in answers]
        return chosen if many else chosen[0]


def _read(result: Result, schema: type[Any]) -> Any:
    """The object that an answer says."""
    if result.finish_reason == "invalid":
        raise ConstraintError(
            f"none of {result.attempts} answers was valid for the schema of {schema.__name__}, of which no grammar expresses "
            f"{', '.join(result.approximated)}: {result.text!r:.200}"
        )
    if result.finish_reason != "stop":
        raise ConstraintError(
            f"the answer was cut after {len(result.token_ids)} tokens, and is no {schema.__name__} yet: {result.text!r:.200}; give "
            "a larger max_tokens, or bound its texts and lists"
        )
    try:
        return schema.model_validate_json(result.text)
    except ValueError as error:  # of which pydantic's is one
        raise ConstraintError(
            f"the answer follows the schema of {schema.__name__}, and its own checks refuse it: {error}"
        ) from error
