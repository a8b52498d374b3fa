"""The state of a batch of canvases between two steps.

Shapes: B rows, L canvas, D hidden, S stability history.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusiongemma.diffusion.process import NoiseProcess
from diffusiongemma.kernels import RngPurpose, position_keys

__all__ = ["Canvas", "new_canvas"]


@dataclass(frozen=True)
class Canvas:
    """Frozen: a step makes a new one.

    Rows may have canvases of different lengths, and steps of history; L and S are the longest. What is after a shorter canvas is
    filler: never open, asked of nothing.

    Attributes:
        noisy_ids_BL: int64, what the model reads next.
        argmax_ids_BL: int64, the last step's most probable tokens; what is committed.
        entropy_BL: float32, nats, of the last step's shaped distribution; 0 where kept.
        accepted_BL: bool, drawn and accepted at the last step, or kept before it.
        pinned_BL: bool, fixed from outside: never re-noised, always ``noisy_ids_BL`` and ``argmax_ids_BL``.
        kept_BL: bool, pinned, or accepted by a process that keeps what it accepts: as it is until the canvas is done.
        history_SBL: int64, ``argmax_ids_BL`` of the last ``stability`` steps, the newest last, -1 where there was none.
        step_B: int64, steps done.
        done_B: bool, the row stopped: nothing of it changes any more.
        seed_B: int64, the row's seed.
        index_B: int64, which canvas of its generation this is.
        length_B: int64, positions of the row's canvas.
    """

    noisy_ids_BL: Tensor
    argmax_ids_BL: Tensor
    entropy_BL: Tensor
    accepted_BL: Tensor
    pinned_BL: Tensor
    kept_BL: Tensor
    history_SBL: Tensor
    step_B: Tensor
    done_B: Tensor
    seed_B: Tensor
    index_B: Tensor
    length_B: Tensor

    @property
    def length(self) -> int:
        """Positions of the longest row."""
        return self.noisy_ids_BL.shape[1]

    @property
    def real(self) -> Tensor:
        """``[B, L]`` bool, positions of the row's canvas: all that is not filler."""
        return torch.arange(self.length, device=self.length_B.device) < self.length_B[:, None]

    @property
    def open(self) -> Tensor:
        """``[B, L]`` bool, positions that the model fills."""
        return self.real & ~self.kept_BL

    @property
    def age(self) -> Tensor:
        """``[S]`` int64, by how many steps each entry of the history is older than the newest."""
        return torch.arange(self.history_SBL.shape[0] - 1, -1, -1, device=self.length_B.device)

    def select(self, rows: Sequence[int]) -> "Canvas":
        """Some of the rows, in the order given."""
        index = torch.tensor(rows, device=self.length_B.device)
        return Canvas(**{f.name: getattr(self, f.name).index_select(_row_dim(f.name), index) for f in fields(self)})

    def row(self, at: int, length: int, stability: int) -> "Canvas":
        """One of the rows, without filler, as a view.

        Args:
            at: which.
            length: positions of its canvas.
            stability: steps of history it needs.
        """
        if len(self.length_B) == 1 and (length, stability) == (self.length, len(self.history_SBL)):
            return self
        picked = {f.name: getattr(self, f.name).narrow(_row_dim(f.name), at, 1) for f in fields(self)}
        picked = {name: value[..., :length] if name.endswith("BL") else value for name, value in picked.items()}
        return Canvas(**picked | {"history_SBL": picked["history_SBL"][len(self.history_SBL) - stability :]})

    @staticmethod
    def cat(canvases: Sequence["Canvas"]) -> "Canvas":
        """Rows of canvases, one after the other."""
        if len(canvases) == 1:
            return canvases[0]
        length, steps = (max(sizes) for sizes in zip(*((one.length, len(one.history_SBL)) for one in canvases), strict=True))
        whole = [one._widened(length, steps) for one in canvases]
        return Canvas(**{f.name: torch.cat([getattr(one, f.name) for one in whole], _row_dim(f.name)) for f in fields(Canvas)})

    def _widened(self, length: int, steps: int) -> "Canvas":
        """The same rows with more filler, and room for more steps of history."""
        more, older = length - self.length, steps - len(self.history_SBL)
        if not more and not older:
            return self
        wider = {f.name: F.pad(getattr(self, f.name), (0, more)) for f in fields(self) if f.name.endswith("BL")}
        wider["history_SBL"] = F.pad(self.history_SBL, (0, more, 0, 0, older, 0), value=-1)
        return replace(self, **wider)

    def keys(self, stream: RngPurpose) -> Tensor:
        """Keys ``[B, L]`` of this step's random numbers for one use."""
        return position_keys(self.seed_B, self.index_B, self.step_B, stream, self.length)


def _row_dim(field: str) -> int:
    return int(field == "history_SBL")


def new_canvas(
    seed_B: Tensor,
    index_B: Tensor,
    length: int,
    process: NoiseProcess,
    stability: int,
    pins_BL: Tensor | None = None,
    start_BL: Tensor | None = None,
) -> Canvas:
    """Canvases of pure noise, but for the pins and what is there to start from.

    Args:
        seed_B: ``[B]`` int64.
        index_B: ``[B]`` int64, which canvas of its generation each row begins.
        length: positions.
        process: whose noise it is.
        stability: steps of history the stop test needs.
        pins_BL: ``[B, L]`` int64, a token id where a position is pinned, -1 elsewhere.
        start_BL: ``[B, L]`` int64, a token id where a position begins with one instead of noise, -1 elsewhere. It is open as
            any other: the first step keeps it where the model is sure of it. Not for a process that keeps what it accepts, to which
            a token of a text is clean.
    """
    step_B = torch.zeros_like(seed_B)
    tokens = process.prior(position_keys(seed_B, index_B, step_B, RngPurpose.INITIAL, length))
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
        kept_BL=pinned,
        history_SBL=tokens.new_full((stability, *tokens.shape), -1),
        step_B=step_B,
        done_B=torch.zeros_like(seed_B, dtype=torch.bool),
        seed_B=seed_B,
        index_B=index_B,
        length_B=torch.full_like(seed_B, length),
    )
