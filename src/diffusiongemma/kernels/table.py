"""A table of rows as the canvas head and the embedding read it: a plain tensor, or a record that makes rows when asked."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["PackedRows", "Table", "table_rows", "table_tile"]


class PackedRows(Protocol):
    """A table ``[V, D]`` whose rows are made when they are read (``quant.PackedWeight``)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(V, D)``."""

    def dequantize(self, start: int = 0, end: int | None = None) -> Tensor:
        """Rows ``start .. end`` as float32."""

    def take(self, ids: Tensor) -> Tensor:
        """Rows by number: ``[...] -> [..., D]`` float32."""


Table = Tensor | PackedRows


def table_rows(table: Table, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows by number in a dtype: ``[...]`` int64 to ``[..., D]``."""
    return (F.embedding(ids, table) if isinstance(table, Tensor) else table.take(ids)).to(dtype)


def table_tile(table: Table, start: int, end: int, dtype: torch.dtype) -> Tensor:
    """Rows ``start .. end`` (at most V) in a dtype."""
    end = min(end, table.shape[0])
    return (table[start:end] if isinstance(table, Tensor) else table.dequantize(start, end)).to(dtype)
