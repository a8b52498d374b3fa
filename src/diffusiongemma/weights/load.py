"""A checkpoint folder -> its weights, or an error that names what is wrong; and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusiongemma.errors import CheckpointError, ConfigError
from diffusiongemma.text.files import is_there, read_json
from diffusiongemma.weights.checkpoint import SafetensorsWeights
from diffusiongemma.weights.companions import left_behind
from diffusiongemma.weights.names import ENCODER, VISION_PREFIXES, is_tied_copy, to_checkpoint
from diffusiongemma.weights.replacement import Replacement
from diffusiongemma.weights.stream import SINGLE, json_bytes, stored_tensors, stream_tensors, write_tensors

__all__ = ["modelopt_config", "open_weights", "save", "vision_tensors"]

QUANT_CONFIG = "hf_quant_config.json"
"""Where modelopt alone says how weights are quantised, if config.json does not."""


def open_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]], quantization: Mapping[str, Any] | None) -> SafetensorsWeights:
    """The weights of a checkpoint, checked from its headers; nothing is read yet and nothing allocated.

    Args:
        folder: the checkpoint.
        shapes: of our weights, as config.json asks for them, by name.
        quantization: config.json's ``quantization_config``, if it has one.

    Raises:
        CheckpointError: the tensors are not those of config.json, or a file is damaged.
    """
    return SafetensorsWeights(stored_tensors(folder), shapes, quantization or modelopt_config(folder), folder)


def modelopt_config(folder: Path) -> Mapping[str, Any] | None:
    """What modelopt says of the weights in a file of its own; None where there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not is_there(folder / QUANT_CONFIG):
        return None
    result = read_json(folder / QUANT_CONFIG).get("quantization")
    return result if isinstance(result, Mapping) else None


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
