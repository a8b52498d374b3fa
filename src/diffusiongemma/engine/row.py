"""One request on its way through the engine.

Shapes: L canvas, D hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diffusiongemma.diffusion import Canvas
from diffusiongemma.engine.answer import Answer
from diffusiongemma.engine.constraint import GuardedState
from diffusiongemma.engine.events import Commit
from diffusiongemma.engine.request import Request
from diffusiongemma.model.cache import RowCache
from diffusiongemma.model.transformer import PassMetadata

__all__ = ["Row", "canvas_slice"]


@dataclass(eq=False)
class Row:
    """One request on its way.

    Attributes:
        key: whose it is.
        number: the row number in its events.
        request: what was asked.
        answer: what is there of it.
        cache: its own.
        constraint: its place in its grammar or rules.
        pending: tokens to encode before anything else.
        blocks: names of the prompt's blocks in the prefix cache.
        batch_key: rows for which it is equal step together.
        last_1D: hidden state of the last token encoded.
        hidden_LD: of the canvas, from the last pass.
        index: which canvas.
        canvas: on which it denoises; None while it encodes.
        soft_1LD: expected embedding of the last step.
        metadata: of the canvas.
        began: when the canvas began.
        commit: an event that waits for its log-probabilities.
        placed: since when it has a place among the rows that step.
        error: what it failed with, its grammar or rules aside.
    """

    key: object
    number: int
    request: Request
    answer: Answer
    cache: RowCache
    constraint: GuardedState | None
    pending: list[int]
    blocks: list[bytes]
    batch_key: str
    last_1D: Tensor | None = None
    hidden_LD: Tensor | None = None
    index: int = 0
    canvas: Canvas | None = None
    soft_1LD: Tensor | None = None
    metadata: PassMetadata | None = None
    began: float = 0.0
    commit: Commit | None = None
    placed: float = 0.0
    error: Exception | None = None

    @property
    def failed(self) -> Exception | None:
        """What it failed with."""
        return self.error if self.error is not None or self.constraint is None else self.constraint.error


def canvas_slice(given: Sequence[int] | None, index: int, length: int) -> list[int] | None:
    """A canvas's share of what is given from the start of the answer, -1 where nothing is; None if nothing is at all."""
    if given is None:
        return None
    here = list(given[index * length : (index + 1) * length])
    return here + [-1] * (length - len(here))
