"""How noise changes over time: the levels that training draws.

Source: google-deepmind/gemma ``gemma/diffusion`` fine-tuning adapter (linear schedule).
"""

import torch
from torch import Tensor

__all__ = ["noise_levels"]


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
