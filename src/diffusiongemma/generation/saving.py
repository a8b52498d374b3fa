"""A model written as a folder: plain weights as they are in memory, packed ones in the form that they were read from."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusiongemma.errors import CheckpointError, InputError
from diffusiongemma.generation.checkpoint import Checkpoint
from diffusiongemma.model.adapters import adapted
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.opened import Opened, generation_config, open_checkpoint, sampling_files
from diffusiongemma.options import OWN_FIELD
from diffusiongemma.quant import PackedWeight
from diffusiongemma.weights.companions import companions
from diffusiongemma.weights.copying import copy_packed
from diffusiongemma.weights.load import save as save_plain
from diffusiongemma.weights.load import vision_tensors
from diffusiongemma.weights.stream import json_bytes

__all__ = ["save"]

_EXPANDED = "save_pretrained(..., dequantize=True) writes its weights expanded, in bfloat16"


def save(checkpoint: Checkpoint, folder: str | os.PathLike[str], dequantize: bool) -> None:
    """Write a checkpoint (``DiffusionGemmaModel.save_pretrained``)."""
    if not isinstance(folder, str | os.PathLike):
        raise InputError(f"the folder is {folder!r:.100} of type {type(folder).__name__}; give a path", "folder")
    if adapted(checkpoint.transformer):
        raise InputError("the model has an adapter beside its weights; call merge_adapter() first to save their sum")
    target, transformer, source = Path(folder), checkpoint.transformer, _source(checkpoint)
    files: dict[str, Path | bytes] = {} if source is None else dict(companions(source, target))
    files |= checkpoint.tokenizer.files()
    files |= sampling_files(_generation_config(checkpoint))
    if not dequantize and next(transformer.packed(), None) is not None:
        files["config.json"] = json_bytes(checkpoint.config.to_dict())
        _save_packed(checkpoint, target, files)
        return
    extra = {} if source is None else vision_tensors(source)
    save_plain(target, _weights(transformer), replace(checkpoint.config, quantization=None).to_dict(), extra, files)


def _source(checkpoint: Checkpoint) -> Path | None:
    """The folder that was loaded; a GGUF file has none that belongs to it."""
    return checkpoint.folder if checkpoint.folder is not None and not checkpoint.folder.is_file() else None


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the files of sampling defaults say: what was read, but for what says something else now."""
    folder, text = _source(checkpoint), checkpoint.config.text
    source = {} if folder is None else generation_config(folder, checkpoint.config)
    ours = {"eos_token_id": list(checkpoint.stop_ids), **checkpoint.defaults.to_generation_config()}
    if not source:
        return {"bos_token_id": text.bos_token_id, "pad_token_id": text.pad_token_id, **ours}
    said = dict(source)
    if isinstance(said.get("eos_token_id"), int):
        said["eos_token_id"] = [said["eos_token_id"]]
    changed = {name: value for name, value in ours.items() if value != said.get(name)}
    # What transformers has no name for stands in a field of its own, which goes where nothing is left to say.
    return {**{name: value for name, value in source.items() if name != OWN_FIELD or name in ours}, **changed}


def _weights(transformer: Transformer) -> dict[str, Tensor]:
    weights = transformer.state_dict()
    if packed := dict(transformer.packed()):
        weights = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
        weights |= {name: record.expanded(torch.bfloat16) for name, record in packed.items()}
    return weights


def _save_packed(checkpoint: Checkpoint, target: Path, files: Mapping[str, Path | bytes]) -> None:
    """Write a packed model. Records have no writers of their own: what is stored is copied, once it has been seen to be the same.

    Args:
        checkpoint: the model.
        target: a folder.
        files: what belongs beside the weights of a folder; a GGUF file stands alone.

    Raises:
        CheckpointError: weights that have no stored form, or are not those of the source.
    """
    transformer, source = checkpoint.transformer, checkpoint.folder
    if not all(record.exact for _, record in transformer.packed()):
        raise CheckpointError(
            "this model's weights were rounded to int8 as they were loaded, which is no format of a file; save the model loaded "
            f"without quantize, or write an INT8 checkpoint: diffusiongemma quantize MODEL OUT --format int8. {_EXPANDED}"
        )
    if source is None:
        raise CheckpointError(f"this model's weights are packed, and it has no checkpoint to copy them from; {_EXPANDED}")
    opened = open_checkpoint(source)
    changed = _changed(transformer, opened)
    if opened.metadata is not None and (checkpoint.defaults, checkpoint.stop_ids) != (opened.defaults, opened.stop_ids):
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
