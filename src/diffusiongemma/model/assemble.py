"""Named weights, as a checkpoint yields them, to a transformer."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.packable import Packable
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.quant import PackedWeight

__all__ = ["assemble", "shapes_of"]


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, by name; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}


def assemble(
    config: ModelConfig,
    weights: Iterable[tuple[str, Tensor | PackedWeight]],
    dtype: torch.dtype,
    device: torch.device,
    *,
    keep: bool,
) -> Transformer:
    """A transformer of weights that are put in place one by one; nothing else is allocated.

    Args:
        config: its configuration.
        weights: name and weight, each name of ``shapes_of`` once and of its shape. A plain tensor that already has its dtype and
            device is taken as it is: a view of a mapped file stays one.
        dtype: of the computation and of the cache.
        device: of the weights.
        keep: whether plain matrices keep the dtype that they are stored in, on a CPU: bfloat16 ones then take half the memory
            that a computation in float32 would have them take (on a GPU, which computes in 16 bits, all take ``dtype``).

    Returns:
        The model in evaluation mode; no weight takes gradients.
    """
    with torch.device("meta"):
        transformer = Transformer(config)
    transformer.requires_grad_(False)
    for name, weight in weights:
        parent, _, leaf = name.rpartition(".")
        module = transformer.get_submodule(parent)
        if isinstance(weight, PackedWeight):
            assert isinstance(module, Packable), f"{name} cannot be packed"
            module.pack(leaf, weight.to(device))
            continue
        kept = keep and weight.ndim > 1 and device.type == "cpu"
        placed = weight.to(device, weight.dtype if kept else dtype)
        if leaf in dict(module.named_buffers(recurse=False)):
            module.register_buffer(leaf, placed)
        else:
            module.register_parameter(leaf, nn.Parameter(placed, requires_grad=False))
    empty = [name for name, tensor in transformer.state_dict().items() if tensor.is_meta]
    assert not empty, f"no weights for {', '.join(empty[:5])}"
    transformer.compute_dtype = dtype
    return transformer.eval()
