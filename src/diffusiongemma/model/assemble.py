"""Named weights, as a checkpoint yields them, to a transformer."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.packable import Packable
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.quant import PackedWeight

__all__ = ["assemble"]


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
        weights: name and weight, each of the model's once, in its shape.
        dtype: of the computation and of the cache.
        device: of the weights.
        keep: whether plain matrices stay as they are stored, on a CPU: views of a mapped file stay views, and bfloat16 takes
            half the memory that the dtype of a computation in float32 would. Otherwise, and on a GPU, all take ``dtype``.

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
        placed = weight if kept else weight.to(device, dtype, copy=True)
        if leaf in dict(module.named_buffers(recurse=False)):
            module.register_buffer(leaf, placed)
        else:
            module.register_parameter(leaf, nn.Parameter(placed, requires_grad=False))
    empty = [name for name, tensor in transformer.state_dict().items() if tensor.is_meta]
    assert not empty, f"no weights for {', '.join(empty[:5])}"
    transformer.compute_dtype = dtype
    return transformer.eval()
