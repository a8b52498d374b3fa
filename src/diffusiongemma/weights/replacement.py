"""Files that take their places in a folder together."""

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Replacement"]


class Replacement:
    """Writes files beside their places, and puts them there when all are whole; after an error the folder is as it was.

    Args:
        folder: of the files; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: list[tuple[Path, Path]] = []
        self._gone: list[Path] = []

    def file(self, name: str) -> Path:
        """Where to write what shall become ``name``, which may stand in a folder below."""
        final = self._folder / name
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=final.parent, prefix=f".{final.name}.", suffix=".part")
        os.close(handle)
        self._written.append((Path(temporary), final))
        return Path(temporary)

    def content(self, name: str, content: bytes) -> None:
        """Write a small file."""
        self.file(name).write_bytes(content)

    def remove(self, path: Path) -> None:
        """Remove a file once the others are in their places."""
        self._gone.append(path)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                for temporary, final in self._written:
                    temporary.chmod(0o644)
                    temporary.replace(final)
                for path in self._gone:
                    path.unlink(missing_ok=True)
        finally:
            for temporary, _ in self._written:
                temporary.unlink(missing_ok=True)
