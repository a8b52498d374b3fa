"""Ops of the model. One dispatch an op: it names the implementation and why it was chosen.

``reference`` holds the plain implementations; a faster one is proved against it and then chosen here.
"""

from diffusiongemma.kernels.dispatch import Choice, experts, experts_choice
from diffusiongemma.kernels.reference import attention, rms_norm, rotate, soft_cap

__all__ = ["Choice", "attention", "experts", "experts_choice", "rms_norm", "rotate", "soft_cap"]
