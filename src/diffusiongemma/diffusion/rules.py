"""Which draws a step accepts, which positions a stop asks about, and which tokens a finished canvas gives to the answer.

Sources: transformers 5.23 ``generation_diffusion_gemma.py``; arXiv 2505.24857 (entropy bound).
Shapes: B rows, L canvas, K stop tokens.
"""

import torch
from torch import Tensor

from diffusiongemma.diffusion.batch import BatchParams
from diffusiongemma.diffusion.canvas import Canvas
from diffusiongemma.diffusion.params import CommitRule

__all__ = ["accept", "committed", "relevant"]


def accept(entropy_BL: Tensor, open_BL: Tensor, bound_B: Tensor) -> Tensor:
    """The surest open positions whose summed entropy, less the largest of them, stays within the bound.

    Args:
        entropy_BL: ``[B, L]`` nats.
        open_BL: ``[B, L]`` bool, positions that may be accepted (``Canvas.open``).
        bound_B: ``[B]`` nats.

    Returns:
        ``[B, L]`` bool; at least one open position of each row, where it has any.
    """
    ranked, order = entropy_BL.masked_fill(~open_BL, 0.0).sort(dim=-1, stable=True)
    within = (ranked.cumsum(-1) - ranked) <= bound_B[:, None]
    return torch.zeros_like(open_BL).scatter(-1, order, within) & open_BL


def relevant(argmax_ids_BL: Tensor, pinned_BL: Tensor, stop_ids_BK: Tensor) -> Tensor:
    """Positions ``[B, L]`` bool whose change would change the answer: up to the first stop token, and up to the last pin."""
    is_stop = (argmax_ids_BL[..., None] == stop_ids_BK[:, None]).any(-1)
    before_stop = is_stop.cumsum(-1) - is_stop.long() == 0
    before_pin = pinned_BL.flip(-1).cumsum(-1).flip(-1) > 0
    return before_stop | before_pin


def committed(canvas: Canvas, params: BatchParams) -> Tensor:
    """The tokens ``[B, L]`` that a finished canvas gives to the answer."""

    def tokens(rule: CommitRule) -> Tensor:
        if rule == "accepted":
            return torch.where(canvas.accepted_BL, canvas.noisy_ids_BL, canvas.argmax_ids_BL)
        return canvas.argmax_ids_BL if rule == "best" else canvas.noisy_ids_BL

    return params.commit.pick(tokens)
