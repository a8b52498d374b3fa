"""A weight as layers use it: a record that applies itself, as a linear, as a set of experts or as the table of tokens.

Three dtypes are apart: that of the weight is the record's own; that of the computation comes with ``x``; that of the cache is the
model's (``Transformer.cache_dtype``). A format, an adapter too, is a subclass of ``Weight``; nothing else has to know it. A plain
tensor of x's dtype takes the kernels' way at no cost; everything else is widened or dequantised a tile of rows at a time, and gives
in float32 the bits that plain weights of the same values give.
Shapes: T tokens, X chosen experts, D hidden, I expert width, E experts, V vocabulary, N rows, K columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from diffusiongemma import kernels

__all__ = ["Activation", "PlainWeight", "Routing", "Weight"]

TABLE_ROWS = 1024
"""Rows of a table that are mixed at once: fewer would add to the sums more often than it saves memory."""
Activation = Callable[[Tensor], Tensor]


class Routing(NamedTuple):
    """Where tokens go.

    Attributes:
        index_TX: ``[T, X]`` int64, the experts each token is routed to.
        weight_TX: ``[T, X]`` float32, their weights.
    """

    index_TX: Tensor
    weight_TX: Tensor


class Weight(ABC):
    """A matrix ``[N, K]``, or experts stacked as ``[E, N, K]``.

    Attributes:
        shape: of the values.
        exact: whether products are those of the values; False: they round x to multiply codes.
    """

    shape: tuple[int, ...]
    exact: ClassVar[bool] = True

    @property
    @abstractmethod
    def table(self) -> kernels.Table:
        """A matrix as the canvas head and the embedding read it."""

    @abstractmethod
    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ W.T + bias`` of a matrix: ``[..., K] -> [..., N]`` in x's dtype."""

    @abstractmethod
    def operand(self, rows: slice | Tensor) -> Tensor:
        """Rows of a matrix ``[rows, K]`` as products use them."""

    @abstractmethod
    def expert(self, index: int) -> "Weight":
        """One matrix of a stack, as a view."""

    def mix(self, probs: Tensor) -> Tensor:
        """``probs @ W`` in probs's dtype: ``[..., V] -> [..., D]``."""
        compute = kernels.product_dtype(probs.dtype, probs.device)
        size, columns = self.shape
        mixed = probs.new_zeros(*probs.shape[:-1], columns, dtype=compute)
        for start in range(0, size, TABLE_ROWS):
            end = min(start + TABLE_ROWS, size)
            mixed += probs[..., start:end].to(compute) @ kernels.table_tile(self.table, start, end, compute)
        return mixed.to(probs.dtype)

    def apply_experts(self, x_TD: Tensor, routing: Routing, down: "Weight", act: Activation) -> Tensor:
        """Mixture of experts, of which this is the first stack, gate rows before up rows; see ``kernels.experts``.

        Args:
            x_TD: ``[T, D]`` normed tokens.
            routing: where each goes.
            down: ``[E, D, I]``; this is ``[E, 2I, D]``.
            act: the activation of the gate.
        """
        index_TX, weight_TX = routing
        count, numbers = self.shape[0], sum(weight.shape[-2] * weight.shape[-1] for weight in (self, down))
        if self.exact and down.exact and kernels.experts_choice(count, index_TX.shape[1], numbers, x_TD.dtype).name == "dense":
            # So small that all of them cost less than a loop; and a twin of plain weights has the same bits.
            return kernels.experts(x_TD, index_TX, weight_TX, _whole(self, x_TD.dtype), _whole(down, x_TD.dtype), act)
        # Of the others only those experts that have tokens are dequantised.
        order, source = kernels.by_expert(index_TX)
        rows_SD = x_TD.to(kernels.product_dtype(x_TD.dtype, x_TD.device))[source]
        parts, start = [], 0
        for expert, tokens in enumerate(torch.bincount(index_TX.reshape(-1), minlength=count).tolist()):
            if tokens:
                gate, up = self.expert(expert).apply(rows_SD[start : start + tokens]).chunk(2, dim=-1)
                parts.append(down.expert(expert).apply(act(gate) * up))
                start += tokens
        out = torch.cat(parts) * weight_TX.reshape(-1)[order].unsqueeze(-1)
        return torch.zeros_like(x_TD, dtype=rows_SD.dtype).index_add_(0, source, out.to(rows_SD.dtype)).to(x_TD.dtype)


class PlainWeight(Weight):
    """A tensor of any floating-point dtype, with gradient where it has one.

    Args:
        tensor: ``[N, K]`` or ``[E, N, K]``.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.shape = tensor, tensor.shape

    @property
    def table(self) -> kernels.Table:
        """See ``Weight``."""
        return self.tensor

    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See ``Weight``."""
        return kernels.linear(x, self.tensor, bias)

    def operand(self, rows: slice | Tensor) -> Tensor:
        """See ``Weight``."""
        return self.tensor[rows]

    def expert(self, index: int) -> Weight:
        """See ``Weight``."""
        return PlainWeight(self.tensor[index])

    def mix(self, probs: Tensor) -> Tensor:
        """See ``Weight``."""
        return probs @ self.tensor if self.tensor.dtype == probs.dtype else super().mix(probs)

    def apply_experts(self, x_TD: Tensor, routing: Routing, down: Weight, act: Activation) -> Tensor:
        """See ``Weight``."""
        if isinstance(down, PlainWeight) and self.tensor.dtype == down.tensor.dtype == x_TD.dtype:
            return kernels.experts(x_TD, *routing, self.tensor, down.tensor, act)
        return super().apply_experts(x_TD, routing, down, act)


def _whole(weight: Weight, dtype: torch.dtype) -> Tensor:
    """A small stack with all its values."""
    rows = slice(0, weight.shape[1])
    return torch.stack([weight.expert(index).operand(rows) for index in range(weight.shape[0])]).to(dtype)
