"""Ops of the model. One dispatch an op: it names the implementation and why it was chosen.

``reference`` holds the plain implementations; a faster one is proved against it and then chosen here.
"""

from diffusiongemma.kernels.dispatch import (
    Choice,
    Kernels,
    canvas_head,
    canvas_head_choice,
    experts,
    experts_choice,
    linear,
    rms_norm,
)
from diffusiongemma.kernels.draws import Stream, position_keys, random_ids
from diffusiongemma.kernels.reference import STEADY_ROWS, Statistics, attention, draw, entropy, rotate, soft_cap, statistics

__all__ = [
    "STEADY_ROWS",
    "Choice",
    "Kernels",
    "Statistics",
    "Stream",
    "attention",
    "canvas_head",
    "canvas_head_choice",
    "draw",
    "entropy",
    "experts",
    "experts_choice",
    "linear",
    "position_keys",
    "random_ids",
    "rms_norm",
    "rotate",
    "soft_cap",
    "statistics",
]
