"""A checkpoint with everything read but its weights: a folder of safetensors, or a GGUF file, from which all comes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.errors import CheckpointError, ConfigError
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.expected import text_shapes
from diffusiongemma.options.sampling import OWN_FIELD, OWN_SAMPLING
from diffusiongemma.quant import StoredWeight
from diffusiongemma.text.files import is_there, read_json
from diffusiongemma.text.gguf_tokenizer import GGUFTokenizer
from diffusiongemma.text.tokenizer import Tokenizer
from diffusiongemma.weights.gguf import GGUFFile
from diffusiongemma.weights.gguf_config import config_of, generation_config_of
from diffusiongemma.weights.gguf_load import read_weights
from diffusiongemma.weights.load import open_weights
from diffusiongemma.weights.stream import json_bytes

__all__ = ["Opened", "generation_config", "gguf_config", "open_checkpoint", "read_config", "sampling_files", "sampling_of"]

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Opened:
    """What a model is made of.

    Attributes:
        path: the folder, or the GGUF file.
        config: the configuration.
        tokenizer: the tokenizer.
        defaults: of the sampler.
        stop_ids: token ids that end an answer.
        quantised: whether some weights are packed.
        nbytes: of the weights, as they are read.
        load: yields every weight once, by our names; told each tensor's name and size in bytes. Nothing large is allocated
            before it is called.
        metadata: of a GGUF file; None: of a folder.
    """

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    defaults: SamplingParams
    stop_ids: tuple[int, ...]
    quantised: bool
    nbytes: int
    load: Callable[[Progress | None], Iterator[tuple[str, StoredWeight]]]
    metadata: Mapping[str, Any] | None = None


def open_checkpoint(path: Path) -> Opened:
    """Read what is small of a checkpoint and check what there is to load.

    Args:
        path: a folder, or a GGUF file (``weights.resolve``).

    Raises:
        CheckpointError: files that are incomplete, damaged or of a format that is not read.
        ConfigError: a configuration that this runtime does not follow.
    """
    return _open_gguf(path) if path.is_file() else _open_folder(path)


def read_config(path: Path) -> ModelConfig:
    """The configuration of a checkpoint: a folder with a config.json, or a GGUF file.

    Raises: see ``gguf_config`` and ``ModelConfig.from_dict``.
    """
    return gguf_config(GGUFFile(path)) if path.is_file() else ModelConfig.from_dict(read_json(path / "config.json"))


def sampling_of(path: Path, config: ModelConfig) -> SamplingParams:
    """The sampling defaults of a checkpoint: a folder, or a GGUF file.

    Raises:
        CheckpointError: a file that cannot be read.
        ConfigError: a value outside what is allowed.
    """
    if path.is_file():
        return SamplingParams.from_generation_config(generation_config_of(GGUFFile(path).metadata, path))
    return SamplingParams.from_generation_config(generation_config(path, config))


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


def generation_config(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """The content of generation_config.json, or what config.json (of mlx) holds in its place, with ``sampling.json`` as a field."""
    path = folder / "generation_config.json"
    content = read_json(path) if is_there(path) else dict(config.source.get("generation_config") or {})
    if not is_there(folder / OWN_SAMPLING):
        return content
    return content | {OWN_FIELD: (content.get(OWN_FIELD) or {}) | read_json(folder / OWN_SAMPLING)}


def sampling_files(content: Mapping[str, Any]) -> dict[str, bytes]:
    """The files that hold what ``generation_config`` gives."""
    theirs = {name: value for name, value in content.items() if name != OWN_FIELD}
    own = content.get(OWN_FIELD)
    return {"generation_config.json": json_bytes(theirs), **({OWN_SAMPLING: json_bytes(own)} if own else {})}


def _open_folder(folder: Path) -> Opened:
    config = ModelConfig.from_dict(read_json(folder / "config.json"))
    generation = generation_config(folder, config)
    defaults = SamplingParams.from_generation_config(generation)
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise CheckpointError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, config.json a vocabulary of {config.text.vocab_size}"
        )
    weights = open_weights(folder, text_shapes(config.text), config.quantization)
    stop_ids = _stop_ids(generation, config)
    return Opened(folder, config, tokenizer, defaults, stop_ids, weights.quantised, weights.file_bytes, weights.load)


def _open_gguf(path: Path) -> Opened:
    file = GGUFFile(path)
    config = gguf_config(file)
    generation = generation_config_of(file.metadata, path)
    defaults = SamplingParams.from_generation_config(generation)
    stop_ids = tuple(generation["eos_token_id"])
    if wrong := [token for token in stop_ids if not 0 <= token < config.text.vocab_size]:
        raise CheckpointError(f"{path}: the end token is {wrong[0]}; it must be from 0 to {config.text.vocab_size - 1}")
    shapes = text_shapes(config.text)
    # Names and shapes are checked here, and nothing is read.
    read_weights(file, shapes)
    tokenizer = GGUFTokenizer.from_metadata(file.metadata, path)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise CheckpointError(
            f"{path}: the vocabulary has {tokenizer.vocab_size} tokens, the embedding {config.text.vocab_size} rows"
        )
    quantised = any(tensor.block.weights > 1 for tensor in file.tensors.values())
    load = lambda progress: read_weights(file, shapes, progress)  # noqa: E731
    return Opened(path, config, tokenizer, defaults, stop_ids, quantised, file.nbytes, load, file.metadata)


def _stop_ids(generation: Mapping[str, object], config: ModelConfig) -> tuple[int, ...]:
    """Stop tokens: generation_config.json's where it names any, else config.json's."""
    stop = generation.get("eos_token_id")
    result = list(config.stop_ids) if stop is None else stop if isinstance(stop, list) else [stop]
    ids = tuple(token for token in result if isinstance(token, int) and 0 <= token < config.text.vocab_size)
    if len(ids) != len(result):
        raise ConfigError(f"eos_token_id is {stop!r}; it must hold token ids from 0 to {config.text.vocab_size - 1}")
    return ids
