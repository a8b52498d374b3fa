"""Stream (name, tensor) out of a checkpoint folder, and write one.

Only safetensors are read: nothing in a folder can run code.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusiongemma.errors import CheckpointError
from diffusiongemma.text.files import is_there, read_json
from diffusiongemma.weights.headers import Stored, read_header
from diffusiongemma.weights.replacement import Replacement

__all__ = [
    "INDEX",
    "INDEX_BYTES",
    "SINGLE",
    "json_bytes",
    "read_json",
    "stored_tensors",
    "stream_tensors",
    "tensor_files",
    "write_json",
    "write_tensors",
]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SUFFIX = ".safetensors"
INDEX_BYTES = 32 << 20  # the index of 71,494 tensors, the largest seen, has 10 MB


def tensor_files(folder: Path) -> dict[Path, set[str] | None]:
    """The safetensors files of a folder, each with the names its index promises (None: no index).

    Raises:
        CheckpointError: no weights, weights of a kind that is not read, or an indexed file that is missing or elsewhere.
    """
    if is_there(folder / INDEX):
        weight_map = read_json(folder / INDEX, INDEX_BYTES).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{folder / INDEX} has no weight_map")
        names: dict[str, set[str]] = {}
        for name, file in weight_map.items():
            names.setdefault(file if isinstance(file, str) else repr(file), set()).add(name)
        for file, promised in names.items():
            why = None
            if Path(file).name != file or "\0" in file:
                why = "it must be a file in the same folder"
            elif not file.endswith(_SUFFIX):
                why = f"only {_SUFFIX} files are read"
            if why:
                raise CheckpointError(f"{folder / INDEX} points {min(promised)[:200]} at {file[:200]!r}; {why}")
        files: dict[Path, set[str] | None] = {folder / file: promised for file, promised in names.items()}
        missing = sorted(path.name for path in files if not is_there(path))
        if missing:
            listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise CheckpointError(f"{folder} lacks {listed}, which {INDEX} names; download the rest of the checkpoint")
        return files
    if is_there(folder / SINGLE):
        return {folder / SINGLE: None}
    others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".gguf", ".pt", ".pth", _SUFFIX))
    result = f" It has {', '.join(others[:5])}, which is not read." if others else ""
    raise CheckpointError(f"{folder} has no weights: neither {SINGLE} nor {INDEX} is there.{result}")


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """What the headers say of every tensor of a checkpoint, by name; no data is read.

    Raises:
        CheckpointError: a file is truncated or damaged, or does not hold what the index promises.
    """
    result: dict[str, Stored] = {}
    for path, promised in tensor_files(folder).items():
        header = read_header(path)
        refuse_other(path, set(header), promised)
        if twice := set(result) & set(header):
            raise CheckpointError(f"{path} holds {min(twice)}, which another file of {folder} holds too")
        result |= header
    return result


def refuse_other(path: Path, names: set[str], promised: set[str] | None) -> None:
    """Refuse a file whose tensors are not those that the index promises.

    Raises:
        CheckpointError: naming some of the tensors.
    """
    if promised is not None and names != promised:
        odd = ", ".join(sorted(names ^ promised)[:5])
        raise CheckpointError(f"{path} and {INDEX} disagree about {odd}; download the checkpoint again")


def stream_tensors(folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, file by file; one is in memory at a time.

    Args:
        folder: the checkpoint.
        wanted: which names; the others are not read.

    Raises:
        CheckpointError: a file is truncated or damaged, or does not hold what the index promises.
    """
    for path, promised in tensor_files(folder).items():
        header = read_header(path)  # before the library maps the file, which a pipe in its place would hang
        refuse_other(path, set(header), promised)
        names = sorted(filter(wanted, header))
        if not names:
            continue
        try:
            with safe_open(path, framework="pt") as file:
                for name in names:
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is damaged or cut short ({error}); download it again") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file in place; see ``Replacement`` for all or nothing.

    Raises:
        OSError: it cannot be written.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Write JSON so that the file is either the old one or the whole new one."""
    with Replacement(path.parent) as files:
        files.content(path.name, json_bytes(data))


def json_bytes(data: Mapping[str, object]) -> bytes:
    """The content of a JSON file."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
