"""Read the small files of a checkpoint, whoever wrote them: an error within a second, never a hang or a full memory."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from diffusiongemma.errors import CheckpointError

__all__ = ["JSON_BYTES", "is_inside", "is_there", "read_bytes", "read_json", "read_text"]

JSON_BYTES = 8 << 20
"""Most bytes of a JSON file or a template; parsed, a hostile one takes some twenty times as much."""
_DEPTH = 64
"""Most levels of a JSON file: what walks the content by recursion stays far from Python's limit."""


def is_there(path: Path) -> bool:
    """Whether a name is taken, by whatever: what is there and cannot be read is an error of ``read_bytes``, not absent."""
    return os.path.lexists(path)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, or where the hub's cache keeps what a snapshot links to."""
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return real.is_relative_to(home) or (home.parent.name == "snapshots" and real.is_relative_to(home.parent.parent / "blobs"))


def read_bytes(path: Path, most: int = JSON_BYTES) -> bytes:
    """The content of a regular file.

    Args:
        path: of the file, in the checkpoint's folder; a link is followed within it, and to where the hub's cache keeps its files.
        most: bytes that it may have.

    Raises:
        CheckpointError: it is missing, not a regular file, too large, elsewhere, or cannot be read.
    """
    if not is_inside(path, path.parent):
        raise CheckpointError(f"{path} cannot be read: it is a link that leads out of its folder; put the file itself there")
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            result = os.fstat(handle)
            if not stat.S_ISREG(result.st_mode):
                raise CheckpointError(f"{path} cannot be read: it is a {_kind(result.st_mode)}, not a file")
            if result.st_size > most:
                raise CheckpointError(f"{path} cannot be read: it has {result.st_size:,} bytes, and at most {most:,} are read")
            with os.fdopen(os.dup(handle), "rb") as file:
                return file.read(most)
        finally:
            os.close(handle)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}; a checkpoint folder needs it") from error
    except CheckpointError:
        raise
    except OSError as error:
        why = "it is a link that leads to itself" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise CheckpointError(f"{path} cannot be read: {why}") from error


def read_text(path: Path, most: int = JSON_BYTES) -> str:
    """The content of a UTF-8 file.

    Raises:
        CheckpointError: as ``read_bytes``, or it is not UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} cannot be read: byte {error.start + 1} is not UTF-8. Save it as UTF-8") from error


def read_json(path: Path, most: int = JSON_BYTES) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: as ``read_text``, or the file does not hold a JSON object of sound depth.
    """
    text = read_text(path, most)
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise CheckpointError(f"{path} cannot be read as JSON: it is nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {type(data).__name__}; it must hold a JSON object")
    level: list[Any] = [data]
    for _ in range(_DEPTH):
        level = [x for part in level for x in (part.values() if isinstance(part, dict) else part) if isinstance(x, dict | list)]
        if not level:
            return data
    raise CheckpointError(f"{path} cannot be read as JSON: it is nested more than {_DEPTH} levels deep")


def _kind(mode: int) -> str:
    names = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return names.get(stat.S_IFMT(mode), "special file")
