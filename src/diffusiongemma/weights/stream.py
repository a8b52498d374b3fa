"""Stream (name, tensor) out of a checkpoint folder, and write one.

Only safetensors are read: nothing in a folder can run code.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusiongemma.errors import CheckpointError

__all__ = ["read_json", "remove_shards", "stream_tensors", "tensor_files", "write_checkpoint", "write_json"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is missing or does not hold a JSON object.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}; a checkpoint folder needs it") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {type(data).__name__}; it must hold a JSON object")
    return data


def tensor_files(folder: Path) -> dict[Path, set[str] | None]:
    """The safetensors files of a folder, each with the names its index promises (None: no index).

    Raises:
        CheckpointError: no weights, weights of a kind that is not read, or an indexed file that is missing.
    """
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{folder / INDEX} has no weight_map")
        files: dict[Path, set[str] | None] = {}
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise CheckpointError(f"{folder / INDEX} points {name} at {file!r}; it must be a file in the same folder")
            names = files.setdefault(folder / file, set())
            assert names is not None
            names.add(name)
        missing = sorted(path.name for path in files if not path.is_file())
        if missing:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names; download the rest of the checkpoint")
        return files
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".gguf", ".pt", ".pth", ".safetensors"))
    found = f" It has {', '.join(others[:5])}, which is not read." if others else ""
    raise CheckpointError(f"{folder} has no weights: neither {SINGLE} nor {INDEX} is there.{found}")


def stream_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, file by file; one is in memory at a time.

    Raises:
        CheckpointError: a file is truncated or damaged, or does not hold what the index promises.
    """
    for path, promised in tensor_files(folder).items():
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                if promised is not None and names != promised:
                    odd = ", ".join(sorted(names ^ promised)[:5])
                    raise CheckpointError(f"{path} and {INDEX} disagree about {odd}; download the checkpoint again")
                for name in sorted(names):
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is damaged or cut short ({error}); download it again") from error


def remove_shards(folder: Path) -> None:
    """Remove an index and the shards it names, once a single file has taken their place: a loader would prefer them."""
    index = folder / INDEX
    if index.is_file():
        shards = [path for path in tensor_files(folder) if path.name != SINGLE]
        index.unlink()
        for path in shards:
            path.unlink()


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Write JSON so that the file is either the old one or the whole new one."""
    _replace(path, (json.dumps(data, indent=2) + "\n").encode())


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file, all or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata={"format": "pt"})
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    temporary.replace(path)
