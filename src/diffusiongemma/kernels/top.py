"""Each position's most probable tokens: the expected row of a table from them alone, and draws among fewer than all tokens.

Shapes: N positions, K tokens kept, G groups of a tile, S tokens of a group, D hidden, V vocabulary.
"""

import torch
from torch import Tensor

from diffusiongemma.kernels.rng import gumbel_at
from diffusiongemma.kernels.table import Table, table_rows

__all__ = ["TopGroups", "draw_top", "mix_top"]

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


def draw_top(
    z_MK: Tensor,
    ids_MK: Tensor,
    best_M: Tensor,
    keys_M: Tensor,
    noise_M: Tensor,
    top_k_M: Tensor,
    top_p_M: Tensor,
    min_p_M: Tensor,
) -> Tensor:
    """A token of each distribution, drawn among its most probable ones; the most probable is never cut off.

    Args:
        z_MK: ``[M, K]`` float32 logits over the temperature, the largest first.
        ids_MK: ``[M, K]`` int64, their tokens.
        best_M: ``[M]`` float32, probability of the most probable token among all tokens.
        keys_M: ``[M]`` int64, of the draw.
        noise_M: ``[M]`` float32, factor of the random numbers: the draw's temperature over that of the logits.
        top_k_M: ``[M]`` int64, so many tokens at most.
        top_p_M: ``[M]`` float32, the fewest tokens that are together so probable.
        min_p_M: ``[M]`` float32, tokens at least so many times as probable as the most probable one.

    Returns:
        ``[M]`` int64.
    """
    times_MK = (z_MK - z_MK[:, :1]).exp()
    before_MK = (times_MK.cumsum(-1) - times_MK) * best_M[:, None]
    place_K = torch.arange(z_MK.shape[1], device=z_MK.device)
    kept_MK = (place_K < top_k_M[:, None]) & (before_MK < top_p_M[:, None]) & (times_MK >= min_p_M[:, None])
    kept_MK[:, 0] = True
    noisy_MK = (z_MK + gumbel_at(keys_M[:, None], ids_MK + 1) * noise_M[:, None]).masked_fill(~kept_MK, -torch.inf)
    return ids_MK.gather(1, noisy_MK.argmax(-1, keepdim=True)).squeeze(1)


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
