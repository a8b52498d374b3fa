"""Which implementation of an op runs, decided in one place from shapes, device and mode."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusiongemma.kernels import reference, tiled
from diffusiongemma.kernels.invariance import AS_THEY_COME, BatchInvariance
from diffusiongemma.kernels.reference import Activation, SoftPositions, Statistics
from diffusiongemma.kernels.table import Table

__all__ = [
    "Choice",
    "Kernels",
    "canvas_head",
    "canvas_head_choice",
    "experts",
    "experts_choice",
    "linear",
    "product_dtype",
    "rms_norm",
    "tile_rows",
]

Kernels = Literal["auto", "plain"]
"""``auto``: the fastest implementation that is proved equal; ``plain``: the reference of the canvas head."""
WIDEN_FROM = 128
"""Tokens from which widening a bfloat16 matrix costs less than it saves (docs/lab-log.md)."""
TILE = 1 << 19
"""Values of a weight that are made at once: 2 MiB of float32 stay in the cache until the product has read them."""
PLAIN_HEAD_LIMIT = 1 << 16
"""Logits of a canvas up to which the plain head is taken: it makes fewer calls."""

_MATRIX_UNITS = torch.cpu._is_amx_tile_supported()
"""Whether this CPU has them; asked once, since the question cuts a compiled pass in pieces."""
DENSE_LIMIT = 1 << 16
"""Largest number of weights of one expert for which running all experts on all tokens is tried.

At the size of the built-in checkpoint this is quicker for one canvas and a little slower for fifty (docs/lab-log.md); it also
compiles as one piece, which training needs.
"""


class Choice(NamedTuple):
    """The name of an implementation and the reason it was taken."""

    name: str
    reason: str


def experts_choice(num_experts: int, chosen: int, expert_weights: int, dtype: torch.dtype = torch.float32) -> Choice:
    """The implementation for a layer's experts.

    Args:
        num_experts: experts in the layer.
        chosen: experts a token is routed to.
        expert_weights: weights of one expert.
        dtype: of the weights.
    """
    if num_experts <= 4 * chosen and expert_weights <= DENSE_LIMIT:
        return Choice("dense", f"{num_experts} experts of {expert_weights} weights: two products beat {num_experts} small ones")
    if dtype == torch.bfloat16 and hasattr(F, "grouped_mm"):
        return Choice("product", "the library has a grouped product in bfloat16")
    return Choice("grouped", f"{num_experts} experts of {expert_weights} weights, {chosen} chosen: only the chosen are computed")


_EXPERTS = {
    "dense": reference.experts_dense,
    "grouped": reference.experts_loop,
    "product": reference.experts_grouped_mm,
}


def experts(
    x_TD: Tensor,
    index_TX: Tensor,
    weight_TX: Tensor,
    gate_up_EID: Tensor,
    down_EDI: Tensor,
    act: Activation,
) -> Tensor:
    """Mixture of experts on a flat list of tokens.

    Args:
        x_TD: ``[T, D]`` normed tokens.
        index_TX: ``[T, X]`` int64, the experts each token is routed to.
        weight_TX: ``[T, X]`` float32, their weights.
        gate_up_EID: ``[E, 2I, D]``, gate rows first.
        down_EDI: ``[E, D, I]``.
        act: the activation of the gate.

    Returns:
        ``[T, D]`` in x's dtype.
    """
    weights = gate_up_EID[0].numel() + down_EDI[0].numel()
    choice = experts_choice(gate_up_EID.shape[0], index_TX.shape[1], weights, x_TD.dtype)
    return _EXPERTS[choice.name](x_TD, index_TX, weight_TX, gate_up_EID, down_EDI, act)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` in x's dtype, whatever the weight's.

    Many narrow rows on a CPU are computed in float32 and rounded once (``product_dtype``), and so is what meets a weight of
    another dtype; the weight is widened a tile of rows at a time, so that it never stands twice in memory.
    """
    compute = product_dtype(x.dtype, x.device)
    if weight.dtype == x.dtype and (compute == x.dtype or x.numel() < WIDEN_FROM * x.shape[-1]):
        return F.linear(x, weight, bias)
    wide = x.to(compute)
    out = torch.cat([F.linear(wide, tile.to(compute)) for tile in torch.split(weight, tile_rows(weight.shape[1]))], dim=-1)
    return (out if bias is None else out + bias).to(x.dtype)


