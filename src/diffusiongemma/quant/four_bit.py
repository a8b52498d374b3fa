"""INT4, NVFP4 and MXFP4: two weights a byte, the even column in the low nibble, and a scale for each group of columns.

Shapes: N rows, K columns, G groups of columns, E experts, S linears of equally many rows that were laid on top of each other.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from diffusiongemma.kernels.expand import can_expand, expand_pairs
from diffusiongemma.kernels.int8 import Int8Rows
from diffusiongemma.quant.codes import E2M1, e4m3, e8m0, pair_table, pairs, scale_groups, shift_groups
from diffusiongemma.quant.packed import PackedWeight

__all__ = ["Int4Weight", "Mxfp4Weight", "Nvfp4Weight"]

NVFP4_GROUP, MXFP4_GROUP = 16, 32
_SIGNED = tuple(float(code - 8) for code in range(16))
_UNSIGNED = tuple(float(code) for code in range(16))


@cache
def _decoded(kind: Literal["e4m3", "e8m0"]) -> Tensor:
    """What each byte stands for."""
    return {"e4m3": e4m3, "e8m0": e8m0}[kind](torch.arange(256, dtype=torch.uint8))


@dataclass(frozen=True, eq=False, kw_only=True)
class Nvfp4Weight(PackedWeight):
    """``e2m1(code) * e4m3(scale) * second``, or ``... / second``.

    Attributes:
        codes: uint8 ``[N, K / 2]``.
        scale: float8_e4m3fn ``[N, K / 16]``.
        second: float32 ``[N]``: one of a linear, repeated for each row, since gate and up rows have their own.
        divides: whether ``second`` divides (compressed-tensors) or multiplies (modelopt).
    """

    kind = "nvfp4"
    codes: Tensor
    scale: Tensor
    second: Tensor
    divides: bool

    def values(self, rows: slice | Tensor) -> Tensor:
        """See ``PackedWeight``."""
        if not self.divides:
            return self.operand(rows)
        # In compressed-tensors' own order, to the bit: it rounds twice.
        decoded, block, second = self._parts(rows)
        return scale_groups(decoded, block.div_(second), NVFP4_GROUP)

    def operand(self, rows: slice | Tensor) -> Tensor:
        """The product of code and block scale has at most six bits, so this rounds once."""
        decoded, block, second = self._parts(rows)
        scaled = scale_groups(decoded, block, NVFP4_GROUP)
        return scaled.div_(second) if self.divides else scaled.mul_(second)

    def int8_rows(self) -> Int8Rows:
        """See ``PackedWeight``; a row's largest value is what its largest block scale allows."""
        if not can_expand():
            return super().int8_rows()
        codes, scale = expand_pairs(self.codes, self.scale.view(torch.uint8), _decoded("e4m3"), None, "fp4")
        second = self.second.reciprocal() if self.divides else self.second
        return Int8Rows(codes, (scale * second)[:, None])

    def _parts(self, rows: slice | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decoded = pairs(self.codes[rows], pair_table(E2M1, self.codes.device))
        return decoded, e4m3(self.scale.view(torch.uint8)[rows]), self.second[rows, None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Mxfp4Weight(PackedWeight):
    """``e2m1(code) * 2 ** (scale - 127)``.

    Attributes:
        codes: uint8 ``[N, K / 2]``.
        scale: uint8 ``[N, K / 32]``, E8M0.
    """

    kind = "mxfp4"
    codes: Tensor
    scale: Tensor

    def values(self, rows: slice | Tensor) -> Tensor:
        """See ``PackedWeight``."""
        decoded = pairs(self.codes[rows], pair_table(E2M1, self.codes.device))
        return scale_groups(decoded, e8m0(self.scale[rows]), MXFP4_GROUP)

    def int8_rows(self) -> Int8Rows:
        """See ``PackedWeight``."""
        if not can_expand():
            return super().int8_rows()
        codes, scale = expand_pairs(self.codes, self.scale, _decoded("e8m0"), None, "fp4")
        return Int8Rows(codes, scale[:, None])


@dataclass(frozen=True, eq=False, kw_only=True)
class Int4Weight(PackedWeight):
    """``(code - zero) * scale``.

    Attributes:
        codes: uint8 ``[N, K / 2]`` of codes 0 to 15.
        scale: ``[N, G]``, floating point.
        width: columns of a group.
        zero: uint8 ``[N, G]``, 0 to 16; None: 8.
        order: int32 ``[S, K]``, the group of each column where they are not in order (GPTQ's act-order).
    """

    kind = "int4"
    codes: Tensor
    scale: Tensor
    width: int
    zero: Tensor | None = None
    order: Tensor | None = None

    def values(self, rows: slice | Tensor) -> Tensor:
        """See ``PackedWeight``."""
        decoded = pairs(self.codes[rows], pair_table(_SIGNED if self.zero is None else _UNSIGNED, self.codes.device))
        scale = self.scale[rows].float()
        zero = None if self.zero is None else self.zero[rows].float()
        width = self.width
        if self.order is not None:
            group = self._groups(rows)
            scale, zero, width = scale.gather(1, group), None if zero is None else zero.gather(1, group), 1
        if zero is not None:
            shift_groups(decoded, zero, width)
        return scale_groups(decoded, scale, width)

    def int8_rows(self) -> Int8Rows:
        """See ``PackedWeight``; a row's largest value is what its largest scale allows."""
        if self.order is not None or self.width % 2 or self.shape[1] % self.width or not can_expand():
            return super().int8_rows()
        zero = torch.full_like(self.scale, 8.0, dtype=torch.float32) if self.zero is None else self.zero.float()
        codes, scale = expand_pairs(self.codes, self.scale.float(), None, zero, "integer")
        return Int8Rows(codes, scale[:, None])

    def _groups(self, rows: slice | Tensor) -> Tensor:
        """The group of each column of each row, ``[rows, K]`` int64."""
        assert self.order is not None
        linears = torch.arange(self.shape[-2], device=self.codes.device) // (self.shape[-2] // self.order.shape[-2])
        return self.order[linears[rows]].long()
