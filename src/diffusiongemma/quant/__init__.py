"""Weights as records that apply themselves, plain or with their codes packed: as a linear, a set of experts, a table."""

from diffusiongemma.quant.eight_bit import Fp8Weight, Int8Weight
from diffusiongemma.quant.fast_int8 import fast_int8
from diffusiongemma.quant.four_bit import Int4Weight, Mxfp4Weight, Nvfp4Weight
from diffusiongemma.quant.packed import PackedWeight, StoredWeight
from diffusiongemma.quant.weight import PlainWeight, Routing, Weight

__all__ = [
    "Fp8Weight",
    "Int4Weight",
    "Int8Weight",
    "Mxfp4Weight",
    "Nvfp4Weight",
    "PackedWeight",
    "PlainWeight",
    "Routing",
    "StoredWeight",
    "Weight",
    "fast_int8",
]
