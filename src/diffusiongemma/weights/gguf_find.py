"""Which GGUF file is meant: by a path, by a folder, by a hub repository that has several."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from diffusiongemma.errors import CheckpointError

__all__ = ["choose", "gguf_in", "is_gguf"]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its name or its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def gguf_in(folder: Path) -> Path | None:
    """The one GGUF model of a folder that has no safetensors weights; None where it has none.

    Raises:
        CheckpointError: it has several.
    """
    if any((folder / name).is_file() for name in _WEIGHTS):
        return None
    models = sorted(path for path in folder.glob("*.gguf") if path.is_file() and not _is_projector(path.name))
    if len(models) > 1:
        raise CheckpointError(
            f"{folder} has several GGUF files: {_listed([path.name for path in models])}; give the path of one of them"
        )
    return models[0] if models else None


def choose(names: Sequence[str], wanted: str | None, hub_id: str) -> str:
    """The one GGUF model among a repository's files.

    Args:
        names: all files of the repository.
        wanted: a file's name, or a part of one that stands by itself: ``Q4_K_M``; None: there must be only one.
        hub_id: for messages.

    Raises:
        CheckpointError: none, or several.
    """
    models = sorted(name for name in names if name.lower().endswith(".gguf") and not _is_projector(PurePosixPath(name).name))
    if not models:
        raise CheckpointError(f"{hub_id} has no GGUF file")
    result = models
    if wanted is not None:
        result = [name for name in models if wanted in (name, PurePosixPath(name).name)]
        part = re.compile(rf"(?<![^\W_]){re.escape(wanted)}(?!\w)", re.IGNORECASE)
        result = result or [name for name in models if part.search(PurePosixPath(name).stem)]
    if len(result) == 1:
        return result[0]
    some = (
        f"none of its GGUF files is {wanted!r}"
        if not result
        else f"it has several GGUF files{f' with {wanted!r}' if wanted else ''}"
    )
    raise CheckpointError(
        f"{hub_id}: {some}; add one of {_listed(result or models)} with a colon, or what it differs by: {hub_id}:Q4_K_M"
    )


def _is_projector(name: str) -> bool:
    """Vision projectors are files of their own, beside the model."""
    return "mmproj" in name.lower()


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:8])}{' and more' if len(names) > 8 else ''}"
