"""Softmax attention with scale 1 over keys that lie in one piece or in several.

Several pieces are never joined: attention over each gives its output and the logarithm of its mass (LSE), and two outputs are
merged by weights that are the sigmoid of the difference of their logarithms. No mask is wider than one piece, no copy of the keys
is made, and what is in memory besides is one output a piece at a time.

Shapes: B batch, T tokens, S keys, N heads, K key-value heads, G = N / K heads that share one, H head size.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusiongemma.kernels import reference

__all__ = ["KeysValues", "Mask", "attention", "attention_lse"]

Mask = Tensor | Literal["causal"] | None
"""Bool, True where a query sees a key, ``[B, 1, T, S]`` or broadcastable to it; ``causal``: as many keys as queries, and each query
sees those up to its own; None: everything is seen."""
KeysValues = tuple[Tensor, Tensor]
"""``[B, S, K, H]`` each."""


def attention(q_BTNH: Tensor, pieces: Sequence[KeysValues], mask: Mask = None) -> Tensor:
    """Attention of queries over all keys of all pieces.

    Args:
        q_BTNH: ``[B, T, N, H]``.
        pieces: keys and values, in the order of their positions; at least one. Those of another dtype than q's are converted.
        mask: of the last piece, a tensor only where it is the only one; of the others everything is seen.

    Returns:
        ``[B, T, N * H]`` in q's dtype.
    """
    pieces = [(k.to(q_BTNH.dtype), v.to(q_BTNH.dtype)) for k, v in pieces]  # a cache may be of another dtype
    if len(pieces) == 1:
        return _attend(q_BTNH, *pieces[0], mask)
    assert not isinstance(mask, Tensor), "what lies in several pieces is seen whole, but for the last piece's causal order"
    *before, (k_own, v_own) = pieces
    out, lse = attention_lse(q_BTNH, k_own, v_own, mask is not None)
    out = out.float() if out.dtype != torch.float64 else out.clone()
    for k, v in before:
        other, other_lse = attention_lse(q_BTNH, k, v)
        out.lerp_(other.to(out.dtype), torch.sigmoid(other_lse - lse).unsqueeze(-1))
        lse = torch.logaddexp(lse, other_lse)
    return out.to(q_BTNH.dtype).transpose(1, 2).flatten(2)


def _attend(q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask: Mask) -> Tensor:
    groups = q_BTNH.shape[2] // k_BSKH.shape[2]
    if mask is None and groups > 1:
        # Heads that share keys as further queries of these: the keys are read once, and on a GPU never repeated in memory.
        q, k, v = _grouped(q_BTNH, groups), k_BSKH.transpose(1, 2), v_BSKH.transpose(1, 2)
        return _ungrouped(F.scaled_dot_product_attention(q, k, v, scale=1.0), groups).transpose(1, 2).flatten(2)
    if isinstance(mask, str):
        assert q_BTNH.shape[1] == k_BSKH.shape[1], "causal without a mask needs as many keys as queries"
    return reference.attention(q_BTNH, k_BSKH, v_BSKH, mask)


def attention_lse(q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """Attention and the logarithm of each query's mass.

    Args:
        q_BTNH: ``[B, T, N, H]``.
        k_BSKH: ``[B, S, K, H]``.
        v_BSKH: ``[B, S, K, H]``.
        causal: as many keys as queries, and each query sees those up to its own; else everything is seen.

    Returns:
        ``[B, N, T, H]`` in q's dtype and ``[B, N, T]`` float32 (float64 for float64).
    """
    groups = q_BTNH.shape[2] // k_BSKH.shape[2]
    grouped = groups > 1 and not causal
    q = _grouped(q_BTNH, groups) if grouped else q_BTNH.transpose(1, 2)
    k, v = k_BSKH.transpose(1, 2), v_BSKH.transpose(1, 2)
    if q.device.type == "cpu":
        # What scaled_dot_product_attention runs on a CPU; that one keeps the logarithms to itself.
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=1.0)
    else:
        out, lse = reference.attention_lse(q, k, v, causal)
    if not grouped:
        return out, lse
    return _ungrouped(out, groups), lse.reshape(lse.shape[0], -1, q_BTNH.shape[1])


def _grouped(q_BTNH: Tensor, groups: int) -> Tensor:
    """``[B, K, G * T, H]``."""
    rows, tokens, heads, size = q_BTNH.shape
    return q_BTNH.view(rows, tokens, heads // groups, groups, size).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _ungrouped(out: Tensor, groups: int) -> Tensor:
    """``[B, K, G * T, H]`` to ``[B, N, T, H]``."""
    return out.reshape(out.shape[0], out.shape[1] * groups, -1, out.shape[-1])
