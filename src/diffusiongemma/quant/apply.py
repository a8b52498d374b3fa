"""How layers use a weight, whether it is a plain tensor or packed.

The dtype of the weights and that of the computation are apart: ``x`` brings the latter. Plain tensors of x's dtype take the
kernels' way at no cost; everything else is widened or dequantised a tile of rows at a time,
and gives in float32 the bits that plain weights of the same values give.
Shapes: T tokens, X chosen experts, D hidden, I expert width, E experts, V vocabulary, N rows, K columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusiongemma import kernels
from diffusiongemma.kernels.int8 import Int8Rows, quantize_rows
from diffusiongemma.quant.fast_int8 import FastInt8
from diffusiongemma.quant.packed import PackedWeight

__all__ = ["Weight", "experts", "linear", "mix_rows"]

Weight = Tensor | PackedWeight
TABLE_ROWS = 1024
"""Rows of a table that are mixed at once: fewer would add to the sums more often than it saves memory."""


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: ``[..., K] -> [..., N]`` in x's dtype."""
    if isinstance(weight, Tensor):
        return kernels.linear(x, weight, bias)
    wide = x.to(kernels.product_dtype(x.dtype, x.device))
    out_TN = weight.apply(wide.reshape(-1, weight.shape[1]))
    if bias is not None:
        out_TN += bias
    return out_TN.view(*x.shape[:-1], weight.shape[0]).to(x.dtype)


def experts(
    x_TD: Tensor, index_TX: Tensor, weight_TX: Tensor, gate_up: Weight, down: Weight, act: Callable[[Tensor], Tensor]
) -> Tensor:
    """Mixture of experts; see ``kernels.experts``. Of packed stacks only the experts that have tokens are dequantised.

    Args:
        x_TD: ``[T, D]`` normed tokens.
        index_TX: ``[T, X]`` int64, the experts each token is routed to.
        weight_TX: ``[T, X]`` float32, their weights.
        gate_up: ``[E, 2I, D]``, gate rows first.
        down: ``[E, D, I]``.
        act: the activation of the gate.
    """
    if isinstance(gate_up, Tensor) and isinstance(down, Tensor) and gate_up.dtype == down.dtype == x_TD.dtype:
        return kernels.experts(x_TD, index_TX, weight_TX, gate_up, down, act)
    numbers = sum(weight.shape[-2] * weight.shape[-1] for weight in (gate_up, down))
    exact = all(isinstance(weight, Tensor) or weight.exact for weight in (gate_up, down))
    if exact and kernels.experts_choice(gate_up.shape[0], index_TX.shape[1], numbers, x_TD.dtype).name == "dense":
        # So small that all of them cost less than a loop; and a twin of plain weights has the same bits.
        return kernels.experts(x_TD, index_TX, weight_TX, _whole(gate_up, x_TD.dtype), _whole(down, x_TD.dtype), act)
    order, source = kernels.by_expert(index_TX)
    counts = torch.bincount(index_TX.reshape(-1), minlength=gate_up.shape[0]).tolist()
    if isinstance(gate_up, FastInt8) and isinstance(down, FastInt8):
        inner = _each_expert(quantize_rows(x_TD, gate_up.largest).take(source), counts, gate_up)
        gate, up = inner.chunk(2, dim=-1)
        out = _each_expert(quantize_rows(act(gate) * up, down.largest), counts, down)
        out *= weight_TX.reshape(-1)[order].unsqueeze(-1)
        return out.new_zeros(x_TD.shape).index_add_(0, source, out).to(x_TD.dtype)
    wide = x_TD.to(kernels.product_dtype(x_TD.dtype, x_TD.device))
    rows_SD = wide[source]
    parts, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            gate, up = linear(rows_SD[start : start + count], _expert(gate_up, expert)).chunk(2, dim=-1)
            parts.append(linear(act(gate) * up, _expert(down, expert)))
            start += count
    out = torch.cat(parts) * weight_TX.reshape(-1)[order].unsqueeze(-1)
    return torch.zeros_like(wide).index_add_(0, source, out.to(wide.dtype)).to(x_TD.dtype)


def _each_expert(rows: Int8Rows, counts: list[int], stack: FastInt8) -> Tensor:
    """Rows in the order of their experts, each times its expert's matrix: float32."""
    out = torch.empty(len(rows.codes), stack.shape[1])
    start = 0
    for expert, count in enumerate(counts):
        if count:
            span = slice(start, start + count)
            out[span] = stack.expert(expert).product_of_rows(rows.take(span))
            start += count
    return out


def mix_rows(probs: Tensor, weight: Weight) -> Tensor:
    """``probs @ table`` in probs's dtype: ``[..., V] -> [..., D]``."""
    if isinstance(weight, Tensor) and weight.dtype == probs.dtype:
        return probs @ weight
    compute = kernels.product_dtype(probs.dtype, probs.device)
    size, columns = weight.shape
    mixed = probs.new_zeros(*probs.shape[:-1], columns, dtype=compute)
    for start in range(0, size, TABLE_ROWS):
        end = min(start + TABLE_ROWS, size)
        mixed += probs[..., start:end].to(compute) @ kernels.table_tile(weight, start, end, compute)
    return mixed.to(probs.dtype)


def _whole(weight: Weight, dtype: torch.dtype) -> Tensor:
    """A small stack with all its values."""
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    rows = slice(0, weight.shape[1])
    return torch.stack([weight.expert(index).operand(rows) for index in range(weight.shape[0])]).to(dtype)


def _expert(weight: Weight, index: int) -> Weight:
    return weight[index] if isinstance(weight, Tensor) else weight.expert(index)
