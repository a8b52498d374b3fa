"""A model whose weights are packed, written back in the form that they were read from."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffusiongemma.errors import CheckpointError
from diffusiongemma.generation.opened import Opened, open_checkpoint
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.quant import PackedWeight
from diffusiongemma.weights.copying import copy_packed

__all__ = ["save_packed"]

_EXPANDED = "save_pretrained(..., dequantize=True) writes its weights expanded, in bfloat16"


def save_packed(
    transformer: Transformer, source: Path | None, target: Path, files: Mapping[str, Path | bytes], told: tuple[object, ...]
) -> None:
    """Write a packed model. Records have no writers of their own: what is stored is copied, once it has been seen to be the same.

    Args:
        transformer: the stack.
        source: the folder or GGUF file that it was loaded from.
        target: a folder.
        files: what belongs beside the weights of a folder; a GGUF file stands alone.
        told: sampling defaults and stop tokens, which a GGUF file holds itself.

    Raises:
        CheckpointError: weights that have no stored form, or are not those of the source.
    """
    if not all(record.exact for _, record in transformer.packed()):
        raise CheckpointError(
            "this model's weights were rounded to int8 as they were loaded, which is no format of a file; save the model loaded "
            f"without quantize, or write an INT8 checkpoint: diffusiongemma quantize MODEL OUT --format int8. {_EXPANDED}"
        )
    if source is None:
        raise CheckpointError(f"this model's weights are packed, and it has no checkpoint to copy them from; {_EXPANDED}")
    opened = open_checkpoint(source)
    changed = _changed(transformer, opened)
    if opened.metadata is not None and told != (opened.defaults, opened.stop_ids):
        raise CheckpointError(
            f"the sampling defaults or stop tokens are not those of {source}, where they are part of the file; {_EXPANDED}, "
            "and these beside them"
        )
    copy_packed(source, target, changed, {} if opened.metadata is not None else files)


@torch.inference_mode()
def _changed(transformer: Transformer, opened: Opened) -> dict[str, Tensor]:
    """The plain tensors that are not as they are stored; packed ones must be."""
    packed, plain = dict(transformer.packed()), transformer.state_dict()
    changed = {}
    for name, stored in opened.load(None):
        if isinstance(stored, PackedWeight):
            if name not in packed or not _equal(packed[name], stored):
                raise CheckpointError(f"{name} in {opened.path} is not this model's: the checkpoint was replaced. {_EXPANDED}")
        elif not torch.equal(stored.to(plain[name].dtype), plain[name].cpu()):
            changed[name] = plain[name]
    return changed


def _equal(ours: PackedWeight, stored: PackedWeight) -> bool:
    """Whether two records are the same, bit for bit."""
    mine, theirs = ours.tensors(), stored.tensors()
    if (ours.kind, ours.shape, mine.keys()) != (stored.kind, stored.shape, theirs.keys()):
        return False
    return all(torch.equal(_bytes(mine[name].cpu()), _bytes(tensor)) for name, tensor in theirs.items())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
