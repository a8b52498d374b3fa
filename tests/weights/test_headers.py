"""Headers of safetensors files: read without the data, and refused when they are not what the format asks for."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffusiongemma.errors import CheckpointError
from diffusiongemma.weights.headers import BITS, Stored, read_header


def raw(path: Path, header: Any, data: int = 0, length: int | None = None) -> Path:
    """A file of a header as it is given, and so many bytes of data."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(content) if length is None else length).to_bytes(8, "little") + content + bytes(data))
    return path


def entry(begin: int, end: int, dtype: str = "U8", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_a_header_says_what_the_library_says(tmp_path: Path) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8, torch.int32, torch.int64,
              torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]  # fmt: skip
    tensors = {str(dtype): torch.zeros(3, 2).to(dtype) for dtype in dtypes} | {
        "scalar": torch.tensor(1.0),
        "none": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    result = read_header(tmp_path / "x.safetensors")
    assert {name: stored.shape for name, stored in result.items()} == {name: tuple(t.shape) for name, t in tensors.items()}
    assert {name: stored.nbytes for name, stored in result.items()} == {name: t.nbytes for name, t in tensors.items()}
    one = result["torch.bfloat16"]
    assert one == Stored("BF16", (3, 2), 12, tmp_path / "x.safetensors", one.start) and result["scalar"].shape == ()
    content = (tmp_path / "x.safetensors").read_bytes()
    for name, tensor in tensors.items():
        stored = result[name]
        assert content[stored.start : stored.start + stored.nbytes] == bytes(tensor.reshape(-1).view(torch.uint8).tolist()), name
    assert {stored.dtype for stored in result.values()} <= set(BITS)


def test_no_data_is_read(tmp_path: Path) -> None:
    """Half a terabyte that is not there: a sparse file."""
    path = raw(tmp_path / "x.safetensors", {"a": entry(0, 1 << 39)})
    os.truncate(path, path.stat().st_size + (1 << 39))
    began = time.process_time()
    assert read_header(path)["a"].nbytes == 1 << 39
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("header", "data", "needle"),
    [
        (b"not json", 0, "header is no JSON"),
        (b"[1, 2]", 0, "no JSON object"),
        (b"\xff\xfe\xfd\xfc", 0, "header is no JSON"),
        (b"[" * 100_000, 0, "header is no JSON"),
        (b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": 1}', 1, "twice"),
        ({"a": 5}, 0, "says nothing of a"),
        ({"a": entry(0, 4, "U9")}, 4, "dtype 'U9'"),
        ({"a": entry(0, 4, "F32", [-1])}, 4, "shape that is none"),
        ({"a": entry(0, 4, "F32", [True])}, 4, "shape that is none"),
        ({"a": entry(0, 4, "F32", [1.0])}, 4, "shape that is none"),
        ({"a": entry(0, 4, "F32", [1 << 70])}, 4, "shape that is none"),
        ({"a": entry(0, 4, "F32", [1] * 50)}, 4, "shape that is none"),
        ({"a": entry(0, 4, "F32", [1 << 40, 1 << 40])}, 4, "4 bytes, not those of F32"),
        ({"a": entry(0, 4, "F32", [2])}, 4, "4 bytes, not those of F32"),
        ({"a": {"dtype": "U8", "shape": [4]}}, 4, "no sound data_offsets"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]}}, 4, "no sound data_offsets"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 2, 4]}}, 4, "no sound data_offsets"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6, "b begins at byte 2 of the data, inside"),
        ({"a": entry(0, 4), "b": entry(5, 6)}, 6, "b begins at byte 5 of the data, after a gap"),
        ({"a": entry(0, 4)}, 3, "take 4 bytes, and it has 3"),
        ({"a": entry(0, 4)}, 5, "take 4 bytes, and it has 5"),
        ({"a": entry(1 << 60, (1 << 60) + 4)}, 4, "after a gap"),
    ],
)
def test_damage(tmp_path: Path, header: Any, data: int, needle: str) -> None:
    path = raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged or cut short") as caught:
        read_header(path)
    assert needle in str(caught.value)


@pytest.mark.parametrize("length", [3, 1 << 40, (1 << 64) - 1, 100_000_001])
def test_a_length_that_is_not_the_headers(tmp_path: Path, length: int) -> None:
    path = raw(tmp_path / "x.safetensors", {"a": entry(0, 4)}, 4, length)
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"\0\0\0"])
def test_less_than_a_length(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        read_header(tmp_path / "x.safetensors")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop", "missing", "."):
        with pytest.raises(CheckpointError):
            read_header(tmp_path / name)
