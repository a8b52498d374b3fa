"""Typed questions, the answers that may be written for them, and what was decided. Strings only: tokens come later."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Protocol

from diffusiongemma.errors import InputError, OptionError

__all__ = ["MAX_ANSWERS", "Choice", "Decision", "Decisions", "Predicate", "Question", "Score", "Sheet", "Value", "sheets"]

MAX_ANSWERS = 256
"""Answers that are compared on one canvas: options of a question, or combinations of options of joint questions."""
_SLOT = re.compile(r"\{\{([^{}]*)\}\}")

Value = bool | str | int


class Question(Protocol):
    """What can be asked: ``Predicate``, ``Choice``, ``Score``."""

    @property
    def name(self) -> str:
        """Names the decision, and the slot ``{{name}}`` of a template."""

    @property
    def instructions(self) -> str:
        """Put after the prompt; empty where the prompt says it already."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model may write, an option each."""

    @property
    def values(self) -> tuple[Value, ...]:
        """What each option means to the caller."""


@dataclass(frozen=True)
class Predicate:
    """Whether something holds.

    Attributes:
        name: of the question.
        instructions: see ``Question``.
        yes: written for True.
        no: written for False.
    """

    name: str
    instructions: str = ""
    yes: str = "Yes"
    no: str = "No"

    @property
    def texts(self) -> tuple[str, ...]:
        """See ``Question``."""
        return (self.yes, self.no)

    @property
    def values(self) -> tuple[Value, ...]:
        """See ``Question``."""
        return (True, False)


@dataclass(frozen=True)
class Choice:
    """One of several options, in no order.

    Attributes:
        name: of the question.
        options: two or more different texts.
        instructions: see ``Question``.
    """

    name: str
    options: Sequence[str]
    instructions: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """See ``Question``."""
        return (self.options,) if isinstance(self.options, str) else tuple(self.options)

    @property
    def values(self) -> tuple[Value, ...]:
        """See ``Question``."""
        return self.texts


@dataclass(frozen=True)
class Score:
    """A whole number of a range; the decision has its expectation too.

    Attributes:
        name: of the question.
        low: the smallest.
        high: the largest, above ``low``.
        instructions: see ``Question``.
    """

    name: str
    low: int
    high: int
    instructions: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """See ``Question``."""
        return tuple(str(value) for value in self.values)

    @property
    def values(self) -> tuple[Value, ...]:
        """See ``Question``."""
        # One more than is allowed shows that there are too many, however large the range is.
        return tuple(range(self.low, min(self.high, self.low + MAX_ANSWERS) + 1))


@dataclass(frozen=True)
class Decision:
    """What was decided on one question.

    Attributes:
        name: of the question.
        answer: True or False, an option, or a number; None where its probability is below the threshold.
        probabilities: option to probability, in the order of the options; they sum to 1.
        entropy: of the probabilities, in nats: 0 is sure, ``log(options)`` knows nothing.
        expectation: of a Score, the mean under the probabilities; else None.
    """

    name: str
    answer: Value | None
    probabilities: dict[str, float]
    entropy: float
    expectation: float | None = None


