"""A checkpoint folder -> a Transformer with every tensor in its place, or an error that names what is wrong."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusiongemma.errors import CheckpointError, ConfigError
from diffusiongemma.weights.companions import left_behind
from diffusiongemma.weights.headers import FLOATS, Stored
from diffusiongemma.weights.names import ENCODER, VISION_PREFIXES, is_tied_copy, to_checkpoint, to_ours
from diffusiongemma.weights.replacement import Replacement
from diffusiongemma.weights.stream import SINGLE, json_bytes, stream_tensors, write_tensors

__all__ = ["fill", "refuse_other_sizes", "refuse_quantised", "save", "vision_tensors"]

log = logging.getLogger(__name__)
# Tensors that only a quantised checkpoint has.
_QUANTISED_SUFFIXES = (
    "weight_packed", "weight_scale", "weight_scale_2", "weight_scale_inv", "weight_shape", "input_scale",
    "qweight", "qzeros", "scales",
)  # fmt: skip


def fill(targets: Mapping[str, Tensor], folder: Path, progress: Callable[[str, int], None] | None = None) -> None:
    """Copy a checkpoint's tensors into our parameters and buffers, each converted to its target's dtype.

    Args:
        targets: our name -> tensor to fill, all of them.
        folder: the checkpoint.
        progress: called with each tensor's name and size in bytes.

    Raises:
        CheckpointError: a missing, left-over, unknown, mis-shaped, quantised or damaged tensor, or a second copy of a tied
            tensor that differs from the first.
    """
    filled: set[str] = set()
    skipped = 0
    unknown = []
    for name, tensor in stream_tensors(folder):
        if progress:
            progress(name, tensor.nbytes)
        if name.startswith(VISION_PREFIXES):
            skipped += 1
            continue
        ours = to_ours(name)
        if ours is None or ours not in targets:
            if name.endswith(_QUANTISED_SUFFIXES):
                raise CheckpointError(
                    f"{folder} is quantised (it has {name}); quantised checkpoints are not read yet. Use the bfloat16 checkpoint"
                )
            unknown.append(name)
            continue
        target = targets[ours]
        if tensor.shape != target.shape:
            raise CheckpointError(
                f"{name} has shape {list(tensor.shape)}; config.json asks for {list(target.shape)}. "
                "The weights and config.json are not of the same model"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name} has dtype {tensor.dtype}; a floating-point tensor is needed")
        converted = tensor.to(target.dtype)
        if ours in filled:
            if not torch.equal(converted, target.cpu()):
                raise CheckpointError(
                    f"{name} differs from {to_checkpoint(ours)}, its tied copy; only checkpoints whose copies are equal are read"
                )
            continue
        with torch.no_grad():
            target.copy_(converted)
        filled.add(ours)
    if unknown:
        raise CheckpointError(
            f"{folder} has {len(unknown)} tensor(s) that this model has no place for: {', '.join(unknown[:5])}"
            f"{' and more' if len(unknown) > 5 else ''}; config.json does not describe these weights"
        )
    if missing := sorted(set(targets) - filled):
        names = [to_checkpoint(name) for name in missing]
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensor(s): {', '.join(names[:5])}{' and more' if len(names) > 5 else ''}; "
            "download the rest of the checkpoint, or mend config.json"
        )
    if skipped:
        log.info("%s: %d vision tensors are not loaded: images are not supported yet", folder, skipped)


def refuse_quantised(quantization: Mapping[str, object] | None, folder: Path) -> None:
    """Refuse a checkpoint whose config.json says that its weights are quantised, before anything is allocated.

    Raises:
        CheckpointError: it does.
    """
    if quantization is not None:
        raise CheckpointError(
            f"{folder} is quantised ({quantization.get('quant_method', 'unknown method')}); quantised checkpoints are not read "
            "yet. Use the bfloat16 checkpoint, for example google/diffusiongemma-26B-A4B-it"
        )


def refuse_other_sizes(stored: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Refuse a config.json whose sizes are not those of the weights, before anything of these sizes is allocated.

    Args:
        stored: what the headers of the weights say.
        expected: what config.json asks for, by our names.
        folder: the checkpoint, for errors.

    Raises:
        CheckpointError: another shape, or more elements than the files could hold at one bit each.
    """
    for ours, shape in expected.items():
        name = to_checkpoint(ours)
        found = stored.get(name)
        if found is not None and found.dtype in FLOATS and found.shape != shape:
            raise CheckpointError(
                f"{name} has shape {list(found.shape)}; config.json asks for {list(shape)}. "
                "The weights and config.json are not of the same model"
            )
    elements, there = sum(map(math.prod, expected.values())), sum(tensor.nbytes for tensor in stored.values())
    if elements > 8 * there:
        raise CheckpointError(
            f"config.json asks for {elements:,} parameters, and the weights of {folder} have {there:,} bytes. "
            "The weights and config.json are not of the same model"
        )


def vision_tensors(folder: Path) -> dict[str, Tensor]:
    """The vision part of a checkpoint as it stands, for copying into a saved folder."""
    return dict(stream_tensors(folder, lambda name: name.startswith(VISION_PREFIXES)))


def save(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    extra: Mapping[str, Tensor],
    files: Mapping[str, Path | bytes] = {},
) -> None:
    """Write ``model.safetensors``, ``config.json`` and small files as transformers loads them; all of them or none.

    Args:
        folder: made if it is not there; an index in it goes with the shards that it names.
        tensors: our name -> tensor.
        config: content of config.json; ``dtype`` is added, to vision_config too where its tensors have another one.
        extra: checkpoint names -> tensors to copy as they are (vision).
        files: names in the folder -> contents, or files to copy.

    Raises:
        CheckpointError: the folder cannot be written, or a name of ``extra`` is one of ours.
        ConfigError: the tensors have several dtypes.
    """
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1:
        raise ConfigError(f"the weights have several dtypes ({', '.join(sorted(map(str, dtypes)))}); convert them to one first")
    dtype = str(dtypes.pop()).removeprefix("torch.")
    named = {to_checkpoint(name): tensor.detach().cpu() for name, tensor in tensors.items()}
    # transformers ties weights but not biases, so it wants the encoder's copies of those.
    named |= {ENCODER + name: tensor.detach().cpu().clone() for name, tensor in tensors.items() if name.endswith(".bias")}
    clash = sorted(name for name in extra if is_tied_copy(name) or name in named)
    if clash:
        raise CheckpointError(f"extra tensors would overwrite {', '.join(clash)}")
    config = {**config, "dtype": dtype, "text_config": dict(config["text_config"])}
    if "dtype" in config["text_config"]:
        config["text_config"]["dtype"] = dtype
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in extra.values()}
    if len(kinds) == 1 and kinds != {dtype} and isinstance(config.get("vision_config"), Mapping):
        config["vision_config"] = {**config["vision_config"], "dtype": kinds.pop()}
    try:
        with Replacement(folder) as new:
            write_tensors(new.file(SINGLE), {**named, **extra})
            new.content("config.json", json_bytes(config))
            for name, content in files.items():
                new.content(name, content if isinstance(content, bytes) else content.read_bytes())
            for path in left_behind(folder, files):
                new.remove(path)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder} cannot be written: {error}") from error
