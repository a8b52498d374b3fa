"""Float matrices to the codes and scales of published formats; scales are searched for the least squared error.

A scale from the largest value of a row (or group) wastes codes on one outlier: somewhat smaller ones clip it and are often
nearer to the rest. Each candidate is tried, as it would be stored, and the best of a row or group kept.
Shapes: N rows, K columns, G groups of columns, W columns of a group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffusiongemma.quant.codes import E2M1, e4m3

__all__ = ["Rounded", "round_fp8", "round_int4", "round_int8", "round_nvfp4"]

FACTORS = {
    "int4": (7.5 / 7, 7.5 / 8, *(1 - step / 40 for step in range(17))),
    "nvfp4": tuple(1 - step / 40 for step in range(17)),
    "int8": tuple(1 - step / 200 for step in range(-1, 16)),
    "fp8": tuple(2 ** (step / 16) for step in range(16)),
}
"""Factors of the scale that gives the largest value the largest code. Few bits gain by clipping; in FP8, whose precision is the
same in every octave, only where the values fall within an octave can be chosen."""
E4M3_LARGEST, E2M1_LARGEST = 448.0, 6.0
INT4_GROUP, NVFP4_GROUP = 32, 16
_MIDDLES = tuple((a + b) / 2 for a, b in pairwise(E2M1[:8]))


@dataclass(frozen=True)
class Rounded:
    """What a format stores of a matrix, and what it costs.

    Attributes:
        tensors: suffix -> tensor, as the published files have them.
        error: sum of squared differences from the matrix.
        absmax_error: the same with scales from the largest values alone.
        norm: sum of squares of the matrix.
    """

    tensors: dict[str, Tensor]
    error: float
    absmax_error: float
    norm: float


@dataclass(frozen=True)
class _Found:
    scale: Tensor
    codes: Tensor
    error: Tensor
    first_error: Tensor


def round_fp8(weight: Tensor, search: bool = True) -> Rounded:
    """FP8 E4M3 with a bfloat16 scale a row (compressed-tensors ``float-quantized``, strategy channel).

    Args:
        weight: ``[N, K]`` float.
        search: whether to try ``FACTORS``; False: the largest value decides.
    """

    def codes(scaled: Tensor) -> tuple[Tensor, Tensor]:
        rounded = scaled.clamp(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn)
        return rounded, e4m3(rounded.view(torch.uint8))

    rows = weight.float()
    result = _search(rows[:, None], E4M3_LARGEST, torch.bfloat16, codes, _factors("fp8", search))
    return _rounded(rows, result, {"weight": result.codes[:, 0], "weight_scale": result.scale[:, 0].to(torch.bfloat16)})


def round_int8(weight: Tensor, search: bool = True) -> Rounded:
    """INT8 with a bfloat16 scale a row (compressed-tensors ``int-quantized``); see ``round_fp8``."""
    rows = weight.float()
    result = _search(rows[:, None], 127.0, torch.bfloat16, _integers(-127, 127), _factors("int8", search))
    tensors = {"weight": result.codes[:, 0].to(torch.int8), "weight_scale": result.scale[:, 0].to(torch.bfloat16)}
    return _rounded(rows, result, tensors)


def round_int4(weight: Tensor, search: bool = True) -> Rounded:
    """Symmetric INT4 in groups of 32 with bfloat16 scales (compressed-tensors ``pack-quantized``); see ``round_fp8``."""
    rows = weight.float()
    grouped = rows.view(len(rows), -1, INT4_GROUP)
    # Codes are -8 to 7: 7.5 is what compressed-tensors divides the largest value by.
    result = _search(grouped, 7.5, torch.bfloat16, _integers(-8, 7), _factors("int4", search))
    codes = (result.codes.view_as(rows) + 8).to(torch.uint8)
    tensors = {
        "weight_packed": (codes[:, ::2] | codes[:, 1::2] << 4).contiguous().view(torch.int32),
        "weight_scale": result.scale[..., 0].to(torch.bfloat16),
        "weight_shape": torch.tensor(weight.shape),
    }
    return _rounded(rows, result, tensors)


def round_nvfp4(weight: Tensor, search: bool = True) -> Rounded:
    """NVFP4: E2M1 in groups of 16, an E4M3 scale each, one float32 that divides (compressed-tensors); see ``round_fp8``."""
    rows = weight.float()
    largest = rows.abs().amax()
    second = E4M3_LARGEST * E2M1_LARGEST / torch.where(largest > 0, largest, 1.0)
    middles = torch.tensor(_MIDDLES)
    table = torch.tensor(E2M1)

    def codes(scaled: Tensor) -> tuple[Tensor, Tensor]:
        result = torch.bucketize(scaled.abs(), middles).to(torch.uint8) | (scaled < 0).to(torch.uint8) << 3
        return result, table[result.int()]

    result = _search(rows.view(len(rows), -1, NVFP4_GROUP), E2M1_LARGEST, None, codes, _factors("nvfp4", search), float(second))
    flat = result.codes.view_as(rows)
    tensors = {
        "weight_packed": flat[:, ::2] | flat[:, 1::2] << 4,
        "weight_scale": (result.scale[..., 0] * second).to(torch.float8_e4m3fn),
        "weight_global_scale": second.reshape(1),
    }
    return _rounded(rows, result, tensors)


def _search(
    groups: Tensor,
    largest: float,
    dtype: torch.dtype | None,
    codes: Callable[[Tensor], tuple[Tensor, Tensor]],
    factors: Sequence[float],
    second: float = 1.0,
) -> _Found:
    """The scale with the least error of each group, and its codes.

    Args:
        groups: ``[N, G, W]`` float32.
        largest: code of the largest value.
        dtype: in which scales are stored; None: E4M3, times ``second``.
        codes: scaled values to codes and their values.
        factors: to try besides 1.
        second: see ``dtype``.
    """
    peak = groups.abs().amax(-1, keepdim=True)
    best: _Found | None = None
    for factor in (1.0, *(factor for factor in factors if factor != 1.0)):
        scale = _stored(peak * (factor / largest), dtype, second)
        result, values = codes(groups / torch.where(scale > 0, scale, 1.0))
        error = (values * scale - groups).square_().sum(-1, keepdim=True)
        if best is None:
            best = _Found(scale, result, error, error)
            continue
        better = error < best.error
        best = _Found(
            torch.where(better, scale, best.scale),
            # A float8 tensor cannot be chosen from, its bytes can.
            torch.where(better, result.view(torch.uint8), best.codes.view(torch.uint8)).view(result.dtype)
            if result.element_size() == 1
            else torch.where(better, result, best.codes),
            torch.where(better, error, best.error),
            best.first_error,
        )
    assert best is not None
    return best


def _factors(kind: str, search: bool) -> Sequence[float]:
    return FACTORS[kind] if search else (1.0,)


def _stored(scale: Tensor, dtype: torch.dtype | None, second: float) -> Tensor:
    """A scale as it will be read back; a group of zeros gets the smallest there is, so that no scale is 0."""
    if dtype is not None:
        return torch.where(scale > 0, scale, 1.0).to(dtype).float()
    smallest = 2.0**-9
    kept = (scale * second).clamp(smallest, E4M3_LARGEST).to(torch.float8_e4m3fn)
    return e4m3(kept.view(torch.uint8)) / second


def _integers(low: int, high: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def codes(scaled: Tensor) -> tuple[Tensor, Tensor]:
        result = scaled.round().clamp_(low, high)
        return result, result

    return codes


def _rounded(rows: Tensor, result: _Found, tensors: dict[str, Tensor]) -> Rounded:
    return Rounded(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        float(result.error.double().sum()),
        float(result.first_error.double().sum()),
        float(rows.double().square().sum()),
    )
