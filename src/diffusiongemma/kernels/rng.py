"""Randomness without state: every number is a function of (seed, canvas, step, position, token) and of nothing else.

So a row draws the same numbers alone, in any batch, at any batch size, on any device. The mixer is the finaliser of
SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), applied once for each part
of the key. Torch has no unsigned 64-bit arithmetic: int64 wraps the same way, and shifts are masked to be logical.
Shapes: B rows, L canvas.
"""

from enum import IntEnum

import torch
from torch import Tensor

__all__ = ["RngPurpose", "gumbel_at", "mix", "position_keys", "random_ids"]

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as int64
_FIRST = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_SECOND = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


class RngPurpose(IntEnum):
    """What a number is used for; part of its key, so that no two uses share numbers."""

    INITIAL = 1
    RENOISE = 2
    DRAW = 3


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def position_keys(seed_B: Tensor, canvas_B: Tensor, step_B: Tensor, stream: RngPurpose, length: int) -> Tensor:
    """A key for each position of each row's canvas.

    Args:
        seed_B: ``[B]`` int64, each row's seed.
        canvas_B: ``[B]`` int64, index of the canvas within its generation.
        step_B: ``[B]`` int64, steps done on this canvas.
        stream: the use.
        length: positions.

    Returns:
        ``[B, L]`` int64.
    """
    key = mix(seed_B + _GOLDEN)
    for part in (canvas_B, step_B, torch.full_like(step_B, int(stream))):
        key = mix(key + (part + 1) * _GOLDEN)
    position = torch.arange(1, length + 1, device=seed_B.device)
    return mix(key[:, None] + position * _GOLDEN)


def random_ids(keys_BL: Tensor, vocab_size: int) -> Tensor:
    """Uniform token ids in ``[0, vocab_size)`` int64, one a key (bias below vocab_size / 2**53)."""
    return ((mix(keys_BL) >> 11) & ((1 << 53) - 1)) % vocab_size


def gumbel_at(keys: Tensor, index: Tensor) -> Tensor:
    """Standard Gumbel noise, one number for each key and index.

    Args:
        keys: int64, of any shape that goes with index's.
        index: int64, what is drawn for: any numbers but 0, each of a use of its own (``reference.draw``).

    Returns:
        float32 of their common shape, from 24-bit uniforms: between -2.9 and 16.7.
    """
    bits = (mix(keys + index * _GOLDEN) >> 40) & ((1 << 24) - 1)
    uniform = (bits.to(torch.float32) + 0.5) * 2.0**-24
    # The largest uniform rounds to 1 - 2**-25 in exact arithmetic but to 1 in float32; keep it inside.
    return -torch.log(-torch.log(uniform.clamp_(max=1 - 2.0**-24)))
