"""One denoising step as a pure function: statistics in, a new Canvas out.

Source: transformers 5.23 ``generation_diffusion_gemma.py`` (acceptance, renoising, stop).
Shapes: B rows, L canvas, S stability history.
"""

from dataclasses import replace

import torch

from diffusiongemma.diffusion.batch import BatchParams
from diffusiongemma.diffusion.canvas import Canvas
from diffusiongemma.diffusion.process import NoiseProcess
from diffusiongemma.diffusion.rules import accept, relevant
from diffusiongemma.kernels import RngPurpose, Statistics

__all__ = ["step"]


def step(canvas: Canvas, statistics: Statistics, params: BatchParams, process: NoiseProcess) -> Canvas:
    """Advance every row that is not done by one step. What a row becomes depends on nothing of the others, their length included.

    Args:
        canvas: the state the statistics were computed from.
        statistics: of the model's distributions over the canvas, at this step's ``temperature``.
        params: of the rows.
        process: what noise is, and whether what is accepted stays.

    Returns:
        The next canvas.
    """
    # 1. What is pinned or kept is certain.
    open_BL = canvas.open
    best = torch.where(open_BL, statistics.argmax_ids_BL, canvas.noisy_ids_BL)
    uncertain = statistics.entropy_BL.masked_fill(~open_BL, 0.0)

    # 2. Accept the surest draws, re-noise the rest. Unless the process keeps what it accepts, all is open again at the next step.
    accepted = accept(canvas, uncertain, statistics.probability_BL, params)
    noise = process.renoise(statistics.drawn_BL, canvas.keys(RngPurpose.RENOISE))
    tokens = torch.where(accepted, statistics.drawn_BL, torch.where(open_BL, noise, canvas.noisy_ids_BL))
    kept = canvas.kept_BL
    if process.keeps:
        settled = accepted & (tokens != noise)
        kept, best = kept | settled, torch.where(settled, tokens, best)

    # 3. Stop a row whose best canvas has stayed the same and whose open positions are sure on average, that has kept all, or
    #    that has no steps left.
    real_BL = canvas.real
    asked = real_BL & params.stop_rule.pick(
        lambda rule: real_BL if rule == "canvas" else relevant(best, canvas.pinned_BL, params.stop_ids_BK)
    )
    needed_SB = canvas.age[:, None] < params.stability_B
    stable = ((canvas.history_SBL == best) | ~asked).all(-1).logical_or(~needed_SB).all(0)
    asked_open = asked & ~kept
    # A running sum, in order: the filler after a short canvas adds nothing to it.
    total_B = uncertain.masked_fill(~asked_open, 0.0).cumsum(-1)[:, -1]
    sure = total_B / asked_open.sum(-1).clamp(min=1) < params.confidence_B
    if process.keeps:
        stable = stable | ~asked_open.any(-1)
    steps_done = canvas.step_B + 1
    stopped = (stable & sure & params.early_stop_B) | (steps_done >= params.num_diffusion_steps_B)

    # 4. Rows that were done before keep all they had.
    was_done = canvas.done_B
    frozen = was_done[:, None]
    history = torch.cat((canvas.history_SBL, best[None]))[1:] if canvas.history_SBL.shape[0] else canvas.history_SBL
    return replace(
        canvas,
        noisy_ids_BL=torch.where(frozen, canvas.noisy_ids_BL, tokens),
        argmax_ids_BL=torch.where(frozen, canvas.argmax_ids_BL, best),
        entropy_BL=torch.where(frozen, canvas.entropy_BL, uncertain),
        accepted_BL=torch.where(frozen, canvas.accepted_BL, accepted | canvas.kept_BL),
        kept_BL=torch.where(frozen, canvas.kept_BL, kept),
        history_SBL=torch.where(frozen, canvas.history_SBL, history),
        step_B=torch.where(was_done, canvas.step_B, steps_done),
        done_B=was_done | stopped,
    )
