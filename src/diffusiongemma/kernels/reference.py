"""Plain implementations of every op: short, readable, and the oracle for any faster one.

Shapes: B batch, T tokens, S keys, D hidden, N heads, K key-value heads, H head size, E experts, I expert width,
X tokens times chosen experts, L canvas, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusiongemma.kernels.rng import gumbel_at
from diffusiongemma.kernels.table import Table, table_tile
from diffusiongemma.kernels.top import mix_top

__all__ = [
    "GROUP",
    "SoftPositions",
    "Statistics",
    "attention",
    "attention_lse",
    "by_expert",
    "canvas_head",
    "draw",
    "entropy",
    "experts_dense",
    "experts_grouped_mm",
    "experts_loop",
    "rms_norm",
    "rotate",
    "soft_cap",
    "soft_joined",
    "statistics",
]

GROUP = 64
"""Tokens that are drawn among at once (``draw``)."""
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


def attention(q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, mask_B1TS: Tensor | str | None) -> Tensor:
    """Softmax attention with scale 1 over keys in one piece; masks as in ``kernels.attend.Mask``.

    Returns:
        ``[B, T, N * H]``.
    """
    out = F.scaled_dot_product_attention(
        q_BTNH.transpose(1, 2),
        k_BSKH.transpose(1, 2),
        v_BSKH.transpose(1, 2),
        attn_mask=mask_B1TS if isinstance(mask_B1TS, Tensor) else None,
        is_causal=isinstance(mask_B1TS, str),
        scale=1.0,
        enable_gqa=q_BTNH.shape[2] > k_BSKH.shape[2],
    )
    return out.transpose(1, 2).flatten(2)


def attention_lse(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Softmax attention with scale 1, and the logarithm of each query's mass; all scores are in memory, in float32.

    Returns:
        ``[B, N, T, H]`` in q's dtype and ``[B, N, T]`` in the scores' dtype.
    """
    groups = q_BNTH.shape[1] // k_BKSH.shape[1]
    k_BNSH, v_BNSH = k_BKSH.repeat_interleave(groups, 1), v_BKSH.repeat_interleave(groups, 1)
    scores = q_BNTH @ k_BNSH.transpose(-1, -2)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1).to(q_BNTH.dtype) @ v_BNSH, scores.logsumexp(-1)


def by_expert(index_TX: Tensor) -> tuple[Tensor, Tensor]:
    """The (token, choice) pairs in the order of their experts, and the token of each."""
    order = index_TX.reshape(-1).argsort(stable=True)
    return order, order.div(index_TX.shape[1], rounding_mode="floor")


def experts_loop(
    x_TD: Tensor, index_TX: Tensor, weight_TX: Tensor, gate_up_EID: Tensor, down_EDI: Tensor, act: Activation
) -> Tensor:
    """Each token through its chosen experts: tokens sorted by expert, one product an expert that has any."""
    order, source = by_expert(index_TX)
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