def tile_rows(columns: int) -> int:
    """Rows of a weight that are widened or dequantised at once.

    A multiple of 64, with which each row's product has the bits of the whole (measured with MKL at 1 to 256 rows of x; tiles of
    other heights change the order of sums at their edges).
    """
    return max(64, TILE // columns // 64 * 64)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``reference.rms_norm`` by the library's own, which has the same bits (tests/kernels) and makes one call of eight.

    In float64 the reference rounds to float32 on its way, as transformers does; the library's does not.
    """
    if x.dtype == torch.float64 or (weight is not None and weight.dtype != x.dtype):
        return reference.rms_norm(x, weight, eps)
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which products of this dtype are computed.

    A CPU without matrix units computes bfloat16 products at about half the rate of float32 ones (docs/lab-log.md), so its
    operands are widened, a piece at a time; the result is rounded back, as a product in bfloat16 rounds its sums.
    """
    narrow = dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if narrow and device.type == "cpu" and not _MATRIX_UNITS else dtype


def canvas_head_choice(positions: int, vocab_size: int, kernels: Kernels = "auto") -> Choice:
    """The implementation for the canvas head.

    Args:
        positions: of a canvas; how many there are has no part in it.
        vocab_size: tokens.
        kernels: what was asked for.
    """
    if kernels == "plain":
        return Choice("plain", "asked for")
    if positions * vocab_size <= PLAIN_HEAD_LIMIT:
        return Choice("plain", f"{positions} x {vocab_size} logits are few: fewer calls")
    return Choice("tiled", f"{positions} x {vocab_size} logits are more than is worth holding")


def canvas_head(
    hidden_BLD: Tensor,
    table_VD: Table,
    cap: float | None,
    temperature_B: Tensor,
    keys_BL: Tensor,
    likely_BL: Tensor,
    *,
    soft: SoftPositions,
    top: int = 0,
    top_at_M: Tensor | None = None,
    positions: int | None = None,
    kernels: Kernels = "auto",
    invariance: BatchInvariance = AS_THEY_COME,
) -> Statistics:
    """Head product, soft cap, temperature, argmax, draw, entropy and soft embedding; see ``reference.canvas_head``.

    Args:
        hidden_BLD: ``[B, L, D]`` final hidden states.
        table_VD: ``[V, D]`` the tied head, of any dtype, or packed; results have the hidden states' dtype.
        cap: of the logits; None: none.
        temperature_B: ``[B]`` float32.
        keys_BL: ``[B, L]`` int64, of the draw.
        likely_BL: ``[B, L]`` int64, tokens thought to be probable; they change the time, not the result.
        soft: where the soft embedding is wanted, and of how many tokens.
        top, top_at_M: see ``reference.canvas_head``.
        positions: of a canvas, which the implementation and its tiles are chosen by; None: L.
        kernels: ``plain`` for the reference.
        invariance: how the positions of all rows are filled up.
    """
    rows, length = keys_BL.shape
    positions = positions or length
    given = (hidden_BLD, temperature_B, keys_BL, likely_BL)
    if filled := bool(keys_BL.numel() % invariance.rows):
        # Each position as a row of its own.
        temperature_N = temperature_B.repeat_interleave(length)
        flat = (hidden_BLD.flatten(0, 1)[:, None], temperature_N, keys_BL.reshape(-1, 1), likely_BL.reshape(-1, 1))
        given = (invariance.fill(flat[0]), invariance.fill(flat[1]), invariance.fill(flat[2]), invariance.fill(flat[3]))
    hidden, temperature_, keys, likely = given
    if canvas_head_choice(positions, table_VD.shape[0], kernels).name == "plain":
        result = reference.canvas_head(hidden, table_VD, cap, temperature_, keys, soft=soft, top=top, top_at_M=top_at_M)
    else:
        result = tiled.canvas_head(
            hidden, table_VD, cap, temperature_, keys, likely, soft=soft, top=top, top_at_M=top_at_M,
            compute=product_dtype(hidden.dtype, hidden.device), width=tiled.tile_width(positions), invariance=invariance,
        )  # fmt: skip
    if not filled:
        return result
    best, drawn, entropy, probability = (one[: rows * length].view(rows, length) for one in result[:4])
    soft_BLD = None if result.soft_BLD is None else result.soft_BLD[: rows * length].view(rows, length, -1)
    return Statistics(best, drawn, entropy, probability, soft_BLD, result.top_ids_MK, result.top_z_MK)
