"""Weights of GGUF files as records: the file's blocks as they are, a view of the memory map.

Shapes: N rows, K columns, E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from diffusiongemma.kernels.int8 import Int8Rows
from diffusiongemma.quant.gguf_blocks import BlockType, int8_of_blocks
from diffusiongemma.quant.packed import PackedWeight

__all__ = ["GGUFWeight", "JoinedRows"]


@dataclass(frozen=True, eq=False, kw_only=True)
class GGUFWeight(PackedWeight):
    """A matrix, or a stack of them, in blocks along its rows.

    Attributes:
        blocks: uint8 ``[N, K / weights of a block, bytes of a block]``.
        block: their type.
    """

    blocks: Tensor
    block: BlockType

    @property
    def kind(self) -> str:
        """``gguf-`` and the type of the blocks."""
        return f"gguf-{self.block.name.lower()}"

    def values(self, rows: slice | Tensor) -> Tensor:
        """See ``PackedWeight``."""
        return self.block.dequantize(self.blocks[rows])

    def int8_rows(self) -> Int8Rows:
        """See ``PackedWeight``; a row's largest value is what its scales allow."""
        result = int8_of_blocks(self.block, self.blocks)
        return super().int8_rows() if result is None else result


@dataclass(frozen=True, eq=False, kw_only=True)
class JoinedRows(PackedWeight):
    """The rows of one record, then those of another: experts whose gate and up a file keeps apart, in types of their own.

    Attributes:
        first: ``[N1, K]`` or ``[E, N1, K]``.
        second: ``[N2, K]`` or ``[E, N2, K]``.
    """

    first: PackedWeight
    second: PackedWeight

    @property
    def kind(self) -> str:
        """Those of the parts."""
        return " + ".join(dict.fromkeys((self.first.kind, self.second.kind)))

    def values(self, rows: slice | Tensor) -> Tensor:
        """See ``PackedWeight``."""
        border = self.first.shape[-2]
        if isinstance(rows, slice):
            parts = []
            if rows.start < border:
                parts.append(self.first.values(slice(rows.start, min(rows.stop, border))))
            if rows.stop > border:
                parts.append(self.second.values(slice(max(rows.start - border, 0), rows.stop - border)))
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        below = rows < border
        out = torch.empty(len(rows), self.shape[-1], device=rows.device)
        out[below] = self.first.values(rows[below])
        out[~below] = self.second.values(rows[~below] - border)
        return out

    def int8_rows(self) -> Int8Rows:
        """See ``PackedWeight``."""
        parts = (self.first.int8_rows(), self.second.int8_rows())
        return Int8Rows(torch.cat([part.codes for part in parts]), torch.cat([part.scale for part in parts]))

    def tensors(self) -> dict[str, Tensor]:
        """See ``PackedWeight``."""
        parts = (("first", self.first), ("second", self.second))
        return {f"{name}.{field}": tensor for name, part in parts for field, tensor in part.tensors().items()}

    def _each(self, change: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Self:
        cut = len(self.shape) - len(shape)
        first, second = (part._each(change, part.shape[cut:]) for part in (self.first, self.second))
        return replace(self, shape=shape, first=first, second=second)
