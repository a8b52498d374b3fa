"""Which implementation of an op runs, decided in one place from shapes, device and mode."""

from typing import NamedTuple

from torch import Tensor

from diffusiongemma.kernels import reference
from diffusiongemma.kernels.reference import Activation

__all__ = ["Choice", "experts", "experts_choice"]

DENSE_LIMIT = 1 << 16
"""Largest number of weights of one expert for which running all experts on all tokens is tried.

At the size of the built-in checkpoint this is quicker for one canvas and a little slower for fifty (docs/lab-log.md); it also
compiles as one piece, which training needs.
"""


class Choice(NamedTuple):
    """The name of an implementation and the reason it was taken."""

    name: str
    reason: str


def experts_choice(num_experts: int, chosen: int, expert_weights: int) -> Choice:
    """The implementation for a layer's experts.

    Args:
        num_experts: experts in the layer.
        chosen: experts a token is routed to.
        expert_weights: weights of one expert.
    """
    if num_experts <= 4 * chosen and expert_weights <= DENSE_LIMIT:
        return Choice("dense", f"{num_experts} experts of {expert_weights} weights: two products beat {num_experts} small ones")
    return Choice("grouped", f"{num_experts} experts of {expert_weights} weights, {chosen} chosen: only the chosen are computed")


def experts(x_TD: Tensor, index_TX: Tensor, weight_TX: Tensor, gate_up_EID: Tensor, down_EDI: Tensor, act: Activation) -> Tensor:
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
    chosen = index_TX.shape[1]
    choice = experts_choice(gate_up_EID.shape[0], chosen, gate_up_EID[0].numel() + down_EDI[0].numel())
    run = reference.experts_dense if choice.name == "dense" else reference.experts_grouped
    return run(x_TD, index_TX, weight_TX, gate_up_EID, down_EDI, act)