def experts_grouped_mm(
    x_TD: Tensor, index_TX: Tensor, weight_TX: Tensor, gate_up_EID: Tensor, down_EDI: Tensor, act: Activation
) -> Tensor:
    """As ``experts_loop``, with the library's grouped product: no loop over experts, and the counts stay on the device."""
    order, source = by_expert(index_TX)
    ends = torch.bincount(index_TX.reshape(-1), minlength=gate_up_EID.shape[0]).cumsum(0).int()
    gate, up = F.grouped_mm(x_TD[source], gate_up_EID.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    out = F.grouped_mm(act(gate) * up, down_EDI.transpose(1, 2), offs=ends)
    out = out * weight_TX.reshape(-1)[order].unsqueeze(-1)
    return torch.zeros_like(x_TD).index_add_(0, source, out.to(x_TD.dtype))


SoftPositions = Mapping[int | None, Tensor | None]
"""Of how many of the most probable tokens an expected embedding is made (None: all of them) -> ``[M]`` int64, the positions that
have theirs made so, counted through all rows; None: every position. Empty: there is none at all."""


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """``cap * tanh(logits / cap)`` in float32; None: the logits as they are, in float32."""
    return logits.float() if cap is None else torch.tanh(logits.float() / cap) * cap


class Statistics(NamedTuple):
    """What a step needs to know of the distributions over a canvas, each over its own temperature.

    Attributes:
        argmax_ids_BL: int64, the most probable token; the first of equals.
        drawn_BL: int64, a categorical draw.
        entropy_BL: float32, nats.
        probability_BL: float32, of the most probable token.
        soft_BLD: the expected row of the table, in the hidden states' dtype, 0 at positions of which it was not asked for; None
            where it was asked for nowhere.
        top_ids_MK: int64, the most probable tokens of the positions asked for, best first; None where there are none.
        top_z_MK: float32, their logits over the temperature.
    """

    argmax_ids_BL: Tensor
    drawn_BL: Tensor
    entropy_BL: Tensor
    probability_BL: Tensor
    soft_BLD: Tensor | None
    top_ids_MK: Tensor | None = None
    top_z_MK: Tensor | None = None


def entropy(shaped_BLV: Tensor) -> Tensor:
    """Entropy ``[B, L]`` in nats."""
    return _sureness(shaped_BLV)[0]


def _sureness(shaped_BLV: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy, and the largest probability."""
    log_probs = shaped_BLV.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1), log_probs.amax(-1).exp()


def draw(shaped: Tensor, keys: Tensor) -> Tensor:
    """A token of each distribution, by Gumbel-max in two stages: a group of 64 by its mass, then a token within it.

    The maximum over a group of (logit + Gumbel noise) is itself its log-sum-exp with Gumbel noise, so the draw is exact, with
    V / 64 + 64 random numbers a position instead of V. Tokens take the indices from 1, groups those below 0.

    Args:
        shaped: ``[..., V]`` float32 logits over the temperature.
        keys: ``[...]`` int64.

    Returns:
        ``[...]`` int64.
    """
    whole = F.pad(shaped, (0, -shaped.shape[-1] % GROUP), value=-torch.inf)
    groups = whole.view(*whole.shape[:-1], -1, GROUP)
    mass = groups.logsumexp(-1)
    index = torch.arange(1, mass.shape[-1] + 1, device=keys.device)
    chosen = (mass + gumbel_at(keys[..., None], -index)).argmax(-1, keepdim=True)
    within = groups.gather(-2, chosen[..., None].expand(*chosen.shape, GROUP)).squeeze(-2)
    token = chosen * GROUP + torch.arange(GROUP, device=keys.device)
    best = (within + gumbel_at(keys[..., None], token + 1)).argmax(-1, keepdim=True)
    return token.gather(-1, best).squeeze(-1)


def statistics(shaped_BLV: Tensor, keys_BL: Tensor, table_VD: Tensor | None) -> Statistics:
    """The statistics of logits over the temperature; with the soft embedding where a table is given."""
    soft = None
    if table_VD is not None:
        soft = shaped_BLV.softmax(dim=-1, dtype=torch.float32).to(table_VD.dtype) @ table_VD
    return Statistics(shaped_BLV.argmax(-1), draw(shaped_BLV, keys_BL), *_sureness(shaped_BLV), soft)


def canvas_head(
    hidden_BLD: Tensor,
    table_VD: Table,
    cap: float | None,
    temperature_B: Tensor,
    keys_BL: Tensor,
    *,
    soft: SoftPositions,
    top: int = 0,
    top_at_M: Tensor | None = None,
) -> Statistics:
    """Head product, soft cap, temperature and statistics, with all logits in memory.

    Args:
        hidden_BLD: ``[B, L, D]`` final hidden states.
        table_VD: ``[V, D]`` the tied head, of any dtype, or packed.
        cap: of the logits; None: none.
        temperature_B: ``[B]`` float32.
        keys_BL: ``[B, L]`` int64, of the draw.
        soft: where the soft embedding is wanted, and of how many tokens.
        top: K, how many of the most probable tokens are kept.
        top_at_M: ``[M]`` int64, at which positions, counted through all rows; None: nowhere.
    """
    plain_VD = table_tile(table_VD, 0, table_VD.shape[0], hidden_BLD.dtype)
    logits_BLV = soft_cap(F.linear(hidden_BLD, plain_VD), cap)
    shaped_BLV = logits_BLV / temperature_B[:, None, None]
    result = statistics(shaped_BLV, keys_BL, plain_VD if None in soft else None)
    z_NV = shaped_BLV.flatten(0, 1)
    mixed = [
        (at_M, mix_top(*_top(z_NV, at_M, count), plain_VD, hidden_BLD.dtype)) for count, at_M in soft.items() if count is not None
    ]
    top_z_MK, top_ids_MK = (None, None) if top_at_M is None else _top(z_NV, top_at_M, top)
    soft_BLD = soft_joined(result.soft_BLD, soft, mixed, hidden_BLD)
    return result._replace(soft_BLD=soft_BLD, top_ids_MK=top_ids_MK, top_z_MK=top_z_MK)


def _top(z_NV: Tensor, at_M: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    z_NK, ids_NK = (z_NV if at_M is None else z_NV[at_M]).topk(min(count, z_NV.shape[1]), dim=1)
    return z_NK, ids_NK


def soft_joined(
    full_BLD: Tensor | None, soft: SoftPositions, mixed: Sequence[tuple[Tensor | None, Tensor]], like_BLD: Tensor
) -> Tensor | None:
    """The expected embedding of all positions, from that of all tokens and those of the most probable ones."""
    if not soft:
        return None
    if len(soft) == 1 and None in soft.values():
        return full_BLD if full_BLD is not None else mixed[0][1].view_as(like_BLD)
    soft_ND = torch.zeros_like(like_BLD).flatten(0, 1)
    if full_BLD is not None and (at_M := soft[None]) is not None:
        soft_ND[at_M] = full_BLD.flatten(0, 1)[at_M]
    for at_M, rows_MD in mixed:
        soft_ND[at_M] = rows_MD
    return soft_ND.view_as(like_BLD)
