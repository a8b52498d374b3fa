"""Weights in int8 with a scale a row, and products in int8: x is rounded to 8 bits a row too. Fast on a CPU, not exact.

Shapes: N rows (outputs), K columns (inputs), E experts, T tokens, V vocabulary, D hidden.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from diffusiongemma.errors import OptionError
from diffusiongemma.kernels import TableReader
from diffusiongemma.kernels.int8 import PreparedInt8, int8_mix, int8_product, prepare_int8, quantize_rows
from diffusiongemma.quant.eight_bit import Int8Weight
from diffusiongemma.quant.packed import PackedWeight

__all__ = ["FastInt8Matrix", "FastInt8Stack", "FastInt8Table", "fast_int8"]

KIND = "int8 products"
STEP = 4096
"""Rows that are rounded at once, so that no float copy of a whole matrix is made."""


class _OnCPU(PackedWeight):
    """What the records here have in common."""

    kind = KIND
    exact = False

    def to(self, device: torch.device | str) -> Self:
        """The record itself: its layout is the CPU's.

        Raises:
            OptionError: another device.
        """
        if torch.device(device).type != "cpu":
            raise OptionError(f"quantize='int8' computes on a CPU, not on {device}; leave it out there")
        return self


@dataclass(frozen=True, eq=False, kw_only=True)
class FastInt8Matrix(_OnCPU):
    """A matrix ``[N, K]``.

    Attributes:
        prepared: codes and scales as the int8 product of this machine reads them.
    """

    prepared: PreparedInt8

    def values(self, rows: slice | Tensor) -> Tensor:
        """See ``PackedWeight``."""
        return self.prepared.codes()[rows].float() * self.prepared.scale_N[rows, None]

    def apply(self, x_TK: Tensor) -> Tensor:
        """``x @ W.T``."""
        return int8_product(x_TK, self.prepared).to(x_TK.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """See ``PackedWeight``."""
        return {"codes": self.prepared.matrix, "scale": self.prepared.scale_N}


@dataclass(frozen=True, eq=False, kw_only=True)
class FastInt8Stack(_OnCPU):
    """Experts ``[E, N, K]``, each a matrix of its own.

    Attributes:
        matrices: of the experts, in order.
    """

    matrices: tuple[FastInt8Matrix, ...]

    def values(self, rows: slice | Tensor) -> Tensor:
        """Of a matrix only: ask an expert."""
        raise AssertionError("a stack has no rows; ask one of its experts")

    def expert(self, index: int) -> FastInt8Matrix:  # type: ignore[override]
        """One expert's matrix."""
        return self.matrices[index]

    def tensors(self) -> dict[str, Tensor]:
        """See ``PackedWeight``."""
        return {f"{i}.{name}": tensor for i, one in enumerate(self.matrices) for name, tensor in one.tensors().items()}


@dataclass(frozen=True, eq=False, kw_only=True)
class FastInt8Table(_OnCPU):
    """The embedding table ``[V, D]``, which is read by rows, by tiles and as a mixture.

    Attributes:
        codes: ``[V, D]`` int8.
        scale: ``[V, 1]`` float32.
    """

    codes: Tensor
    scale: Tensor

    def values(self, rows: slice | Tensor) -> Tensor:
        """See ``PackedWeight``."""
        return self.codes[rows].float() * self.scale[rows]

    def product(self, x_TK: Tensor, start: int, end: int) -> Tensor:
        """See ``PackedWeight``."""
        return int8_product(x_TK, self._prepared(start, end)).to(x_TK.dtype)

    def reader(self, hidden_ND: Tensor) -> TableReader:
        """The products of the canvas head, in int8."""
        return _Reader(self, hidden_ND)

    def _prepared(self, start: int, end: int) -> PreparedInt8:
        return prepare_int8(self.codes[start:end], self.scale[start:end, 0])


class _Reader:
    """See ``kernels.TableReader``."""

    def __init__(self, table: FastInt8Table, hidden_ND: Tensor) -> None:
        self._table, self._hidden_ND = table, hidden_ND

    def scores(self, start: int, end: int) -> Tensor:
        """The logits of a tile before the cap."""
        return self._table.product(self._hidden_ND, start, end)

    def mix(self, weight_NT: Tensor, start: int, end: int) -> Tensor:
        """The weighted sum of a tile's rows."""
        table = self._table
        return int8_mix(weight_NT, table.codes[start:end], table.scale[start:end, 0]).to(self._hidden_ND.dtype)


def fast_int8(weight: Tensor | PackedWeight, table: bool = False) -> PackedWeight:
    """A weight rounded to int8, each row by its own largest value.

    Args:
        weight: ``[N, K]`` or ``[E, N, K]``, plain or packed.
        table: whether it is the embedding table.
    """
    shape = tuple(weight.shape)
    if len(shape) == 3:
        experts = (weight[i] if isinstance(weight, Tensor) else weight.expert(i) for i in range(shape[0]))
        return FastInt8Stack(shape=shape, matrices=tuple(_matrix(expert) for expert in experts))
    if not table:
        return _matrix(weight)
    codes, scale = _rounded(weight)
    return FastInt8Table(shape=shape, codes=codes, scale=scale)


def _matrix(weight: Tensor | PackedWeight) -> FastInt8Matrix:
    codes, scale = _rounded(weight)
    return FastInt8Matrix(shape=tuple(weight.shape), prepared=prepare_int8(codes, scale[:, 0]))


def _rounded(weight: Tensor | PackedWeight) -> tuple[Tensor, Tensor]:
    """Codes ``[N, K]`` int8 and scales ``[N, 1]``; an INT8 file's own, where it has a scale a row."""
    rows, columns = weight.shape
    if isinstance(weight, Int8Weight) and weight.zero is None and weight.scale.shape[-1] == 1:
        return weight.codes, weight.scale.float()
    codes, scale = torch.empty(rows, columns, dtype=torch.int8), torch.empty(rows, 1)
    for start in range(0, rows, STEP):
        end = min(start + STEP, rows)
        values = weight[start:end] if isinstance(weight, Tensor) else weight.dequantize(start, end)
        codes[start:end], scale[start:end] = quantize_rows(values)
    return codes, scale
