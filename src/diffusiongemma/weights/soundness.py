"""Values that no writer means: scales that are no number, infinite or negative, codes that are no number."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusiongemma.errors import CheckpointError
from diffusiongemma.quant import Fp8Weight, Int4Weight, Mxfp4Weight, Nvfp4Weight, PackedWeight

__all__ = ["refuse_unsound"]


def refuse_unsound(record: PackedWeight, name_of: Callable[[str, int, float], str], *, signed: bool) -> None:
    """Look through a record's scales, and FP8's codes.

    Args:
        record: of a matrix or a stack.
        name_of: the checkpoint's name of a field (field, expert, how far down its rows from 0 to 1), for the message.
        signed: whether scales may be negative.

    Raises:
        CheckpointError: with the tensor's name and the value.
    """
    for name, tensor in record.tensors().items():
        bad = _unsound(record, name, tensor, signed)
        if bad is None:
            continue
        at = bad.nonzero()[0].tolist()
        expert, row = (at[0], at[1]) if len(record.shape) == 3 else (0, at[0])
        value = tensor[tuple(at)].float().item()
        if isinstance(record, Mxfp4Weight):
            value = float("nan")
        allowed = "a number" if name == "codes" else "a finite number" if signed else "a finite number, not negative"
        if name == "order":
            allowed = f"a group from 0 to {record.tensors()['scale'].shape[-1] - 1}"
        elif name == "second" and isinstance(record, Nvfp4Weight) and record.divides:
            allowed = "a finite number above 0"
        raise CheckpointError(
            f"{name_of(name, expert, row / bad.shape[-2 if name in ('codes', 'scale', 'order') else -1])} holds {value:g} at "
            f"{at}; allowed: {allowed}. The checkpoint is damaged"
        )


def _unsound(record: PackedWeight, name: str, tensor: Tensor, signed: bool) -> Tensor | None:
    """Where a tensor's values cannot be; None: nowhere. Extremes are looked at first: they need no memory."""
    if name == "codes" and isinstance(record, Fp8Weight):
        result = tensor.view(torch.uint8)
        if int(result.view(torch.int8).max()) < 127 and int(result.max()) < 255:
            return None
        return result & 127 == 127
    if name == "order" and isinstance(record, Int4Weight):
        count = record.scale.shape[-1]
        return _or_none((tensor < 0) | (tensor >= count))
    if name == "scale" and isinstance(record, Mxfp4Weight):
        return _or_none(tensor == 255)
    if name == "scale" and isinstance(record, Nvfp4Weight):
        result = tensor.view(torch.uint8)
        return None if int(result.max()) < 127 else result > 126
    if name not in ("scale", "second"):
        return None
    low, high = tensor.float().aminmax()
    above = name == "second" and isinstance(record, Nvfp4Weight) and record.divides
    if high < torch.inf and (low > 0 if above else low > -torch.inf if signed else low >= 0):
        return None
    wrong = ~torch.isfinite(tensor)
    return wrong if signed else wrong | (tensor <= 0 if above else tensor < 0)


def _or_none(bad: Tensor) -> Tensor | None:
    return bad if bool(bad.any()) else None
