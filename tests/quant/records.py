"""A format of the tests' own, as plain as can be: what every packed weight must do is tried with it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusiongemma.quant import PackedWeight


@dataclass(frozen=True, eq=False, kw_only=True)
class Bytes(PackedWeight):
    """int8 codes with a float32 scale a row."""

    kind = "bytes"
    codes: Tensor
    scale: Tensor

    def values(self, rows: slice | Tensor) -> Tensor:
        return self.codes[rows].float() * self.scale[rows, None]


def packed(weight: Tensor) -> Bytes:
    """The record of a weight, rounded to it."""
    scale = weight.abs().amax(-1) / 127
    return Bytes(shape=tuple(weight.shape), codes=(weight / scale[..., None]).round().to(torch.int8), scale=scale)


def values(record: PackedWeight) -> Tensor:
    """All values of a matrix or of a stack."""
    if len(record.shape) == 2:
        return record.dequantize()
    return torch.stack([record.expert(i).dequantize() for i in range(record.shape[0])])
