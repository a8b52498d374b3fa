"""Low-rank adapters (LoRA): a small trained difference beside a matrix that stays as it is, plain or packed.

A matrix ``W`` of a linear becomes ``W + scale * B @ A``. One stack serves both roles, so an adapter does too.
Source: PEFT 0.21 ``LoraConfig``. Shapes: R rank, K inputs, N outputs.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma.model.layers import Linear, LowRank
from diffusiongemma.model.transformer import Transformer

__all__ = ["TARGETS", "Pair", "adapted", "attach", "fold", "new_pairs"]

TARGETS = {
    "attention": r"layers\.\d+\.self_attn\.[qkvo]_proj",
    "mlp": r"layers\.\d+\.mlp\.(gate|up|down)_proj",
    "self_conditioning": r"self_conditioning\.(gate|up|down)_proj",
}
"""What may be adapted: our names of the linears."""


class Pair(NamedTuple):
    """An adapter of one linear.

    Attributes:
        a_RK: ``[R, K]`` float32.
        b_NR: ``[N, R]`` float32.
        scale: factor on their product.
    """

    a_RK: Tensor
    b_NR: Tensor
    scale: float


def linears(model: Transformer) -> Iterator[tuple[str, Linear]]:
    """The linears of a model by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Linear))


def new_pairs(model: Transformer, rank: int, alpha: float, targets: Sequence[str], generator: torch.Generator) -> dict[str, Pair]:
    """Adapters that change nothing yet: ``A`` is random (as Kaiming's uniform), ``B`` is zeros.

    Args:
        model: to be adapted.
        rank: R.
        alpha: the scale is ``alpha / rank``.
        targets: of ``TARGETS``.
        generator: of the random numbers.
    """
    pattern = re.compile("|".join(TARGETS[target] for target in targets))
    result = {}
    for name, linear in linears(model):
        if pattern.fullmatch(name):
            bound = linear.in_features**-0.5
            a_RK = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
            result[name] = Pair(a_RK, torch.zeros(linear.out_features, rank), alpha / rank)
    return result


def attach(model: Transformer, pairs: Mapping[str, Pair]) -> None:
    """Put adapters beside a model's linears; those that are there are replaced.

    Args:
        model: is changed.
        pairs: by our names of linears, in their shapes.
    """
    modules = dict(linears(model))
    for name, pair in pairs.items():
        modules[name].lora = LowRank(pair.a_RK.to(model.device), pair.b_NR.to(model.device), pair.scale)


def adapted(model: Transformer) -> dict[str, Pair]:
    """The adapters of a model, by our names of linears; what they hold is shared with it."""
    found = ((name, linear.lora) for name, linear in linears(model) if linear.lora is not None)
    return {name: Pair(lora.a_RK, lora.b_NR, lora.scale) for name, lora in found}


@torch.no_grad()
def fold(model: Transformer) -> None:
    """Add the adapters of a model with plain weights to these, once, and take them off.

    Args:
        model: is changed; its adapted linears have no packed weights.
    """
    for _, linear in linears(model):
        if (lora := linear.lora) is not None:
            # The stored weight may be shared with a mapped file.
            summed = linear.weight.float() + lora.scale * (lora.b_NR @ lora.a_RK)
            linear.weight = torch.nn.Parameter(summed.to(linear.weight.dtype), requires_grad=False)
            linear.lora = None
