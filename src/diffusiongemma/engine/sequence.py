"""One request on its way through the engine.

Shapes: L canvas, D hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from torch import Tensor

from diffusiongemma.diffusion import Canvas
from diffusiongemma.engine.answer import Answer
from diffusiongemma.engine.constraint import BestOf, GuardedState
from diffusiongemma.engine.events import Commit, Event
from diffusiongemma.engine.request import REST, Request
from diffusiongemma.model.cache import RowCache
from diffusiongemma.model.transformer import PassMetadata

__all__ = ["Asked", "Form", "Phase", "Repair", "SequenceState", "canvas_slice"]


class Phase(Enum):
    """What a sequence does next."""

    WAITING = "waiting"
    """It has no cache: it is new, or had to give its memory up."""
    ENCODE = "encode"
    """Tokens of its prompt or its answer are not in its cache yet."""
    DENOISE = "denoise"
    """It stands on a canvas."""
    CONSTRAIN = "constrain"
    """A process is asked for what it is constrained to; it sits out steps until the answer is there."""
    DONE = "done"


class Asked(NamedTuple):
    """What a sequence waits for.

    Attributes:
        future: the answer.
        then: what it leads to.
    """

    future: "Future[Any]"
    then: Callable[[Any], "Iterator[tuple[SequenceState, Event]]"]


@dataclass(frozen=True)
class Form:
    """What denoising made of a canvas.

    Attributes:
        tokens: of the whole canvas.
        taken: how many of them the answer would take.
        steps: that it took.
        constrained: positions that no other round could change.
        best_of: where the answer is constrained: what chooses among allowed tokens.
    """

    tokens: list[int]
    taken: int
    steps: int
    constrained: frozenset[int]
    best_of: BestOf | None = None


@dataclass(frozen=True)
class Repair:
    """A canvas that the causal role has judged.

    Attributes:
        rounds: of repair that led to the last of its forms.
        steps: that all forms took.
        best: the form that it found most probable.
        score: of that, the mean log-probability of a token, in nats.
    """

    rounds: int
    steps: int
    best: Form
    score: float


@dataclass(eq=False)
class SequenceState:
    """One request on its way.

    Attributes:
        key: whose it is; requests of one key were handed in together.
        number: the row number in its events.
        request: what was asked.
        max_length: tokens that its cache may have to hold.
        unit: tokens that are committed, and encoded, at a time: a canvas's, or 1 in the causal mode.
        answer: what is there of it.
        constraint: its place in its grammar or rules.
        confined: whether that is asked in another process.
        blocks: names of the prompt's blocks in the prefix cache.
        phase: what it does next.
        cache: its own; None while it waits without one.
        last_1D: hidden state of the last token encoded.
        index: which canvas.
        canvas: on which it stands, its only row.
        pins: of the canvas, -1 where it is open; None: none.
        form: of the canvas, which the causal role reads next.
        soft_1LD: expected embedding of the last step.
        metadata: of the canvas.
        began: when the canvas began.
        commit: an event that waits for its log-probabilities.
        asked: what it waits for.
        rest: tokens that an exact answer writes token by token before its next draft.
        setback: how many those were the last time.
        repair: what its canvas came to in earlier rounds; None: it is the first.
        attempts: at an answer that is valid for its schema, with this one.
        withheld: commits of an answer that may have to be written again.
        placed: since when it has a place among those that step.
        error: what it failed with, its grammar or rules aside.
    """

    key: object
    number: int
    request: Request
    max_length: int
    unit: int
    answer: Answer
    constraint: GuardedState | None
    confined: bool
    blocks: list[bytes]
    phase: Phase = Phase.WAITING
    cache: RowCache | None = None
    last_1D: Tensor | None = None
    index: int = 0
    canvas: Canvas | None = None
    pins: list[int] | None = None
    form: Form | None = None
    soft_1LD: Tensor | None = None
    metadata: PassMetadata | None = None
    began: float = 0.0
    commit: Commit | None = None
    asked: Asked | None = None
    rest: int = 0
    setback: int = 0
    repair: Repair | None = None
    attempts: int = 1
    withheld: list[Commit] = field(default_factory=list)
    placed: float = 0.0
    error: Exception | None = None

    @property
    def drafts(self) -> bool:
        """Whether it stands on a canvas next, once all of it is encoded."""
        return self.request.mode == "diffusion" or (self.request.mode == "exact" and not self.rest)

    def judged(self, tokens: int, passes: int) -> None:
        """Note what a draft of an exact answer gave: where it cost more passes than tokens, the next one comes later, and later."""
        self.setback = 0 if tokens >= passes else max(REST, 2 * self.setback)
        self.rest = self.setback

    @property
    def failed(self) -> Exception | None:
        """What it failed with."""
        return self.error if self.error is not None or self.constraint is None else self.constraint.error

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.request.prompt) + len(self.answer.ids)

    @property
    def encoded(self) -> int:
        """Those of them that are in the cache."""
        return 0 if self.cache is None else self.cache.length

    @property
    def judging(self) -> bool:
        """Whether a form of its canvas is what it encodes next."""
        return self.form is not None and self.encoded == self.length

    @property
    def in_prompt(self) -> bool:
        """Whether the next token to encode is one of the prompt."""
        return self.encoded < len(self.request.prompt)

    def segment(self, chunk: int) -> list[int]:
        """The tokens to encode next: at most a chunk of the prompt, what was committed at a time, or a form that is to be judged.

        A sequence that lost its cache encodes the same segments again, so that it has the same bits.
        """
        if self.in_prompt:
            return self.request.prompt[self.encoded : self.encoded + chunk]
        if self.judging:
            assert self.form is not None
            return self.form.tokens[: self.form.taken]
        begin = self.encoded - len(self.request.prompt)
        return self.answer.ids[begin : begin + self.unit]

    def drop_cache(self) -> None:
        """Give the memory up; it is encoded again when there is some."""
        self.phase = Phase.WAITING
        self.cache = self.last_1D = self.metadata = None


def canvas_slice(given: Sequence[int] | None, index: int, length: int) -> list[int] | None:
    """A canvas's share of what is given from the start of the answer, -1 where nothing is; None if nothing is at all."""
    if given is None:
        return None
    here = list(given[index * length : (index + 1) * length])
    return here + [-1] * (length - len(here))
