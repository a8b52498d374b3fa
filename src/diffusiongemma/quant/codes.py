"""Codes and small scales to float32, quickly and to the bit.

Conversions of 8-bit floats run at 0.2 billion a second on a CPU, tables and shifted bits at 1 to 3 (docs/lab-log.md).
"""

from functools import cache

import torch
from torch import Tensor

__all__ = ["E2M1", "e4m3", "e8m0", "pair_table", "pairs", "scale_groups", "shift_groups"]

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Values of the 16 codes of FP4: sign, two bits of exponent, one of mantissa. Source: OCP Microscaling Formats 1.0, 5.3.3."""


def e4m3(codes: Tensor) -> Tensor:
    """FP8 E4M3 (float8_e4m3fn) to float32. NaN codes, which loading refuses, come out as 480.

    The bits are those of a float16 whose exponent is 8 too small.
    """
    wide = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000)
    return wide.view(torch.float16).float().mul_(256)


def e8m0(codes: Tensor) -> Tensor:
    """E8M0 (uint8 powers of two, ``2 ** (code - 127)``) to float32; 255 is NaN. Source: OCP Microscaling Formats 1.0, 5.4.1."""
    bits = codes.to(torch.int32)
    # The exponent of a float32 as it stands; only the smallest is subnormal, and 255 with no mantissa would be infinite.
    value = bits.bitwise_left_shift(23).view(torch.float32)
    value = torch.where(bits == 0, 2.0**-127, value)
    return torch.where(bits == 255, torch.nan, value)


def pairs(codes: Tensor, table: Tensor) -> Tensor:
    """Two values a byte: ``[..., K / 2]`` uint8 to ``[..., K]`` float32.

    Args:
        codes: the low nibble is the even column.
        table: of ``pair_table``.
    """
    result = torch.index_select(table, 0, codes.reshape(-1).int())
    return result.view(torch.float32).view(*codes.shape[:-1], 2 * codes.shape[-1])


def pair_table(values: tuple[float, ...], device: torch.device) -> Tensor:
    """For each byte the values of its low and its high nibble, as one int64."""
    return _pair_table(values, str(device))


@cache
def _pair_table(values: tuple[float, ...], device: str) -> Tensor:
    byte, value = torch.arange(256), torch.tensor(values)
    table = torch.stack((value[byte & 15], value[byte >> 4]), dim=-1)
    return table.view(torch.int64).squeeze(1).to(device)


def scale_groups(values_RK: Tensor, scale_RG: Tensor, width: int) -> Tensor:
    """Multiply each group of ``width`` columns by its scale, in place; the last group may be short."""
    grouped, scale = _groups(values_RK, scale_RG, width)
    grouped.mul_(scale)
    return values_RK


def shift_groups(values_RK: Tensor, zero_RG: Tensor, width: int) -> Tensor:
    """Subtract its zero point from each group of ``width`` columns, in place; the last group may be short."""
    grouped, zero = _groups(values_RK, zero_RG, width)
    grouped.sub_(zero)
    return values_RK


def _groups(values_RK: Tensor, per_RG: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Views of both that broadcast against each other."""
    columns = values_RK.shape[1]
    if per_RG.shape[1] == 1:
        return values_RK, per_RG
    if columns % width:
        return values_RK, per_RG.repeat_interleave(width, 1)[:, :columns]
    return values_RK.view(len(values_RK), -1, width), per_RG.unsqueeze(-1)
