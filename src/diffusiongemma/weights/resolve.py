"""A name -> a checkpoint: built-in name, local folder or GGUF file, or hub id, in this order."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusiongemma.errors import CheckpointError
from diffusiongemma.options import OWN_SAMPLING
from diffusiongemma.text.files import is_there
from diffusiongemma.weights.gguf_find import choose, gguf_in, is_gguf
from diffusiongemma.weights.headers import Stored
from diffusiongemma.weights.stream import INDEX, SINGLE

__all__ = ["Hub", "builtin_folder", "builtin_names", "download_small", "has_weights", "hub_headers", "is_hub_id", "resolve"]

log = logging.getLogger(__name__)
_ELSEWHERE = {"google/diffusiongemma-26b-nvfp4": "nvidia/diffusiongemma-26B-A4B-it-NVFP4"}
"""Names in circulation that no repository has, in small letters, and the repository that is meant."""
_FILES = ("*.json", "*.safetensors", "*.jinja")
_CONFIG_FILES = ("config.json", "generation_config.json", OWN_SAMPLING)
_SMALL_FILES = ("*.json", "*.jinja")


@dataclass(frozen=True, kw_only=True)
class Hub:
    """How a repository is read; unset fields are as the Hugging Face library has them (``HF_TOKEN``, ``HF_HOME``).

    Attributes:
        revision: a branch, tag or commit; None: the main branch.
        token: of an account that may read it; None: the one that is stored or in ``HF_TOKEN``; False: none.
        cache_dir: where downloads are kept.
    """

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The same as keywords of the library."""
        return vars(self)


_HUB = Hub()


def builtin_folder() -> Path:
    """Where the built-in checkpoints are."""
    return Path(__file__).parent.parent / "checkpoints"


def builtin_names() -> list[str]:
    """Names of the checkpoints that come with this package."""
    return sorted(path.parent.name for path in builtin_folder().glob("*/config.json"))


def resolve(name: str | os.PathLike[str], config_only: bool = False, hub: Hub = _HUB) -> Path:
    """The folder of a checkpoint, or its GGUF file; downloaded first if it is a hub id.

    A download shows its progress, goes on where an earlier one stopped, and is kept in the Hugging Face cache.

    Args:
        name: built-in name; folder, which may hold one GGUF file in place of safetensors; GGUF file; hub id, of a repository with
            several GGUF files with a colon and what the file differs by: ``owner/name:Q4_K_M``. A name in circulation that no
            repository has stands for the one that is meant, and a warning says so.
        config_only: of a hub id download only the small JSON files.
        hub: how a repository is read.

    Raises:
        CheckpointError: nothing of that name, or it cannot be downloaded.
    """
    if not isinstance(name, str | os.PathLike) or not isinstance(text := os.fspath(name), str):
        raise CheckpointError(f"{name!r:.200} is of type {type(name).__name__}; give a string or a path")
    if text in builtin_names():
        return builtin_folder() / text
    known = ", ".join(builtin_names()) or "none"
    try:
        path = Path(text).expanduser()
        folder, other = path.is_dir(), path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, no home folder, a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{text[:200]!r} cannot be a folder: {why}") from error
    if folder:
        return gguf_in(path) or path
    if is_gguf(path):
        return path
    if other:
        raise CheckpointError(f"{text} is a file; give a GGUF file, or the folder that holds config.json and model.safetensors")
    hub_id, _, wanted = text.partition(":")
    if hub_id.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(
            f"no checkpoint {text!r}: it is not a folder, not a GGUF file, not a built-in name ({known}), "
            "and not a hub id (owner/name)"
        )
    hub_id = _existing(hub_id)
    if not wanted:
        downloaded = _download(hub_id, _CONFIG_FILES if config_only else _FILES, hub)
        if any(downloaded.glob("*.safetensors")) or (downloaded / "config.json").is_file():
            return downloaded
    if config_only:
        raise CheckpointError(
            f"{hub_id} has no config.json; a GGUF file holds its configuration itself. Download the file and give its path"
        )
    return _download_gguf(hub_id, wanted or None, hub)


def has_weights(path: Path) -> bool:
    """Whether there are weights where ``resolve`` found a checkpoint: of a hub id there may be settings alone."""
    return path.is_file() or is_there(path / INDEX) or is_there(path / SINGLE)


def is_hub_id(name: str | os.PathLike[str]) -> bool:
    """Whether a name is neither built in nor of something that is here, and has the form ``owner/name``."""
    text = os.fspath(name)
    try:
        here = text in builtin_names() or Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False
    return not here and text.count("/") == 1 and not text.startswith((".", "/", "~"))


def download_small(hub_id: str) -> Path:
    """The folder of a repository's small files: settings, tokenizer, template; no weights.

    Raises:
        CheckpointError: they cannot be downloaded.
    """
    return _download(_existing(hub_id), _SMALL_FILES)


def hub_headers(hub_id: str) -> dict[str, dict[str, Stored]]:
    """The headers of a repository's safetensors files, by file; the hub sends no more than these bytes of them.

    Raises:
        CheckpointError: the repository has no safetensors files, a header is damaged, or the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    hub_id = _ELSEWHERE.get(hub_id.lower(), hub_id)
    with _hub_errors(hub_id):
        try:
            result = huggingface_hub.get_safetensors_metadata(hub_id).files_metadata
        except NotASafetensorsRepoError as error:
            raise CheckpointError(f"{hub_id} has no safetensors files") from error
        except SafetensorsParsingError as error:
            raise CheckpointError(f"a safetensors file of {hub_id} is damaged: {error}") from error
    return {
        file: {
            name: Stored(one.dtype, tuple(one.shape), one.data_offsets[1] - one.data_offsets[0], Path(file), one.data_offsets[0])
            for name, one in meta.tensors.items()
        }
        for file, meta in result.items()
    }


def _existing(hub_id: str) -> str:
    """The repository that a name stands for."""
    meant = _ELSEWHERE.get(hub_id.lower())
    if meant is None:
        return hub_id
    log.warning("there is no %s on the hub; %s is taken, which is what the name stands for", hub_id, meant)
    return meant


def _download(hub_id: str, patterns: tuple[str, ...], hub: Hub = _HUB) -> Path:
    import huggingface_hub

    with _hub_errors(hub_id):
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(patterns), **hub.options))


def _download_gguf(hub_id: str, wanted: str | None, hub: Hub) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    with _hub_errors(hub_id):
        try:
            names = huggingface_hub.list_repo_files(hub_id, revision=hub.revision, token=hub.token)
        except HfHubHTTPError:
            raise
        except Exception:  # the library lets its transport's errors through; without a connection, what is in the cache serves
            local = {**hub.options, "local_files_only": True}
            cached = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=["*.gguf"], **local))
            names = [str(path.relative_to(cached)) for path in cached.rglob("*.gguf")]
        return Path(huggingface_hub.hf_hub_download(hub_id, choose(names, wanted, hub_id), **hub.options))


@contextmanager
def _hub_errors(hub_id: str) -> Iterator[None]:
    """The library's errors as ours."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except CheckpointError:
        raise
    except HFValidationError as error:
        raise CheckpointError(f"{hub_id!r} is no folder here and no valid hub id: {error}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(f"{hub_id} is not in the local cache and the hub cannot be reached: {error}") from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"the hub refuses {hub_id}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{hub_id} cannot be downloaded: {error}") from error
