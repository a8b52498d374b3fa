"""Weights in int8 with a scale a row, and products in int8: x is rounded to 8 bits a row too. Fast on a CPU, not exact.

Shapes: N rows (outputs), K columns (inputs), E experts, T tokens, V vocabulary, D hidden.
"""

from abc import abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Self

import torch
from torch import Tensor

from diffusiongemma import kernels
from diffusiongemma.errors import OptionError
from diffusiongemma.kernels import TableReader
from diffusiongemma.kernels.int8 import (
    Int8Rows,
    PreparedInt8,
    int8_backend,
    int8_mix,
    int8_product,
    largest_code,
    prepare_int8,
    product_of_rows,
    quantize_rows,
)
from diffusiongemma.quant.packed import PackedWeight
from diffusiongemma.quant.weight import Activation, Routing, Weight

__all__ = ["FastInt8", "FastInt8Matrix", "FastInt8Stack", "FastInt8Table", "FastPacked", "fast_int8", "stays_packed"]

KIND = "int8 products"
FEW_BITS = 6
"""Bits a weight below which int8 would take notably more memory than the stored codes."""
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


class FastInt8(_OnCPU):
    """A matrix, or a stack of them, that is multiplied in int8."""

    @property
    @abstractmethod
    def largest(self) -> int:
        """Largest code of the rows it multiplies."""

    @abstractmethod
    def expert(self, index: int) -> "FastInt8":
        """One matrix of a stack."""

    @abstractmethod
    def product_of_rows(self, rows: Int8Rows) -> Tensor:
        """``x @ W.T`` for rows that are rounded already: ``[T, K]`` to float32 ``[T, N]``."""

    def multiply(self, x_TK: Tensor) -> Tensor:
        """See ``PackedWeight``."""
        return self.product_of_rows(quantize_rows(x_TK, self.largest)).to(x_TK.dtype)

    def apply_experts(self, x_TD: Tensor, routing: Routing, down: Weight, act: Activation) -> Tensor:
        """See ``Weight``; each token is rounded once, however many experts it goes to."""
        if not isinstance(down, FastInt8):
            return super().apply_experts(x_TD, routing, down, act)
        order, source = kernels.by_expert(routing.index_TX)
        counts = torch.bincount(routing.index_TX.reshape(-1), minlength=self.shape[0]).tolist()
        gate, up = self._each_expert(quantize_rows(x_TD, self.largest).take(source), counts).chunk(2, dim=-1)
        out = down._each_expert(quantize_rows(act(gate) * up, down.largest), counts)
        out *= routing.weight_TX.reshape(-1)[order].unsqueeze(-1)
        return out.new_zeros(x_TD.shape).index_add_(0, source, out).to(x_TD.dtype)

    def _each_expert(self, rows: Int8Rows, counts: list[int]) -> Tensor:
        """Rows in the order of their experts, each times its expert's matrix: float32."""
        out = torch.empty(len(rows.codes), self.shape[1])
        start = 0
        for expert, count in enumerate(counts):
            if count:
                span = slice(start, start + count)
                out[span] = self.expert(expert).product_of_rows(rows.take(span))
                start += count
        return out


@dataclass(frozen=True, eq=False, kw_only=True)
class FastInt8Matrix(FastInt8):
    """A matrix ``[N, K]``.

    Attributes:
        prepared: codes and scales as the int8 product of this machine reads them.
    """

    prepared: PreparedInt8

    def values(self, rows: slice | Tensor) -> Tensor:
        """See ``PackedWeight``."""
        return self.prepared.codes()[rows].float() * self.prepared.scale_N[rows, None]

    @property
    def largest(self) -> int:
        """See ``FastInt8``."""
        return self.prepared.largest

    def expert(self, index: int) -> FastInt8:
        """Of a stack only."""
        raise AssertionError("a matrix has no experts")

    def product_of_rows(self, rows: Int8Rows) -> Tensor:
        """See ``FastInt8``."""
        return product_of_rows(rows, self.prepared)

    def tensors(self) -> dict[str, Tensor]:
        """See ``PackedWeight``."""
        return {"codes": self.prepared.matrix, "scale": self.prepared.scale_N}


