"""The state of a batch of canvases between two steps.

Shapes: B rows, L canvas, D hidden, S stability history.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from diffusiongemma.kernels import RngPurpose, position_keys, random_ids

__all__ = ["Canvas", "new_canvas"]


@dataclass(frozen=True)
class Canvas:
    """Frozen: a step makes a new one.

    Attributes:
        noisy_ids_BL: int64, what the model reads next.
        argmax_ids_BL: int64, the last step's most probable tokens; what is committed.
        entropy_BL: float32, nats, of the last step's shaped distribution; 0 where pinned.
        accepted_BL: bool, drawn and kept at the last step (pinned counts as accepted).
        pinned_BL: bool, fixed from outside: never re-noised, always ``noisy_ids_BL`` and ``argmax_ids_BL``.
        history_SBL: int64, ``argmax_ids_BL`` of the last ``stability`` steps, -1 where there was none.
        step_B: int64, steps done.
        done_B: bool, the row stopped: nothing of it changes any more.
        seed_B: int64, the row's seed.
        index_B: int64, which canvas of its generation this is.
    """

    noisy_ids_BL: Tensor
    argmax_ids_BL: Tensor
    entropy_BL: Tensor
    accepted_BL: Tensor
    pinned_BL: Tensor
    history_SBL: Tensor
    step_B: Tensor
    done_B: Tensor
    seed_B: Tensor
    index_B: Tensor

    @property
    def length(self) -> int:
        """Positions of a row."""
        return self.noisy_ids_BL.shape[1]

    def select(self, rows: Sequence[int]) -> "Canvas":
        """Some of the rows, in the order given."""
        picked = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "history_SBL"}
        return Canvas(**picked, history_SBL=self.history_SBL[:, rows])

    @staticmethod
    def cat(canvases: Sequence["Canvas"]) -> "Canvas":
        """Rows of canvases of one length, one after the other."""
        if len(canvases) == 1:
            return canvases[0]
        joined = {
            f.name: torch.cat([getattr(canvas, f.name) for canvas in canvases], dim=int(f.name == "history_SBL"))
            for f in fields(Canvas)
        }
        return Canvas(**joined)

    def keys(self, stream: RngPurpose) -> Tensor:
        """Keys ``[B, L]`` of this step's random numbers for one use."""
        return position_keys(self.seed_B, self.index_B, self.step_B, stream, self.length)


def new_canvas(
    seed_B: Tensor,
    index_B: Tensor,
    length: int,
    vocab_size: int,
    stability: int,
    pins_BL: Tensor | None = None,
    start_BL: Tensor | None = None,
) -> Canvas:
    """Canvases of pure noise, but for the pins and what is there to start from.

    Args:
        seed_B: ``[B]`` int64.
        index_B: ``[B]`` int64, which canvas of its generation each row begins.
        length: positions.
        vocab_size: noise comes from ``[0, vocab_size)``.
        stability: steps of history the stop test needs.
        pins_BL: ``[B, L]`` int64, a token id where a position is pinned, -1 elsewhere.
        start_BL: ``[B, L]`` int64, a token id where a position begins with one instead of noise, -1 elsewhere. It is open as
            any other: the first step keeps it where the model is sure of it.
    """
    step_B = torch.zeros_like(seed_B)
    tokens = random_ids(position_keys(seed_B, index_B, step_B, RngPurpose.INITIAL, length), vocab_size)
    if start_BL is not None:
        tokens = torch.where(start_BL >= 0, start_BL, tokens)
    pinned = torch.zeros_like(tokens, dtype=torch.bool) if pins_BL is None else pins_BL >= 0
    if pins_BL is not None:
        tokens = torch.where(pinned, pins_BL, tokens)
    return Canvas(
        noisy_ids_BL=tokens,
        argmax_ids_BL=tokens,
        entropy_BL=torch.zeros(tokens.shape, device=tokens.device),
        accepted_BL=pinned,
        pinned_BL=pinned,
        history_SBL=tokens.new_full((stability, *tokens.shape), -1),
        step_B=step_B,
        done_B=torch.zeros_like(seed_B, dtype=torch.bool),
        seed_B=seed_B,
        index_B=index_B,
    )
