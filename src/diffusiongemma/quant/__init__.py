"""Weights whose codes stay packed: records, their values, and how a linear and a set of experts are applied to them."""

from diffusiongemma.quant.apply import Weight, experts, linear, mix_rows
from diffusiongemma.quant.packed import PackedWeight

__all__ = ["PackedWeight", "Weight", "experts", "linear", "mix_rows"]