@dataclass(frozen=True, eq=False, kw_only=True)
class FastInt8Stack(FastInt8):
    """Experts ``[E, N, K]``, each a matrix of its own.

    Attributes:
        matrices: of the experts, in order.
    """

    matrices: tuple[FastInt8Matrix, ...]

    def values(self, rows: slice | Tensor) -> Tensor:
        """Of a matrix only: ask an expert."""
        raise AssertionError("a stack has no rows; ask one of its experts")

    @property
    def largest(self) -> int:
        """See ``FastInt8``."""
        return self.matrices[0].largest

    def expert(self, index: int) -> FastInt8:
        """One expert's matrix."""
        return self.matrices[index]

    def product_of_rows(self, rows: Int8Rows) -> Tensor:
        """Of a matrix only: ask an expert."""
        raise AssertionError("a stack has no rows; ask one of its experts")

    def tensors(self) -> dict[str, Tensor]:
        """See ``PackedWeight``."""
        return {f"{i}.{name}": tensor for i, one in enumerate(self.matrices) for name, tensor in one.tensors().items()}


@dataclass(frozen=True, eq=False, kw_only=True)
class FastPacked(FastInt8):
    """A matrix or a stack whose codes stay packed in fewer bits, and are expanded to int8 each time a matrix is used.

    Attributes:
        packed: the weight as it is stored.
    """

    packed: PackedWeight

    @property
    def largest(self) -> int:
        """See ``FastInt8``."""
        return largest_code(int8_backend(once=True))

    def values(self, rows: slice | Tensor) -> Tensor:
        """See ``PackedWeight``: those of the stored codes."""
        return self.packed.values(rows)

    def expert(self, index: int) -> FastInt8:
        """One matrix of the stack."""
        return FastPacked(shape=self.shape[1:], packed=self.packed.expert(index))

    def product_of_rows(self, rows: Int8Rows) -> Tensor:
        """See ``FastInt8``."""
        codes, scale = self.packed.int8_rows()
        return product_of_rows(rows, prepare_int8(codes, scale[:, 0], int8_backend(once=True)))

    def tensors(self) -> dict[str, Tensor]:
        """See ``PackedWeight``."""
        return self.packed.tensors()


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
    """A weight rounded to int8, each row by its own largest value; codes of few bits stay packed until they are used.

    Args:
        weight: ``[N, K]`` or ``[E, N, K]``, plain or packed.
        table: whether it is the embedding table.
    """
    shape = tuple(weight.shape)
    if isinstance(weight, PackedWeight) and not table and stays_packed(shape, weight.nbytes):
        return FastPacked(shape=shape, packed=weight)
    if len(shape) == 3:
        experts = (weight[i] if isinstance(weight, Tensor) else weight.expert(i) for i in range(shape[0]))
        return FastInt8Stack(shape=shape, matrices=tuple(_matrix(expert) for expert in experts))
    if not table:
        return _matrix(weight)
    codes, scale = _rounded(weight)
    return FastInt8Table(shape=shape, codes=codes, scale=scale)


def stays_packed(shape: tuple[int, ...], nbytes: int) -> bool:
    """Whether the codes of a packed weight have so few bits that they are not replaced."""
    return 8 * nbytes < FEW_BITS * prod(shape)


def _matrix(weight: Tensor | PackedWeight) -> FastInt8Matrix:
    codes, scale = _rounded(weight)
    return FastInt8Matrix(shape=tuple(weight.shape), prepared=prepare_int8(codes, scale[:, 0]))


def _rounded(weight: Tensor | PackedWeight) -> Int8Rows:
    if isinstance(weight, PackedWeight):
        return weight.int8_rows()
    codes, scale = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight), 1)
    for start in range(0, len(weight), STEP):
        codes[start : start + STEP], scale[start : start + STEP] = quantize_rows(weight[start : start + STEP])
    return Int8Rows(codes, scale)
