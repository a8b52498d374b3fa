"""FP8 and INT8: a byte a weight, and a scale for each row or for each group of columns of a row.

Shapes: N rows, K columns, G groups of columns, E experts.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusiongemma.kernels.int8 import Int8Rows
from diffusiongemma.quant.codes import e4m3, scale_groups, shift_groups
from diffusiongemma.quant.packed import PackedWeight

__all__ = ["EightBitWeight", "Fp8Weight", "Int8Weight"]


@dataclass(frozen=True, eq=False, kw_only=True)
class EightBitWeight(PackedWeight):
    """``code * scale``.

    Attributes:
        codes: ``[N, K]``, one byte each.
        scale: ``[N, G]``, floating point. A scale of the whole matrix is repeated for each row, one of a square block for each
            row of the block.
        width: columns of a group (K where G is 1); the last group may be short.
    """

    codes: Tensor
    scale: Tensor
    width: int

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Float32 values of codes (given as bytes), before the scale."""

    def values(self, rows: slice | Tensor) -> Tensor:
        """See ``PackedWeight``."""
        return scale_groups(self.decode(self.codes.view(torch.uint8)[rows]), self.scale[rows].float(), self.width)

    def product(self, x_TK: Tensor, start: int, end: int) -> Tensor:
        """In bfloat16 a scale of the whole row is taken after the product: the codes are exact in it, scaled weights are not."""
        if self.scale.shape[-1] > 1 or x_TK.dtype != torch.bfloat16:
            return super().product(x_TK, start, end)
        unscaled = x_TK @ self.decode(self.codes.view(torch.uint8)[start:end]).to(x_TK.dtype).T
        return unscaled.mul_(self.scale[start:end, 0].to(x_TK.dtype))


@dataclass(frozen=True, eq=False, kw_only=True)
class Fp8Weight(EightBitWeight):
    """Codes are float8_e4m3fn."""

    kind = "fp8"

    def decode(self, codes: Tensor) -> Tensor:
        """See ``EightBitWeight``."""
        return e4m3(codes)


@dataclass(frozen=True, eq=False, kw_only=True)
class Int8Weight(EightBitWeight):
    """Codes are int8: ``(code - zero) * scale``.

    Attributes:
        zero: int8 ``[N, G]``; None: 0.
    """

    kind = "int8"
    zero: Tensor | None = None

    def decode(self, codes: Tensor) -> Tensor:
        """See ``EightBitWeight``."""
        return codes.view(torch.int8).float()

    def values(self, rows: slice | Tensor) -> Tensor:
        """See ``PackedWeight``."""
        if self.zero is None:
            return super().values(rows)
        shifted = shift_groups(self.decode(self.codes[rows]), self.zero[rows].float(), self.width)
        return scale_groups(shifted, self.scale[rows].float(), self.width)

    def product(self, x_TK: Tensor, start: int, end: int) -> Tensor:
        """See ``EightBitWeight``."""
        return super().product(x_TK, start, end) if self.zero is None else PackedWeight.product(self, x_TK, start, end)

    def int8_rows(self) -> Int8Rows:
        """See ``PackedWeight``: the stored codes, where they have a scale a row."""
        if self.zero is not None or self.scale.shape[-1] > 1:
            return super().int8_rows()
        return Int8Rows(self.codes, self.scale.float())