@dataclass(frozen=True)
class Decisions:
    """All decisions of one call, in the order of the questions; ``decisions[name]`` is one of them.

    Attributes:
        decisions: one a question.
        passes: denoising passes.
        rows: canvases in all passes together.
        seconds: wall time, prompt included.
        prompt_tokens: of the prompts that the questions were read from.
    """

    decisions: tuple[Decision, ...]
    passes: int
    rows: int
    seconds: float
    prompt_tokens: int = 0

    def __getitem__(self, name: str) -> Decision:
        """The decision on a question.

        Raises:
            KeyError: no question had this name.
        """
        return {decision.name: decision for decision in self.decisions}[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Sheet:
    """Questions that are answered on one canvas.

    Attributes:
        questions: in the order of the answers' combinations.
        answers: the whole text for each combination of options, the last question's options changing fastest.
    """

    questions: tuple[Question, ...]
    answers: tuple[str, ...]

    @property
    def instructions(self) -> str:
        """What is put after the prompt."""
        return "\n".join(question.instructions for question in self.questions if question.instructions)

    def decisions(self, probabilities: Sequence[float], threshold: float) -> list[Decision]:
        """A decision a question: the answer of the most probable combination, the probabilities summed over the others' options.

        Args:
            probabilities: of ``answers``.
            threshold: probability below which a question is left open.
        """
        combinations = list(product(*(range(len(question.texts)) for question in self.questions)))
        best = combinations[max(range(len(combinations)), key=probabilities.__getitem__)]
        result = []
        for place, question in enumerate(self.questions):
            sums = [0.0] * len(question.texts)
            for combination, probability in zip(combinations, probabilities, strict=True):
                sums[combination[place]] += probability
            result.append(_decision(question, sums, best[place], threshold))
        return result


def sheets(questions: Sequence[Question], joint: bool, template: str | None, threshold: float) -> list[Sheet]:
    """The canvases that questions ask for.

    Args:
        questions: with different names.
        joint: all on one canvas, where they see each other; else each on its own.
        template: the answer's text with a slot ``{{name}}`` for each question of the canvas; None: the bare answer where a
            question is alone, else a line ``name: {{name}}`` each.
        threshold: is only checked here.

    Raises:
        InputError: no questions, names or options that are empty or not different, too many answers to compare, or a template
            whose slots are not the questions.
        OptionError: a threshold outside 0 to 1.
    """
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise OptionError(f"threshold is {threshold!r:.50}; it is a probability, from 0 to 1")
    if not isinstance(questions, Sequence) or isinstance(questions, str | bytes):
        raise InputError(f"questions is of type {type(questions).__name__}; give a list, for example [Predicate('follows')]")
    if not isinstance(template, str | None):
        raise InputError(
            f"the template is of type {type(template).__name__}; give a string with a slot {{{{name}}}} for each question"
        )
    if not questions:
        raise InputError("there are no questions; give at least one, for example Predicate('follows')")
    for question in questions:
        _check(question)
    names = Counter(question.name for question in questions)
    if twice := sorted(name for name, times in names.items() if times > 1):
        raise InputError(f"the question name {twice[0]!r} is given {names[twice[0]]} times; each question needs its own")
    if template is not None and not joint and len(questions) > 1:
        raise InputError(
            f"one template cannot hold {len(questions)} questions that stand on canvases of their own; "
            "ask with joint=True, or one question at a time"
        )
    groups = [tuple(questions)] if joint else [(question,) for question in questions]
    return [Sheet(group, _answers(group, template)) for group in groups]


def _check(question: Question) -> None:
    if not isinstance(getattr(question, "name", None), str):
        raise InputError(f"{question!r:.100} is no question with a name; give a Predicate, a Choice or a Score")
    if not question.name or _SLOT.fullmatch(f"{{{{{question.name}}}}}") is None:
        raise InputError(f"a question is named {question.name!r}; a name has at least one character, none of them a brace")
    if isinstance(question, Choice) and (isinstance(question.options, str) or not isinstance(question.options, Sequence)):
        raise InputError(f"the options of {question.name} are {question.options!r:.100}; give a list of strings")
    if isinstance(question, Score) and not (isinstance(question.low, int) and isinstance(question.high, int)):
        raise InputError(f"{question.name} runs from {question.low!r:.50} to {question.high!r:.50}; both must be whole numbers")
    if isinstance(question, Score) and question.high <= question.low:
        raise InputError(f"{question.name} runs from {question.low} to {question.high}; high must be above low")
    texts = question.texts
    if bad := [text for text in texts if not isinstance(text, str) or not text]:
        raise InputError(f"{question.name} has the option {bad[0]!r}; an option is a string of at least one character")
    if len(texts) < 2:
        raise InputError(f"{question.name} has {len(texts)} options; a question needs at least two")
    if twice := [(text, times) for text, times in Counter(texts).items() if times > 1]:
        raise InputError(f"{question.name} has the option {twice[0][0]!r} {twice[0][1]} times; options must differ")


def _answers(group: tuple[Question, ...], template: str | None) -> tuple[str, ...]:
    count = math.prod(len(question.texts) for question in group)
    if count > MAX_ANSWERS:
        raise InputError(
            f"{', '.join(question.name for question in group)}: {count} answers or more to compare, of at most {MAX_ANSWERS}; "
            "give fewer options, or ask fewer questions jointly"
        )
    if template is None:
        template = "\n".join(f"{q.name}: {{{{{q.name}}}}}" for q in group) if len(group) > 1 else f"{{{{{group[0].name}}}}}"
    slots, names = _SLOT.findall(template), [question.name for question in group]
    if sorted(slots) != sorted(names):
        raise InputError(
            f"the template has slots for {slots or 'nothing'}, the questions are {names}; "
            "it needs {{name}} exactly once for each of them"
        )
    return tuple(_filled(template, dict(zip(names, texts, strict=True))) for texts in product(*(q.texts for q in group)))


def _filled(template: str, chosen: dict[str, str]) -> str:
    return _SLOT.sub(lambda match: chosen[match[1]], template)


def _decision(question: Question, probabilities: Sequence[float], best: int, threshold: float) -> Decision:
    by_text = dict(zip(question.texts, probabilities, strict=True))
    values = question.values
    mean = None
    if isinstance(question, Score):
        mean = sum(float(value) * probability for value, probability in zip(values, probabilities, strict=True))
    return Decision(
        name=question.name,
        answer=values[best] if probabilities[best] >= threshold else None,
        probabilities=by_text,
        entropy=-sum(p * math.log(p) for p in probabilities if p > 0),
        expectation=mean,
    )
