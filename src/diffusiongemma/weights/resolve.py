"""A name -> a checkpoint folder: built-in name, local folder, or hub id, in this order."""

import os
from pathlib import Path

from diffusiongemma.errors import CheckpointError

__all__ = ["builtin_folder", "builtin_names", "resolve"]

_FILES = ("*.json", "*.safetensors", "*.jinja")
_CONFIG_FILES = ("config.json", "generation_config.json")


def builtin_folder() -> Path:
    """Where the built-in checkpoints are."""
    return Path(__file__).parent.parent / "checkpoints"


def builtin_names() -> list[str]:
    """Names of the checkpoints that come with this package."""
    return sorted(path.parent.name for path in builtin_folder().glob("*/config.json"))


def resolve(name: str | os.PathLike[str], config_only: bool = False) -> Path:
    """The folder of a checkpoint, downloaded first if it is a hub id.

    A download shows its progress, goes on where an earlier one stopped, and is kept in the Hugging Face cache.

    Args:
        name: built-in name, folder or hub id.
        config_only: of a hub id download only the small JSON files.

    Raises:
        CheckpointError: nothing of that name, or it cannot be downloaded.
    """
    text = os.fspath(name)
    if text in builtin_names():
        return builtin_folder() / text
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    known = ", ".join(builtin_names()) or "none"
    if path.exists():
        raise CheckpointError(f"{text} is a file; give the folder that holds config.json and model.safetensors")
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(
            f"no checkpoint {text!r}: it is not a folder, not a built-in name ({known}), and not a hub id (owner/name)"
        )
    return _download(text, _CONFIG_FILES if config_only else _FILES)


def _download(hub_id: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise CheckpointError(f"{hub_id!r} is no folder here and no valid hub id: {error}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(f"{hub_id} is not in the local cache and the hub cannot be reached: {error}") from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"the hub refuses {hub_id}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{hub_id} cannot be downloaded: {error}") from error
