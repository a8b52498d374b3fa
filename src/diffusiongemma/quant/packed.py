"""The record of a quantised matrix, or of a stack of them: codes and scales as they are stored, and what they stand for.

Shapes: N rows (outputs), K columns (inputs), E experts, T tokens.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from diffusiongemma import kernels
from diffusiongemma.kernels.int8 import Int8Rows, quantize_rows
from diffusiongemma.quant.weight import Weight

__all__ = ["PackedWeight", "StoredWeight"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedWeight(Weight):
    """A matrix ``[N, K]``, or experts stacked as ``[E, N, K]``, whose codes stay packed.

    A format is a subclass that adds tensors as fields (those of a stack all begin with E; None where the format leaves one out)
    and ``values``. Codes may be a view of a mapped file: nothing here writes to them.

    Attributes:
        shape: of the values.
    """

    shape: tuple[int, ...]

    @property
    @abstractmethod
    def kind(self) -> str:
        """Name of the format, as reports show it; where all records of a class have the same, a class attribute."""

    @abstractmethod
    def values(self, rows: slice | Tensor) -> Tensor:
        """Float32 ``[rows, K]`` of a matrix ``[N, K]``: exactly the published values.

        Args:
            rows: a slice with both ends, or ``[R]`` int64 row numbers.
        """

    def operand(self, rows: slice | Tensor) -> Tensor:
        """``values`` as products use them: a format may round less often than its writer's own code."""
        return self.values(rows)

    def dequantize(self, start: int = 0, end: int | None = None) -> Tensor:
        """Rows ``start .. end`` of a matrix as float32 ``[end - start, K]``; exactly the published values."""
        return self.values(slice(start, self.shape[-2] if end is None else end))

    def take(self, ids: Tensor) -> Tensor:
        """Rows by number: ``[...]`` int64 to float32 ``[..., K]``."""
        return self.values(ids.flatten()).view(*ids.shape, self.shape[-1])

    @property
    def table(self) -> kernels.Table:
        """See ``Weight``."""
        return self

    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See ``Weight``."""
        wide = x.to(kernels.product_dtype(x.dtype, x.device))
        out_TN = self.multiply(wide.reshape(-1, self.shape[1]))
        if bias is not None:
            out_TN += bias
        return out_TN.view(*x.shape[:-1], self.shape[0]).to(x.dtype)

    def multiply(self, x_TK: Tensor) -> Tensor:
        """``x @ W.T`` in x's dtype: ``[T, K]`` to ``[T, N]``, a tile of rows at a time."""
        rows, columns = self.shape
        out_TN = x_TK.new_empty(len(x_TK), rows)
        step = kernels.tile_rows(columns)
        for start in range(0, rows, step):
            end = min(start + step, rows)
            out_TN[:, start:end] = self.product(x_TK, start, end)
        return out_TN

    def expanded(self, dtype: torch.dtype) -> Tensor:
        """All values in a dtype, a tile at a time: ``[N, K]`` or ``[E, N, K]``."""
        if len(self.shape) == 3:
            return torch.stack([self.expert(i).expanded(dtype) for i in range(self.shape[0])])
        rows, columns = self.shape
        out = torch.empty(self.shape, dtype=dtype, device=self.device)
        step = kernels.tile_rows(columns)
        for start in range(0, rows, step):
            out[start : start + step] = self.dequantize(start, min(start + step, rows))
        return out

    def product(self, x_TK: Tensor, start: int, end: int) -> Tensor:
        """``x @ W[start:end].T`` in x's dtype: ``[T, K]`` to ``[T, end - start]``; a format may know a shorter way."""
        return x_TK @ self.operand(slice(start, end)).to(x_TK.dtype).T

    def int8_rows(self) -> Int8Rows:
        """A matrix rounded to int8, each row by its largest value; a format may know a shorter way than by its values."""
        rows, columns = self.shape
        codes, scale = torch.empty(rows, columns, dtype=torch.int8), torch.empty(rows, 1)
        step = kernels.tile_rows(columns)
        for start in range(0, rows, step):
            end = min(start + step, rows)
            codes[start:end], scale[start:end] = quantize_rows(self.dequantize(start, end))
        return Int8Rows(codes, scale)

    def reader(self, hidden_ND: Tensor) -> kernels.TableReader:
        """The products of the canvas head, where the matrix is its table."""
        return kernels.plain_reader(self, hidden_ND)

    def tensors(self) -> dict[str, Tensor]:
        """Codes, scales and whatever else is stored, by field name."""
        result = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in result.items() if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Resident bytes of codes and scales."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return next(iter(self.tensors().values())).device

    def to(self, device: torch.device | str) -> Self:
        """The same record on another device."""
        return self._each(lambda tensor: tensor.to(device), self.shape)

    def expert(self, index: int) -> "PackedWeight":
        """See ``Weight``."""
        return self._each(lambda tensor: tensor[index], self.shape[1:])

    def _each(self, change: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Self:
        changed = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, shape=shape, **changed)


StoredWeight = Tensor | PackedWeight
"""A weight as a checkpoint has it."""
