"""Plain implementations of every op: short, readable, and the oracle for any faster one.

Shapes: B batch, T tokens, S keys, D hidden, N heads, K key-value heads, H head size, E experts, I expert width,
X tokens times chosen experts.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attention", "experts_dense", "experts_grouped", "rms_norm", "rotate", "soft_cap"]

Activation = Callable[[Tensor], Tensor]


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Scale x by the inverse root of its mean square, in float32; the result has x's dtype.

    Source: transformers 5.23 ``DiffusionGemmaRMSNorm`` (the factor is ``weight``, not ``1 + weight``).
    """
    wide = x.float()
    normed = wide * torch.pow(wide.pow(2).mean(-1, keepdim=True) + eps, -0.5)
    if weight is not None:
        normed = normed * weight.float()
    return normed.type_as(x)


def rotate(x_BTNH: Tensor, cos_BTH: Tensor, sin_BTH: Tensor) -> Tensor:
    """Rotary position embedding; the two halves of a head turn together."""
    first, second = x_BTNH.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_BTNH * cos_BTH.unsqueeze(-2) + turned * sin_BTH.unsqueeze(-2)


def attention(q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask_B1TS: Tensor | None) -> Tensor:
    """Softmax attention with scale 1; ``mask`` is True where a query sees a key, None where all see all.

    Returns:
        ``[B, T, N * H]``.
    """
    groups = q_BTNH.shape[2] // k_BSKH.shape[2]
    out = F.scaled_dot_product_attention(
        q_BTNH.transpose(1, 2),
        k_BSKH.transpose(1, 2),
        v_BSKH.transpose(1, 2),
        attn_mask=mask_B1TS,
        scale=1.0,
        enable_gqa=groups > 1,
    )
    return out.transpose(1, 2).flatten(2)


def experts_grouped(
    x_TD: Tensor, index_TX: Tensor, weight_TX: Tensor, gate_up_EID: Tensor, down_EDI: Tensor, act: Activation
) -> Tensor:
    """Each token through its chosen experts: tokens sorted by expert, one product an expert that has any."""
    chosen = index_TX.shape[1]
    order = index_TX.reshape(-1).argsort(stable=True)
    source = order.div(chosen, rounding_mode="floor")
    counts = torch.bincount(index_TX.reshape(-1), minlength=gate_up_EID.shape[0]).tolist()
    rows = x_TD[source]
    parts = []
    start = 0
    for expert, count in enumerate(counts):
        if count:
            gate, up = F.linear(rows[start : start + count], gate_up_EID[expert]).chunk(2, dim=-1)
            parts.append(F.linear(act(gate) * up, down_EDI[expert]))
            start += count
    out = torch.cat(parts) * weight_TX.reshape(-1)[order].unsqueeze(-1)
    return torch.zeros_like(x_TD).index_add_(0, source, out.to(x_TD.dtype))


def experts_dense(
    x_TD: Tensor, index_TX: Tensor, weight_TX: Tensor, gate_up_EID: Tensor, down_EDI: Tensor, act: Activation
) -> Tensor:
    """Every token through every expert, those not chosen with weight zero: two large products, no gather.

    Costs E / X times the arithmetic of the grouped form, so it pays where the experts are few and small; it compiles and
    differentiates as one piece.
    """
    experts, double, hidden = gate_up_EID.shape
    both_TEI = F.linear(x_TD, gate_up_EID.reshape(experts * double, hidden)).view(-1, experts, double)
    gate_TEI, up_TEI = both_TEI.chunk(2, dim=-1)
    share_TE = torch.zeros(x_TD.shape[0], experts, dtype=weight_TX.dtype, device=x_TD.device)
    share_TE = share_TE.scatter(1, index_TX, weight_TX)
    mixed_TEI = (act(gate_TEI) * up_TEI) * share_TE.unsqueeze(-1).to(x_TD.dtype)
    return F.linear(mixed_TEI.flatten(1), down_EDI.transpose(0, 1).reshape(hidden, -1))


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """``cap * tanh(logits / cap)`` in float32."""
    return torch.tanh(logits.float() / cap) * cap
