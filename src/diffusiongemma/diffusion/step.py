"""One denoising step as pure functions: statistics in, a new Canvas out.

Sources: transformers 5.23 ``generation_diffusion_gemma.py`` (acceptance, renoising, stop); arXiv 2505.24857 (entropy bound).
Shapes: B rows, L canvas, S stability history, K stop tokens.
"""

from dataclasses import replace

import torch
from torch import Tensor

from diffusiongemma.diffusion.batch import BatchParams
from diffusiongemma.diffusion.canvas import Canvas
from diffusiongemma.diffusion.params import COLDEST, CommitRule, Schedule
from diffusiongemma.kernels import RngPurpose, Statistics, random_ids

__all__ = ["accept", "committed", "relevant", "step", "temperature"]


def temperature(step_B: Tensor, params: BatchParams) -> Tensor:
    """Temperature ``[B]`` float32 with ``step_B`` steps done: from ``t_max`` down towards ``t_min``, at least ``COLDEST``."""
    remaining_B = (params.num_diffusion_steps_B - step_B) / params.num_diffusion_steps_B

    def fraction(schedule: Schedule) -> Tensor:
        if schedule == "linear":
            return remaining_B
        # In float64: the last bit of a float32 cosine depends on how many rows there are.
        return ((1 - torch.cos(torch.pi * remaining_B.double())) / 2).float()

    return (params.t_min_B + params.t_span_B * params.schedule.pick(fraction)).clamp(min=COLDEST)


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


def step(canvas: Canvas, statistics: Statistics, params: BatchParams, vocab_size: int) -> Canvas:
    """Advance every row that is not done by one step. What a row becomes depends on nothing of the others, their length included.

    Args:
        canvas: the state the statistics were computed from.
        statistics: of the model's distributions over the canvas, at this step's ``temperature``.
        params: of the rows.
        vocab_size: noise comes from ``[0, vocab_size)``.

    Returns:
        The next canvas.
    """
    # 1. What is pinned is certain.
    open_BL = canvas.open
    best = torch.where(open_BL, statistics.argmax_ids_BL, canvas.noisy_ids_BL)
    uncertain = statistics.entropy_BL.masked_fill(~open_BL, 0.0)

    # 2. Accept the surest draws, re-noise the rest; every position is open again at the next step.
    accepted = accept(uncertain, open_BL, params.entropy_bound_B)
    noise = random_ids(canvas.keys(RngPurpose.RENOISE), vocab_size)
    tokens = torch.where(accepted, statistics.drawn_BL, torch.where(open_BL, noise, canvas.noisy_ids_BL))

    # 3. Stop a row whose best canvas has stayed the same and whose open positions are sure on average, or that has no
    #    steps left.
    real_BL = canvas.real
    asked = real_BL & params.stop_rule.pick(
        lambda rule: real_BL if rule == "canvas" else relevant(best, canvas.pinned_BL, params.stop_ids_BK)
    )
    needed_SB = canvas.age[:, None] < params.stability_B
    stable = ((canvas.history_SBL == best) | ~asked).all(-1).logical_or(~needed_SB).all(0)
    asked_open = asked & open_BL
    # A running sum, in order: the filler after a short canvas adds nothing to it.
    total_B = uncertain.masked_fill(~asked_open, 0.0).cumsum(-1)[:, -1]
    sure = total_B / asked_open.sum(-1).clamp(min=1) < params.confidence_B
    steps_done = canvas.step_B + 1
    stopped = (stable & sure & params.early_stop_B) | (steps_done >= params.num_diffusion_steps_B)

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
