"""A packed checkpoint written back as it is stored: its files are copied, and plain tensors that changed are put in."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma.errors import CheckpointError
from diffusiongemma.text.files import is_there
from diffusiongemma.weights import gguf_names, names
from diffusiongemma.weights.companions import left_behind
from diffusiongemma.weights.gguf import GGUFFile
from diffusiongemma.weights.gguf_load import PLAIN
from diffusiongemma.weights.headers import FLOATS
from diffusiongemma.weights.load import QUANT_CONFIG
from diffusiongemma.weights.replacement import Replacement
from diffusiongemma.weights.stream import INDEX, SINGLE, stored_tensors, tensor_files
from diffusiongemma.weights.tensor_bytes import DTYPES

__all__ = ["copy_packed"]


class _Place(NamedTuple):
    """Where a plain tensor is stored."""

    path: Path
    start: int
    dtype: torch.dtype
    ours: str


def copy_packed(source: Path, target: Path, changed: Mapping[str, Tensor], files: Mapping[str, Path | bytes]) -> None:
    """Write a checkpoint like another, all of it or nothing; no tensor is held.

    Args:
        source: a folder of safetensors, or a GGUF file.
        target: a folder, made if it is not there.
        changed: plain tensors, by our names, to be stored in place of the source's, in its dtypes.
        files: names in the folder -> contents, or files to copy.

    Raises:
        CheckpointError: the folder cannot be written, or has another GGUF file.
    """
    weights = [source] if source.is_file() else list(tensor_files(source))
    notes = [] if source.is_file() else [source / name for name in (INDEX, QUANT_CONFIG) if is_there(source / name)]
    if source.is_file() and (others := [path.name for path in sorted(target.glob("*.gguf")) if path.name != source.name]):
        raise CheckpointError(f"{target} has the GGUF file {others[0]}; two in one folder could not be told apart. Give another")
    try:
        with Replacement(target) as new:
            copies = {path: new.file(path.name) for path in weights}
            for path, copy in copies.items():
                shutil.copyfile(path, copy)
            for place in _places(source):
                if place.ours in changed:
                    _put(copies[place.path], place, changed[place.ours])
            for name, content in {**{path.name: path for path in notes}, **files}.items():
                new.content(name, content if isinstance(content, bytes) else content.read_bytes())
            written = {*(path.name for path in (*weights, *notes)), *files}
            old = [*left_behind(target, files), target / SINGLE]
            for path in old:
                if path.name not in written:
                    new.remove(path)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{target} cannot be written: {error}") from error


def _places(source: Path) -> Iterator[_Place]:
    """Of every plain tensor; a tied one may have several."""
    if source.is_file():
        for tensor in GGUFFile(source).tensors.values():
            ours = gguf_names.to_ours(tensor.name)
            if ours is not None and tensor.block.name in PLAIN:
                yield _Place(source, tensor.start, PLAIN[tensor.block.name], ours)
        return
    for name, stored in stored_tensors(source).items():
        plain = names.to_ours(name)
        if plain is not None and stored.dtype in FLOATS:
            yield _Place(stored.path, stored.start, DTYPES[stored.dtype], plain)


def _put(copy: Path, place: _Place, value: Tensor) -> None:
    content = value.detach().to("cpu", place.dtype).contiguous().reshape(-1).view(torch.uint8)
    with copy.open("rb+") as file:
        file.seek(place.start)
        file.write(content.numpy().data)
