"""What a checkpoint's files hold, from the headers of its safetensors files alone: no tensor is read.

Source: the safetensors format, https://github.com/huggingface/safetensors#format: eight bytes of length, a JSON object, the data.
"""

import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusiongemma.errors import CheckpointError

__all__ = ["BITS", "FLOATS", "Stored", "parse_header", "read_header"]

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of an element, for each dtype of the format."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""The dtypes of weights that are not quantised."""
_MAX_HEADER = 100_000_000  # bytes; the format's own bound
_MAX_RANK = 16


@dataclass(frozen=True)
class Stored:
    """One tensor as a header describes it.

    Attributes:
        dtype: as the format spells it.
        shape: of the tensor.
        nbytes: its length.
        path: its file.
        start: its first byte, counted from the file's beginning.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    path: Path
    start: int


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name.

    Raises:
        CheckpointError: the file is missing, not a regular file, cut short, or its header is damaged.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        result = os.fstat(handle)
        if not stat.S_ISREG(result.st_mode):
            raise CheckpointError(f"{path} is damaged or cut short: it is no regular file")
        start = os.pread(handle, 8, 0)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(_MAX_HEADER, result.st_size - 8):
            raise CheckpointError(
                f"{path} is damaged or cut short: its first eight bytes ask for a header of {length:,} bytes, and the file has "
                f"{result.st_size:,}; download it again"
            )
        content = os.pread(handle, length, 8)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    finally:
        os.close(handle)
    return parse_header(content, result.st_size - 8 - length, path)


def parse_header(content: bytes, data_bytes: int, path: Path) -> dict[str, Stored]:
    """The tensors that a header describes.

    Args:
        content: the JSON.
        data_bytes: bytes of the file after the header, which the tensors must fill without gaps and overlaps.
        path: the file.

    Raises:
        CheckpointError: the header is not what the format asks for.
    """

    def damaged(why: str) -> CheckpointError:
        return CheckpointError(f"{path} is damaged or cut short: {why}; download it again")

    try:
        data = json.loads(content.decode("utf-8"), object_pairs_hook=_pairs)
    except (ValueError, RecursionError) as error:
        raise damaged(f"its header is no JSON ({error})") from error
    if not isinstance(data, dict):
        raise damaged("its header is no JSON object")
    data.pop("__metadata__", None)
    result = {}
    spans = []
    for name, entry in data.items():
        dtype, shape, begin, end = _entry(name, entry, damaged)
        result[name] = Stored(dtype, shape, end - begin, path, 8 + len(content) + begin)
        spans.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            raise damaged(f"{name} begins at byte {begin:,} of the data, {'inside' if begin < at else 'after a gap after'} another")
        at = end
    if at != data_bytes:
        raise damaged(f"its tensors take {at:,} bytes, and it has {data_bytes:,} for them")
    return result


def _entry(name: str, entry: Any, damaged: Callable[[str], CheckpointError]) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, Mapping):
        raise damaged(f"its header says nothing of {name}")
    dtype, shape, offsets = entry.get("dtype"), _whole_numbers(entry.get("shape")), _whole_numbers(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise damaged(f"{name} has the dtype {dtype!r}")
    if shape is None or len(shape) > _MAX_RANK:
        raise damaged(f"{name} has a shape that is none")
    if offsets is None or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise damaged(f"{name} has no sound data_offsets")
    bits = BITS[dtype]
    for size in shape:
        bits *= size
    if bits != 8 * (offsets[1] - offsets[0]):
        raise damaged(f"{name} has {offsets[1] - offsets[0]:,} bytes, not those of {dtype} {list(shape)}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _whole_numbers(value: Any) -> list[int] | None:
    sound = isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63 for n in value)
    return value if sound else None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands in it twice")
    return result
