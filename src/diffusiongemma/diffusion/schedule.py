"""How things change over time: the temperature of sampling, and the noise levels that training draws.

Sources: transformers 5.23 ``generation_diffusion_gemma.py`` (temperature); google-deepmind/gemma ``gemma/diffusion`` fine-tuning
adapter (noise levels, linear).
Shapes: B rows.
"""

import torch
from torch import Tensor

from diffusiongemma.diffusion.batch import BatchParams
from diffusiongemma.options.sampling import COLDEST, Schedule

__all__ = ["noise_levels", "temperature"]


def temperature(step_B: Tensor, params: BatchParams) -> Tensor:
    """Temperature ``[B]`` float32 with ``step_B`` steps done: from ``t_max`` down towards ``t_min``, at least ``COLDEST``."""
    remaining_B = (params.num_diffusion_steps_B - step_B) / params.num_diffusion_steps_B

    def fraction(schedule: Schedule) -> Tensor:
        if schedule == "linear":
            return remaining_B
        # In float64: the last bit of a float32 cosine depends on how many rows there are.
        return ((1 - torch.cos(torch.pi * remaining_B.double())) / 2).float()

    return (params.t_min_B + params.t_span_B * params.schedule.pick(fraction)).clamp(min=COLDEST)


def noise_levels(count: int, generator: torch.Generator, least: float, high: float = 0.0) -> Tensor:
    """Draw the share of tokens to corrupt, an example each.

    Args:
        count: examples.
        generator: the step's random stream.
        least: the process's ``min_level``.
        high: share of the examples whose level is drawn from (0.5, 1) instead of (0, 1): a constraint problem is
            decided while most of the canvas is still noise.

    Returns:
        ``[count]`` float32 in ``[least, 1)``.
    """
    t = torch.rand(count, generator=generator)
    t = torch.where(torch.rand(count, generator=generator) < high, 0.5 + t / 2, t)
    return least + (1 - least) * t
