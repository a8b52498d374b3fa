"""A checkpoint -> a quantised copy of it in a published format; memory stays bounded."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from diffusiongemma.errors import CheckpointError, OptionError
from diffusiongemma.generation.gguf_metadata import check_written, metadata_of, rope_freqs
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.expected import text_shapes
from diffusiongemma.opened import Opened, open_checkpoint
from diffusiongemma.text.files import read_json
from diffusiongemma.weights.gguf_write import WRITABLE, file_type, package, write_gguf
from diffusiongemma.weights.quantise import FORMATS, PartError, quantise

__all__ = ["quantize_checkpoint"]

_GGUF = "gguf:"


def quantize_checkpoint(
    source: Path,
    out: Path,
    kind: str,
    *,
    parts: Sequence[str] | None = None,
    search: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[PartError]:
    """Write a quantised copy.

    Args:
        source: a folder of 16- or 32-bit safetensors; for a GGUF file any checkpoint that is read.
        out: a new folder, or the one of an interrupted call; of a GGUF file the file's name.
        kind: ``fp8``, ``int8``, ``int4`` or ``nvfp4`` (``weights.quantise``), or ``gguf:`` and a block type
            (``weights.gguf_write.WRITABLE``, in small letters).
        parts: what is quantised; None: what the published recipes take.
        search: of formats other than GGUF, whose scales are those of the package ``gguf``.
        progress: called with bytes of the source done and in all.

    Returns:
        The error of each part of each layer.

    Raises:
        OptionError: an unknown format or part, or a model that the format cannot hold.
        CheckpointError: a source that is damaged or quantised already, or a target that is taken or holds something else.
        InputError: the package gguf is not installed.
    """
    if kind.startswith(_GGUF):
        return _write_gguf(open_checkpoint(source), out, kind.removeprefix(_GGUF).upper(), parts, progress)
    if kind not in FORMATS:
        gguf = ", ".join(_GGUF + name.lower() for name in WRITABLE)
        raise OptionError(f"format is {kind!r}; allowed: {', '.join(FORMATS)}, {gguf}")
    if source.is_file():
        raise CheckpointError(f"{source} is a GGUF file; {kind} is made of 16- or 32-bit safetensors, start from those")
    config = ModelConfig.from_dict(read_json(source / "config.json")).to_dict()
    config.pop("quantization_config", None)
    return quantise(source, out, kind, config, parts=parts, search=search, progress=progress)


def _write_gguf(
    opened: Opened, out: Path, kind: str, parts: Sequence[str] | None, progress: Callable[[int, int], None]
) -> list[PartError]:
    package()
    if out.suffix.lower() != ".gguf":
        raise OptionError(f"{out} does not end in .gguf; a GGUF copy is one file, give its name")
    config, done = opened.config, 0
    if opened.metadata is None:
        name = str(config.source.get("_name_or_path") or opened.path.name)
        metadata = metadata_of(config, opened.tokenizer, opened.defaults, opened.stop_ids, name)
    else:
        metadata = dict(opened.metadata)

    def advance(_: str, size: int) -> None:
        nonlocal done
        done += size
        progress(done, opened.nbytes)

    with torch.inference_mode():
        return write_gguf(
            out,
            kind,
            {**metadata, "general.file_type": file_type(kind)},
            opened.load(advance),
            text_shapes(config.text),
            rope_freqs(config.text),
            parts=parts,
            check=lambda path: check_written(path, config),
        )
