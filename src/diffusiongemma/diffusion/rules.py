"""Which draws a step accepts, which positions a stop asks about, and which tokens a finished canvas gives to the answer.

Sources: transformers 5.23 ``generation_diffusion_gemma.py``; arXiv 2505.24857 (entropy bound); arXiv 2505.22618 (Fast-dLLM:
confidence threshold); arXiv 2502.09992 (LLaDA: a fixed number a step).
Shapes: B rows, L canvas, K stop tokens.
"""

import torch
from torch import Tensor

from diffusiongemma.diffusion.batch import BatchParams
from diffusiongemma.diffusion.canvas import Canvas
from diffusiongemma.options.sampling import AcceptRule, CommitRule

__all__ = ["accept", "committed", "relevant"]


def accept(canvas: Canvas, entropy_BL: Tensor, probability_BL: Tensor, params: BatchParams) -> Tensor:
    """The open positions ``[B, L]`` bool whose draws each row's own rule accepts; at least one of each row that has any.

    Args:
        canvas: the state before the step.
        entropy_BL: ``[B, L]`` nats, 0 where not open.
        probability_BL: ``[B, L]``, of the most probable token.
        params: of the rows.
    """
    open_BL = canvas.open

    def accepted(rule: AcceptRule) -> Tensor:
        if rule == "entropy":
            return within_entropy(entropy_BL, open_BL, params.entropy_bound_B)
        if rule == "confidence":
            return above_probability(probability_BL, open_BL, params.accept_probability_B)
        return surest(entropy_BL, open_BL, _due(canvas, params))

    return params.accept.pick(accepted)


def within_entropy(entropy_BL: Tensor, open_BL: Tensor, bound_B: Tensor) -> Tensor:
    """The surest open positions whose summed entropy, less the largest of them, stays within the bound.

    Args:
        entropy_BL: ``[B, L]`` nats.
        open_BL: ``[B, L]`` bool, positions that may be accepted (``Canvas.open``).
        bound_B: ``[B]`` nats.
    """
    ranked, order = entropy_BL.masked_fill(~open_BL, 0.0).sort(dim=-1, stable=True)
    within = (ranked.cumsum(-1) - ranked) <= bound_B[:, None]
    return torch.zeros_like(open_BL).scatter(-1, order, within) & open_BL


def above_probability(probability_BL: Tensor, open_BL: Tensor, least_B: Tensor) -> Tensor:
    """The open positions whose most probable token is at least so probable, and the most probable of them in any case."""
    surest_B1 = probability_BL.masked_fill(~open_BL, -1.0).argmax(-1, keepdim=True)
    return ((probability_BL >= least_B[:, None]) & open_BL).scatter(-1, surest_B1, True) & open_BL


def surest(entropy_BL: Tensor, open_BL: Tensor, count_B: Tensor) -> Tensor:
    """So many open positions, those of the least entropy."""
    order = entropy_BL.masked_fill(~open_BL, torch.inf).argsort(dim=-1, stable=True)
    place = torch.arange(order.shape[-1], device=order.device)
    return torch.zeros_like(open_BL).scatter(-1, order, place < count_B[:, None]) & open_BL


def _due(canvas: Canvas, params: BatchParams) -> Tensor:
    """How many more positions ``[B]`` the rule ``"count"`` wants: ``accept_count`` a step so far, or an even share of the canvas,
    less those that the process kept."""
    free_B = (canvas.real & ~canvas.pinned_BL).sum(-1)
    steps_B = canvas.step_B + 1
    even_B = (free_B * steps_B + params.num_diffusion_steps_B - 1) // params.num_diffusion_steps_B
    target_B = torch.where(params.accept_count_B > 0, params.accept_count_B * steps_B, even_B)
    return (target_B - (free_B - canvas.open.sum(-1))).clamp(min=1)


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
