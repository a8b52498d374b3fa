"""One denoising step as pure functions: statistics in, a new Canvas out.

Sources: transformers 5.23 ``generation_diffusion_gemma.py`` (acceptance, renoising, stop); arXiv 2505.24857 (entropy bound).
Shapes: B rows, L canvas.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffusiongemma.diffusion.canvas import Canvas
from diffusiongemma.diffusion.params import COLDEST, SamplingParams
from diffusiongemma.kernels import RngPurpose, Statistics, random_ids

__all__ = ["accept", "committed", "relevant", "step", "temperature"]


def temperature(step_B: Tensor, params: SamplingParams) -> Tensor:
    """Temperature ``[B]`` float32 with ``step_B`` steps done: from ``t_max`` down towards ``t_min``, at least ``COLDEST``."""
    remaining = (params.num_diffusion_steps - step_B) / params.num_diffusion_steps
    if params.schedule == "cosine":
        remaining = (1 - torch.cos(torch.pi * remaining)) / 2
    return (params.t_min + (params.t_max - params.t_min) * remaining).clamp(min=COLDEST)


def accept(entropy_BL: Tensor, open_BL: Tensor, bound: float) -> Tensor:
    """The surest open positions whose summed entropy, less the largest of them, stays within the bound.

    Args:
        entropy_BL: ``[B, L]`` nats.
        open_BL: ``[B, L]`` bool, positions that may be accepted (not pinned).
        bound: nats.

    Returns:
        ``[B, L]`` bool; at least one open position of each row, where it has any.
    """
    ranked, order = entropy_BL.masked_fill(~open_BL, 0.0).sort(dim=-1, stable=True)
    within = (ranked.cumsum(-1) - ranked) <= bound
    return torch.zeros_like(open_BL).scatter(-1, order, within) & open_BL


def relevant(argmax_ids_BL: Tensor, pinned_BL: Tensor, stop_ids: Sequence[int]) -> Tensor:
    """Positions ``[B, L]`` bool whose change would change the answer: up to the first stop token, and up to the last pin."""
    is_stop = torch.zeros_like(pinned_BL)
    for token in stop_ids:
        is_stop = is_stop | (argmax_ids_BL == token)
    before_stop = is_stop.cumsum(-1) - is_stop.long() == 0
    before_pin = pinned_BL.flip(-1).cumsum(-1).flip(-1) > 0
    return before_stop | before_pin


def committed(canvas: Canvas, params: SamplingParams) -> Tensor:
    """The tokens ``[B, L]`` that a finished canvas gives to the answer."""
    if params.commit == "best":
        return canvas.argmax_ids_BL
    if params.commit == "canvas":
        return canvas.noisy_ids_BL
    return torch.where(canvas.accepted_BL, canvas.noisy_ids_BL, canvas.argmax_ids_BL)


def step(canvas: Canvas, statistics: Statistics, params: SamplingParams, vocab_size: int, stop_ids: Sequence[int] = ()) -> Canvas:
    """Advance every row that is not done by one step.

    Args:
        canvas: the state the statistics were computed from.
        statistics: of the model's distributions over the canvas, at this step's ``temperature``.
        params: sampling parameters.
        vocab_size: noise comes from ``[0, vocab_size)``.
        stop_ids: token ids that end an answer, for the stop rule ``"answer"``.

    Returns:
        The next canvas.
    """
    # 1. What is pinned is certain.
    best = torch.where(canvas.pinned_BL, canvas.noisy_ids_BL, statistics.argmax_ids_BL)
    uncertain = statistics.entropy_BL.masked_fill(canvas.pinned_BL, 0.0)

    # 2. Accept the surest draws, re-noise the rest; every position is open again at the next step.
    accepted = accept(uncertain, ~canvas.pinned_BL, params.entropy_bound)
    noise = random_ids(canvas.keys(RngPurpose.RENOISE), vocab_size)
    tokens = torch.where(accepted, statistics.drawn_BL, torch.where(canvas.pinned_BL, canvas.noisy_ids_BL, noise))

    # 3. Stop a row whose best canvas has stayed the same and whose open positions are sure on average, or that has no
    #    steps left.
    asked = torch.ones_like(accepted) if params.stop_rule == "canvas" else relevant(best, canvas.pinned_BL, stop_ids)
    stable = ((canvas.history_SBL == best) | ~asked).all(-1).all(0)
    asked_open = asked & ~canvas.pinned_BL
    sure = (uncertain * asked_open).sum(-1) / asked_open.sum(-1).clamp(min=1) < params.confidence
    steps_done = canvas.step_B + 1
    stopped = (stable & sure & params.early_stop) | (steps_done >= params.num_diffusion_steps)

    # 4. Rows that were done before keep all they had.
    was_done = canvas.done_B
    kept = was_done[:, None]
    history = torch.cat((canvas.history_SBL, best[None]))[1:] if canvas.history_SBL.shape[0] else canvas.history_SBL
    return replace(
        canvas,
        noisy_ids_BL=torch.where(kept, canvas.noisy_ids_BL, tokens),
        argmax_ids_BL=torch.where(kept, canvas.argmax_ids_BL, best),
        entropy_BL=torch.where(kept, canvas.entropy_BL, uncertain),
        accepted_BL=torch.where(kept, canvas.accepted_BL, accepted | canvas.pinned_BL),
        history_SBL=torch.where(kept, canvas.history_SBL, history),
        step_B=torch.where(was_done, canvas.step_B, steps_done),
        done_B=was_done | stopped,
    )
