"""The bytes of stored tensors: as views of a mapped file, or read into memory that is already there."""

from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from diffusiongemma.errors import CheckpointError
from diffusiongemma.weights.headers import Stored

__all__ = ["DTYPES", "MAPPED_FROM", "TensorBytes"]

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.uint8, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "U32": torch.int32, "BOOL": torch.bool,
}  # fmt: skip
"""The dtypes that are read, by their names in a header; powers of two and unsigned words as the bits that they are."""
MAPPED_FROM = 1 << 20
"""Bytes from which a tensor stays in its file: smaller ones are copied, so that what is read often lies together."""
_PIECE = 1 << 30  # bytes of one read: Linux reads at most 2 GiB at once


class TensorBytes:
    """Reads stored tensors; used in a ``with``, which closes the files (views of mapped ones stay usable)."""

    def __init__(self) -> None:
        self._open: dict[Path, FileIO] = {}
        self._maps: dict[Path, Tensor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()
        self._maps.clear()

    def read(self, stored: Stored, out: Tensor | None = None) -> Tensor:
        """A tensor in memory.

        Args:
            stored: which.
            out: contiguous memory of as many bytes to read it into; None: new memory.

        Raises:
            CheckpointError: the file ends before the tensor does.
        """
        if out is None:
            out = torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
        assert out.is_contiguous() and out.nbytes == stored.nbytes
        view = memoryview(out.reshape(-1).view(torch.uint8).numpy().data)
        at = 0
        try:
            file = self._file(stored.path)
            file.seek(stored.start)
            while at < stored.nbytes:
                got = file.readinto(view[at : at + _PIECE])
                if not got:
                    raise CheckpointError(f"{stored.path} is damaged or cut short: it ends at byte {stored.start + at:,}")
                at += got
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{stored.path} cannot be read: {error.strerror or error}") from error
        return out

    def view(self, stored: Stored) -> Tensor:
        """A tensor where it is in its file, mapped privately, if it is large and lies as its dtype needs it; else ``read``."""
        dtype = DTYPES[stored.dtype]
        if stored.nbytes < MAPPED_FROM or stored.start % dtype.itemsize:
            return self.read(stored)
        if stored.path not in self._maps:
            size = stored.path.stat().st_size
            self._maps[stored.path] = torch.from_file(str(stored.path), shared=False, size=size, dtype=torch.uint8)
        if stored.start + stored.nbytes > self._maps[stored.path].numel():
            raise CheckpointError(f"{stored.path} is damaged or cut short: it has grown shorter while it was read")
        return self._maps[stored.path][stored.start : stored.start + stored.nbytes].view(dtype).view(stored.shape)

    def _file(self, path: Path) -> FileIO:
        if path not in self._open:
            self._open[path] = FileIO(path)
        return self._open[path]
