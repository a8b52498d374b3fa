"""Weights whose codes stay packed: records, their values, and how a linear and a set of experts are applied to them."""

from diffusiongemma.quant.apply import Weight, experts, linear, mix_rows
from diffusiongemma.quant.eight_bit import Fp8Weight, Int8Weight
from diffusiongemma.quant.fast_int8 import fast_int8
from diffusiongemma.quant.four_bit import Int4Weight, Mxfp4Weight, Nvfp4Weight
from diffusiongemma.quant.packed import PackedWeight

__all__ = [
    "Fp8Weight",
    "Int4Weight",
    "Int8Weight",
    "Mxfp4Weight",
    "Nvfp4Weight",
    "PackedWeight",
    "Weight",
    "experts",
    "fast_int8",
    "linear",
    "mix_rows",
]
