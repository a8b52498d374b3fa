"""A GGUF file -> all that a model is made of; everything comes from the one file."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from diffusiongemma.errors import CheckpointError, ConfigError
from diffusiongemma.model.assemble import assemble
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.expected import text_shapes
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.sampler import SamplingParams
from diffusiongemma.text.gguf_tokenizer import GGUFTokenizer
from diffusiongemma.weights.gguf import GGUFFile
from diffusiongemma.weights.gguf_config import config_of, generation_config_of
from diffusiongemma.weights.gguf_load import read_weights
from diffusiongemma.weights.stream import read_json

__all__ = ["GGUFModel", "gguf_config", "load_gguf", "read_config"]


class GGUFModel(NamedTuple):
    """What ``DiffusionGemmaModel`` takes, in its order."""

    transformer: Transformer
    tokenizer: GGUFTokenizer
    defaults: SamplingParams
    stop_ids: tuple[int, ...]


def gguf_config(file: GGUFFile) -> ModelConfig:
    """The configuration that a file's metadata describes.

    Raises:
        CheckpointError: another architecture, or metadata that is incomplete.
        ConfigError: sizes that do not fit together.
    """
    try:
        return ModelConfig.from_dict(config_of(file))
    except ConfigError as error:
        raise ConfigError(f"{file.path}: its metadata, read as a config.json: {error}") from error


def read_config(path: Path) -> ModelConfig:
    """The configuration of a checkpoint: a folder with a config.json, or a GGUF file.

    Raises: see ``gguf_config`` and ``ModelConfig.from_dict``.
    """
    return gguf_config(GGUFFile(path)) if path.is_file() else ModelConfig.from_dict(read_json(path / "config.json"))


def load_gguf(
    path: Path, dtype: torch.dtype, device: torch.device, progress: Callable[[str, int], None] | None = None
) -> GGUFModel:
    """Load a GGUF file: quantised matrices stay in its memory map, or go to the device as they are.

    Args:
        path: the file.
        dtype: of the computation, and of what is not quantised.
        device: of the weights.
        progress: called with each tensor's name and size in bytes.

    Raises:
        CheckpointError: a file that is damaged, incomplete, of another architecture or with blocks that are not read.
        ConfigError: a configuration that this runtime does not follow.
    """
    file = GGUFFile(path)
    config = gguf_config(file)
    generation = generation_config_of(file)
    defaults = SamplingParams.from_generation_config(generation)
    stop_ids = tuple(generation["eos_token_id"])
    if wrong := [token for token in stop_ids if not 0 <= token < config.text.vocab_size]:
        raise CheckpointError(f"{path}: the end token is {wrong[0]}; it must be from 0 to {config.text.vocab_size - 1}")
    weights = read_weights(file, text_shapes(config.text), progress)
    tokenizer = GGUFTokenizer.from_metadata(file.metadata, path)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise CheckpointError(
            f"{path}: the vocabulary has {tokenizer.vocab_size} tokens, the embedding {config.text.vocab_size} rows"
        )
    quantised = any(tensor.block.weights > 1 for tensor in file.tensors.values())
    return GGUFModel(assemble(config, weights, dtype, device, keep=quantised), tokenizer, defaults, stop_ids)
