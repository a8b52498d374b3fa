"""The forward process: uniform-state corruption of clean tokens.

Source: google-deepmind/gemma ``gemma/diffusion`` fine-tuning adapter (linear schedule, epsilon 1e-4).
"""

import torch
from torch import Tensor

__all__ = ["EPSILON", "corrupt", "noise_levels"]

EPSILON = 1e-4


def noise_levels(count: int, generator: torch.Generator, high: float = 0.0) -> Tensor:
    """Draw the share of tokens to corrupt, an example each.

    Args:
        count: examples.
        generator: the step's random stream.
        high: share of the examples whose level is drawn from (0.5, 1) instead of (0, 1): a constraint problem is
            decided while most of the canvas is still noise.

    Returns:
        ``[count]`` float32 in ``[EPSILON, 1)``.
    """
    t = torch.rand(count, generator=generator)
    t = torch.where(torch.rand(count, generator=generator) < high, 0.5 + t / 2, t)
    return EPSILON + (1 - EPSILON) * t


def corrupt(clean_BL: Tensor, t_B: Tensor, vocab_size: int, pinned_BL: Tensor, generator: torch.Generator) -> Tensor:
    """Replace each token by a uniform random id with probability ``t``.

    Args:
        clean_BL: ``[B, L]`` int64.
        t_B: ``[B]`` noise levels.
        vocab_size: random ids come from ``[0, vocab_size)``.
        pinned_BL: ``[B, L]`` bool, positions that stay clean (pinned).
        generator: the step's random stream.

    Returns:
        ``[B, L]`` int64.
    """
    hit = torch.rand(clean_BL.shape, generator=generator) < t_B[:, None]
    noise = torch.randint(0, vocab_size, clean_BL.shape, generator=generator)
    return torch.where(hit & ~pinned_BL, noise, clean_BL)
