"""The expected row of a table from each position's most probable tokens alone: a few rows are read instead of all.

Shapes: N positions, K tokens kept, G groups of a tile, S tokens of a group, D hidden, V vocabulary.
"""

import torch
from torch import Tensor

from diffusiongemma.kernels.table import Table, table_rows

__all__ = ["TopGroups", "mix_top"]

NUMBERS = 1 << 20
"""Values of rows that are made at once: 4 MiB of float32."""


def mix_top(z_NK: Tensor, ids_NK: Tensor, table: Table, dtype: torch.dtype) -> Tensor:
    """Rows of a table mixed by the softmax over the tokens kept.

    Args:
        z_NK: ``[N, K]`` float32 logits over the temperature.
        ids_NK: ``[N, K]`` int64, their tokens.
        table: ``[V, D]``.
        dtype: of the result ``[N, D]``.
    """
    share_NK = z_NK.softmax(-1)
    step = max(1, NUMBERS // (ids_NK.shape[1] * table.shape[1]))
    parts = []
    for start in range(0, len(ids_NK), step):
        share_RK, ids_RK = share_NK[start : start + step], ids_NK[start : start + step]
        # Products and sums position by position, not a matrix product: its rounding would depend on the neighbours.
        parts.append((share_RK[..., None] * table_rows(table, ids_RK, torch.float32)).sum(1).to(dtype))
    return torch.cat(parts)


class TopGroups:
    """For each position the groups with the largest values so far; the most probable tokens are all in as many groups.

    Args:
        count: K, groups and tokens kept.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._value_NK: Tensor | None = None
        self._group_NK = self._z_NKS = torch.empty(0)

    def update(self, value_NG: Tensor, z_NGS: Tensor, first: int) -> None:
        """Add a tile's groups.

        Args:
            value_NG: ``[N, G]`` the largest logit of each.
            z_NGS: ``[N, G, S]`` all logits.
            first: number of the first group.
        """
        value_NK, place_NK = value_NG.topk(min(self._count, value_NG.shape[1]), dim=1)
        group_NK, z_NKS = place_NK + first, _picked(z_NGS, place_NK)
        if self._value_NK is not None:
            both_N = torch.cat((self._value_NK, value_NK), 1)
            value_NK, place_NK = both_N.topk(min(self._count, both_N.shape[1]), dim=1)
            group_NK = torch.cat((self._group_NK, group_NK), 1).gather(1, place_NK)
            z_NKS = _picked(torch.cat((self._z_NKS, z_NKS), 1), place_NK)
        self._value_NK, self._group_NK, self._z_NKS = value_NK, group_NK, z_NKS

    def tokens(self, vocab_size: int) -> tuple[Tensor, Tensor]:
        """Logits and ids ``[N, K]`` of the most probable tokens."""
        size = self._z_NKS.shape[2]
        ids_NKS = self._group_NK[..., None] * size + torch.arange(size, device=self._group_NK.device)
        z_NK, place_NK = self._z_NKS.flatten(1).topk(min(self._count, vocab_size), dim=1)
        return z_NK, ids_NKS.flatten(1).gather(1, place_NK)


def _picked(z_NGS: Tensor, place_NK: Tensor) -> Tensor:
    return z_NGS.gather(1, place_NK[..., None].expand(-1, -1, z_NGS.shape[2]))
