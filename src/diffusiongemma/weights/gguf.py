"""The container of a GGUF file: its metadata, and its tensors as views of a memory map.

Nothing here knows a model. Every count, length and offset of the file is checked against the file's size before anything is
read or allocated by it. Source: ggml ``docs/gguf.md``, versions 2 and 3.
"""

import mmap
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusiongemma.errors import CheckpointError
from diffusiongemma.quant.gguf_blocks import BLOCK_TYPES, BlockType, block_type

__all__ = ["GGUFFile", "GGUFTensor"]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LONGEST_ARRAY = 1 << 24
"""Entries of a metadata array: 16 times the largest vocabularies' merges."""
_MAX_DIMENSIONS = 4
# Types that are not read, for the message.
_OTHER_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4",
}  # fmt: skip
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
# uint8, int8, uint16, int16, uint32, int32, float32, bool; uint64, int64, float64.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor is in its file.

    Attributes:
        name: as it is written.
        shape: outermost dimension first, as torch has it (the file has the innermost first).
        block: how its weights are packed.
        start: its first byte, counted from the file's beginning.
        nbytes: its length.
    """

    name: str
    shape: tuple[int, ...]
    block: BlockType
    start: int
    nbytes: int


class GGUFFile:
    """An open GGUF file.

    Args:
        path: the file.

    Attributes:
        metadata: key -> number, bool, string, or list of them.
        tensors: name -> tensor, in the order of the file.

    Raises:
        CheckpointError: not a GGUF file; big-endian; of another version; cut short; a count, length or offset that is not
            true; a name twice; tensors that overlap; a type of value or block that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # The map stays open as long as a tensor of it is in use.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        header = _Header(self._map, path)
        tensor_count, pair_count = header.begin()
        self.metadata: Mapping[str, Any] = header.metadata(pair_count)
        self.tensors: Mapping[str, GGUFTensor] = header.tensors(tensor_count, self.metadata)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def blocks(self, name: str) -> Tensor:
        """A tensor's blocks, uint8 ``[..., K / weights, nbytes]``: a read-only view of the map; nothing is read yet."""
        tensor = self.tensors[name]
        block = tensor.block
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(self._map, dtype=torch.uint8, count=tensor.nbytes, offset=tensor.start)
        return flat.view(*tensor.shape[:-1], tensor.shape[-1] // block.weights, block.nbytes)

    def read_ahead(self, name: str) -> None:
        """Tell the system that a whole tensor is read next: page by page a disk is a third slower (docs/lab-log.md)."""
        tensor = self.tensors[name]
        if hasattr(mmap, "MADV_WILLNEED"):
            page = tensor.start // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, tensor.start + tensor.nbytes - page)


class _Header:
    """Reads a header from its beginning to its end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._size = len(data)
        self._path = path
        self._at = 0

    def begin(self) -> tuple[int, int]:
        """The counts of tensors and of metadata pairs."""
        if self._data[:4] != MAGIC:
            raise CheckpointError(f"{self._path} is not a GGUF file: it does not begin with 'GGUF'")
        self._at = 4
        version = self._number(_U32)
        if version not in _VERSIONS:
            if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *_VERSIONS):
                raise CheckpointError(f"{self._path} is a big-endian GGUF file; only little-endian ones are read")
            raise CheckpointError(
                f"{self._path} is of GGUF version {version}; versions {' and '.join(map(str, _VERSIONS))} are read. "
                "Convert it with a current llama.cpp"
            )
        tensors, pairs = self._number(_U64), self._number(_U64)
        # The shortest tensor takes 8 + 4 + 8 + 4 + 8 bytes, the shortest pair 8 + 4 + 1.
        if tensors * 32 + pairs * 13 > self._size:
            raise CheckpointError(
                f"{self._path} claims {tensors} tensors and {pairs} metadata entries, more than its {self._size} bytes can hold; "
                "it is damaged or cut short"
            )
        return tensors, pairs

    def metadata(self, count: int) -> dict[str, Any]:
        """All metadata pairs."""
        result: dict[str, Any] = {}
        for _ in range(count):
            key = self._name("a metadata key")
            if key in result:
                raise CheckpointError(f"{self._path} has the metadata key {key} twice")
            result[key] = self._value(self._number(_U32), f"the metadata key {key}")
        return result

    def tensors(self, count: int, metadata: Mapping[str, Any]) -> dict[str, GGUFTensor]:
        """All tensors; they must lie one after another within the file."""
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment % 8 or alignment > 1 << 20:
            raise CheckpointError(f"{self._path}: general.alignment is {alignment!r}; it must be a multiple of 8")
        placed: list[tuple[str, tuple[int, ...], BlockType, int, int]] = []
        for _ in range(count):
            name = self._name("a tensor's name")
            dimensions = self._number(_U32)
            if not 1 <= dimensions <= _MAX_DIMENSIONS:
                raise CheckpointError(f"{self._path}: tensor {name} has {dimensions} dimensions; 1 to {_MAX_DIMENSIONS} are read")
            shape = tuple(self._number(_U64) for _ in range(dimensions))[::-1]
            block = self._block(name, self._number(_U32))
            placed.append((name, shape, block, self._number(_U64), self._nbytes(name, shape, block)))
        first = self._at + -self._at % alignment
        result: dict[str, GGUFTensor] = {}
        for name, shape, block, offset, nbytes in placed:
            if name in result:
                raise CheckpointError(f"{self._path} has the tensor {name} twice")
            if offset % alignment:
                raise CheckpointError(f"{self._path}: tensor {name} is at {offset}, which is no multiple of {alignment}")
            if first + offset + nbytes > self._size:
                raise CheckpointError(
                    f"{self._path}: tensor {name} ends at byte {first + offset + nbytes} of a file of {self._size}; "
                    "it is cut short: download it again"
                )
            result[name] = GGUFTensor(name, shape, block, first + offset, nbytes)
        ordered = sorted(result.values(), key=lambda tensor: tensor.start)
        for one, next_one in pairwise(ordered):
            if one.start + one.nbytes > next_one.start:
                raise CheckpointError(f"{self._path}: the tensors {one.name} and {next_one.name} overlap; the file is damaged")
        return result

    def _block(self, name: str, number: int) -> BlockType:
        block = block_type(number)
        if block is None:
            allowed = ", ".join(sorted(kind.name for kind in BLOCK_TYPES.values()))
            known = f" ({_OTHER_TYPES[number]})" if number in _OTHER_TYPES else ""
            raise CheckpointError(
                f"{self._path}: tensor {name} is of block type {number}{known}, which is not read; read are {allowed}"
            )
        return block

    def _nbytes(self, name: str, shape: tuple[int, ...], block: BlockType) -> int:
        if shape[-1] % block.weights or 0 in shape:
            raise CheckpointError(
                f"{self._path}: tensor {name} of shape {list(shape)} does not divide into {block.name} blocks of {block.weights}"
            )
        weights = 1
        for size in shape:
            weights *= size
        return weights // block.weights * block.nbytes

    def _number(self, form: struct.Struct) -> Any:
        start = self._take(form.size, "a number")
        return form.unpack_from(self._data, start)[0]

    def _string(self, what: str) -> str:
        length = self._number(_U64)
        start = self._take(length, what)
        try:
            return self._data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self._path}: {what} at byte {start} is no UTF-8; the file is damaged") from error

    def _name(self, what: str) -> str:
        name = self._string(what)
        if not name:
            raise CheckpointError(f"{self._path}: {what} before byte {self._at} is empty; the file is damaged")
        return name

    def _value(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return self._number(struct.Struct("<" + _SCALARS[kind]))
        if kind == _STRING:
            return self._string(what)
        if kind != _ARRAY:
            raise CheckpointError(f"{self._path}: {what} has a value of the unknown type {kind}; the file is damaged or newer")
        entry, count = self._number(_U32), self._number(_U64)
        if count > _LONGEST_ARRAY:
            raise CheckpointError(f"{self._path}: {what} claims {count} entries; at most {_LONGEST_ARRAY} are read")
        if entry == _STRING:
            return self._strings(count, what)
        if entry not in _SCALARS:
            raise CheckpointError(f"{self._path}: {what} is an array of values of type {entry}, which are not read")
        form = struct.Struct(f"<{count}{_SCALARS[entry]}")
        return list(form.unpack_from(self._data, self._take(form.size, what)))

    def _strings(self, count: int, what: str) -> list[str]:
        """An array of strings: the hot loop of a vocabulary, so it asks nothing twice."""
        if count * 8 > self._size - self._at:
            raise self._short(what)
        data, at, size, length_at = self._data, self._at, self._size, _U64.unpack_from
        result = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + length_at(data, at)[0]
                if at > size:
                    raise self._short(what)
                result.append(data[start:at].decode("utf-8"))
        except struct.error as error:
            raise self._short(what) from error
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self._path}: an entry of {what} is no UTF-8; the file is damaged") from error
        self._at = at
        return result

    def _take(self, length: int, what: str) -> int:
        """Where the next bytes begin; there must be so many."""
        start = self._at
        if start + length > self._size:
            raise self._short(what)
        self._at = start + length
        return start

    def _short(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path} ends within {what}; it is damaged or cut short: download it again")
