"""A table of rows as the canvas head and the embedding read it: a plain tensor, or a record that makes rows when asked."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["PackedRows", "Table", "TableReader", "plain_reader", "table_reader", "table_rows", "table_tile"]


class TableReader(Protocol):
    """The products of the canvas head with a table, tile by tile; those of one tile follow each other."""

    def scores(self, start: int, end: int) -> Tensor:
        """``hidden @ table[start:end].T``: ``[N, T]``."""

    def mix(self, weight_NT: Tensor, start: int, end: int) -> Tensor:
        """``weight @ table[start:end]`` for float32 weights of some of the positions: ``[R, T]`` to ``[R, D]``."""


class PackedRows(Protocol):
    """A table ``[V, D]`` whose rows are made when they are read (``quant.PackedWeight``)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(V, D)``."""

    def dequantize(self, start: int = 0, end: int | None = None) -> Tensor:
        """Rows ``start .. end`` as float32."""

    def take(self, ids: Tensor) -> Tensor:
        """Rows by number: ``[...] -> [..., D]`` float32."""

    def reader(self, hidden_ND: Tensor) -> TableReader:
        """What multiplies hidden states of the compute dtype with it."""


Table = Tensor | PackedRows


def table_rows(table: Table, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows by number in a dtype: ``[...]`` int64 to ``[..., D]``."""
    return (F.embedding(ids, table) if isinstance(table, Tensor) else table.take(ids)).to(dtype)


def table_tile(table: Table, start: int, end: int, dtype: torch.dtype) -> Tensor:
    """Rows ``start .. end`` (at most V) in a dtype."""
    end = min(end, table.shape[0])
    return (table[start:end] if isinstance(table, Tensor) else table.dequantize(start, end)).to(dtype)


class _PlainReader:
    """Makes each tile once, in the hidden states' dtype, and multiplies in it."""

    def __init__(self, table: Table, hidden_ND: Tensor) -> None:
        self._table, self._hidden_ND = table, hidden_ND
        self._place: tuple[int, int] | None = None
        self._tile_TD = torch.empty(0)

    def scores(self, start: int, end: int) -> Tensor:
        """See ``TableReader``."""
        return self._hidden_ND @ self._tile(start, end).T

    def mix(self, weight_NT: Tensor, start: int, end: int) -> Tensor:
        """See ``TableReader``."""
        tile_TD = self._tile(start, end)
        return weight_NT.to(tile_TD.dtype) @ tile_TD

    def _tile(self, start: int, end: int) -> Tensor:
        if self._place != (start, end):
            self._place, self._tile_TD = (start, end), table_tile(self._table, start, end, self._hidden_ND.dtype)
        return self._tile_TD


def plain_reader(table: Table, hidden_ND: Tensor) -> TableReader:
    """A reader that makes float tiles."""
    return _PlainReader(table, hidden_ND)


def table_reader(table: Table, hidden_ND: Tensor) -> TableReader:
    """The reader of a table for hidden states ``[N, D]`` of the compute dtype."""
    return plain_reader(table, hidden_ND) if isinstance(table, Tensor) else table.reader(hidden_ND)
