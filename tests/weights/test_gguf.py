"""The container of GGUF files: what is written is read, and a file that lies is refused at once."""

import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from diffusiongemma.errors import CheckpointError
from diffusiongemma.weights.gguf import GGUFFile
from tests.gguf_files import entry, header, pair, string

U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_the_package_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "some.gguf"
    writer = gguf.GGUFWriter(path, "anything")
    writer.add_uint8("k.u8", 200)
    writer.add_int8("k.i8", -5)
    writer.add_uint16("k.u16", 60_000)
    writer.add_int16("k.i16", -300)
    writer.add_uint32("k.u32", 1 << 31)
    writer.add_int32("k.i32", -7)
    writer.add_uint64("k.u64", 1 << 63)
    writer.add_int64("k.i64", -(1 << 62))
    writer.add_float32("k.f32", 0.5)
    writer.add_float64("k.f64", 1e-300)
    writer.add_bool("k.bool", True)
    writer.add_string("k.text", "naïve ▁ 日本\n")
    writer.add_array("k.bools", [True, False, True])
    writer.add_array("k.texts", ["", "a", "▁▁", "\n"])
    writer.add_array("k.ints", [1, -2, 3])
    writer.add_array("k.floats", [0.5, -1.5])
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    packed = np.arange(2 * 3 * 2 * 34, dtype=np.uint8).reshape(2, 3, 68)
    packed[..., 1::34] = 60
    writer.add_tensor("matrix", matrix)
    writer.add_tensor("packed", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.add_tensor("half", matrix.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = GGUFFile(path)
    assert file.metadata["general.architecture"] == "anything"
    result = {key.removeprefix("k."): value for key, value in file.metadata.items() if key.startswith("k.")}
    assert result == {
        "u8": 200, "i8": -5, "u16": 60_000, "i16": -300, "u32": 1 << 31, "i32": -7, "u64": 1 << 63, "i64": -(1 << 62),
        "f32": 0.5, "f64": 1e-300, "bool": True, "text": "naïve ▁ 日本\n", "bools": [True, False, True],
        "texts": ["", "a", "▁▁", "\n"], "ints": [1, -2, 3], "floats": [0.5, -1.5],
    }  # fmt: skip
    assert list(file.tensors) == ["matrix", "packed", "half"]
    assert file.tensors["matrix"].shape == (2, 3)
    assert file.tensors["packed"].shape == (2, 3, 64)
    assert file.nbytes == 6 * 4 + packed.size + 6 * 2
    assert torch.equal(file.tensors["matrix"].block.dequantize(file.blocks("matrix")), torch.from_numpy(matrix))
    assert file.blocks("packed").shape == (2, 3, 2, 34)
    assert np.array_equal(file.blocks("packed").numpy().reshape(packed.shape), packed)


def test_version_2_and_another_alignment(tmp_path: Path) -> None:
    pairs = [pair("general.alignment", U32, struct.pack("<I", 64))]
    head = header(version=2, pairs=pairs, tensors=[entry("a", (2,), 0, 0)], alignment=64)
    path = written(tmp_path / "a.gguf", head + struct.pack("<2f", 1, 2))
    file = GGUFFile(path)
    assert file.tensors["a"].start % 64 == 0
    assert file.tensors["a"].block.dequantize(file.blocks("a")).tolist() == [1, 2]


def test_the_map_outlives_the_file_object(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", header(tensors=[entry("a", (4,), 0, 0)]) + struct.pack("<4f", 1, 2, 3, 4))
    blocks = GGUFFile(path).blocks("a")
    path.unlink()
    assert blocks.view(torch.float32).flatten().tolist() == [1, 2, 3, 4]


BIG = 1 << 60
LIES = {
    "empty": (b"", "cannot be read"),
    "short": (b"GG", "not a GGUF file"),
    "another kind of file": (b"PK\3\4" + bytes(60), "not a GGUF file"),
    "only the magic": (b"GGUF", "ends within"),
    "version 1": (header(version=1), "version 1"),
    "a newer version": (header(version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2^60 tensors": (header(counts=(BIG, 0)), "claims"),
    "2^60 keys": (header(counts=(0, BIG)), "claims"),
    "more keys than there are": (header(pairs=[pair("a", U32, bytes(4))], counts=(0, 2), data=64), "is empty"),
    "a key of 2^60 bytes": (header(pairs=[struct.pack("<Q", BIG)], data=64), "ends within"),
    "a text of 2^60 bytes": (header(pairs=[pair("a", STRING, struct.pack("<Q", BIG))], data=64), "ends within"),
    "2^60 texts": (header(pairs=[pair("a", ARRAY, struct.pack("<IQ", STRING, BIG))], data=64), "claims"),
    "2^23 texts": (header(pairs=[pair("a", ARRAY, struct.pack("<IQ", STRING, 1 << 23))], data=64), "ends within"),
    "2^60 numbers": (header(pairs=[pair("a", ARRAY, struct.pack("<IQ", U32, BIG))], data=64), "claims"),
    "2^23 numbers": (header(pairs=[pair("a", ARRAY, struct.pack("<IQ", U32, 1 << 23))], data=64), "ends within"),
    "an entry that is too long": (
        header(pairs=[pair("a", ARRAY, struct.pack("<IQ", STRING, 2) + string("ok") + struct.pack("<Q", BIG))], data=64),
        "ends within",
    ),
    "lists in a list": (header(pairs=[pair("a", ARRAY, struct.pack("<IQ", ARRAY, 1))], data=64), "array of values of type 9"),
    "a value of an unknown type": (header(pairs=[pair("a", 99, bytes(8))], data=64), "unknown type 99"),
    "a key that is no UTF-8": (header(pairs=[pair("a", U32, bytes(4)).replace(b"a", b"\xff")], data=64), "UTF-8"),
    "an entry that is no UTF-8": (
        header(pairs=[pair("a", ARRAY, struct.pack("<IQ", STRING, 1) + string(b"\xc3"))], data=64),
        "UTF-8",
    ),
    "a key twice": (header(pairs=[pair("a", U32, bytes(4))] * 2, data=64), "key a twice"),
    "an odd alignment": (header(pairs=[pair("general.alignment", U32, struct.pack("<I", 12))], data=64), "general.alignment is 12"),
    "a bool for alignment": (header(pairs=[pair("general.alignment", BOOL, b"\1")], data=64), "general.alignment"),
    "no dimensions": (header(tensors=[entry("t", (), 0, 0)], data=64), "0 dimensions"),
    "5 dimensions": (header(tensors=[entry("t", (1,) * 5, 0, 0)], data=64), "5 dimensions"),
    "2^31 dimensions": (
        header(tensors=[string("t") + struct.pack("<I", 1 << 31)], data=64),
        "dimensions",
    ),
    "a dimension of 0": (header(tensors=[entry("t", (4, 0), 0, 0)], data=64), "does not divide"),
    "a row that is no whole blocks": (
        header(tensors=[entry("t", (48, 2), 8, 0)], data=640),
        "does not divide into Q8_0 blocks of 32",
    ),
    "dimensions that overflow": (header(tensors=[entry("t", (1 << 40, 1 << 40), 0, 0)], data=64), "cut short"),
    "an unknown block type": (
        header(tensors=[entry("t", (256,), 77, 0)], data=256),
        r"t is of block type 77, which is not read; read are .*Q4_K",
    ),
    "Q2_K": (header(tensors=[entry("t", (256,), 10, 0)], data=256), r"10 \(Q2_K\)"),
    "NVFP4": (header(tensors=[entry("t", (256,), 40, 0)], data=256), r"40 \(NVFP4\)"),
    "an offset outside": (header(tensors=[entry("t", (4,), 0, 1 << 20)], data=64), "cut short"),
    "an offset of 2^60": (header(tensors=[entry("t", (4,), 0, BIG)], data=64), "cut short"),
    "an end outside": (header(tensors=[entry("t", (32,), 0, 0)], data=100), "cut short"),
    "an offset between": (header(tensors=[entry("t", (4,), 0, 8)], data=64), "no multiple of 32"),
    "a name twice": (header(tensors=[entry("t", (4,), 0, 0), entry("t", (4,), 0, 32)], data=64), "tensor t twice"),
    "overlap": (header(tensors=[entry("t", (16,), 0, 0), entry("u", (4,), 0, 32)], data=128), "t and u overlap"),
    "the same place": (header(tensors=[entry("t", (4,), 0, 0), entry("u", (4,), 0, 0)], data=128), "overlap"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_file_that_lies_is_refused_at_once(case: str, tmp_path: Path) -> None:
    content, message = LIES[case]
    path = written(tmp_path / "lies.gguf", content)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        GGUFFile(path)
    assert time.process_time() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert str(path) in str(caught.value)


def test_cut_anywhere(tmp_path: Path) -> None:
    """Every prefix of a file is refused: none crashes, none is taken for whole."""
    pairs = [
        pair("a", ARRAY, struct.pack("<IQ", STRING, 2) + string("one") + string("two")),
        pair("b", ARRAY, struct.pack("<IQ3f", F32, 3, 1, 2, 3)),
        pair("c", STRING, string("text")),
    ]
    content = header(pairs=pairs, tensors=[entry("t", (3, 2), 0, 0), entry("u", (32,), 8, 32)]) + bytes(32 + 34)
    GGUFFile(written(tmp_path / "whole.gguf", content))
    for length in range(len(content)):
        with pytest.raises(CheckpointError):
            GGUFFile(written(tmp_path / "cut.gguf", content[:length]))


def test_spoilt_anywhere(tmp_path: Path) -> None:
    """A changed byte of the header gives a file that is read or one that is refused: nothing else."""
    pairs = [pair("a", ARRAY, struct.pack("<IQ", STRING, 2) + string("one") + string("two")), pair("c", STRING, string("text"))]
    content = header(pairs=pairs, tensors=[entry("t", (3, 2), 0, 0), entry("u", (32,), 8, 32)]) + bytes(32 + 34)
    refused = 0
    for at in range(len(content) - 66):
        for value in (0, 1, 0x7F, 0xFF):
            spoilt = bytearray(content)
            spoilt[at] = value
            try:
                file = GGUFFile(written(tmp_path / "spoilt.gguf", bytes(spoilt)))
                for name in file.tensors:
                    file.blocks(name).sum()
            except CheckpointError:
                refused += 1
    assert refused > 200


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            GGUFFile(path)


def test_a_vocabulary_as_large_as_gemma_s_is_read_quickly(tmp_path: Path) -> None:
    """262,144 tokens and 514,906 merges: 0.4 s on an idle core; the limit leaves room for a busy one."""
    path = tmp_path / "large.gguf"
    writer = gguf.GGUFWriter(path, "anything")
    writer.add_token_list([f"▁token{i}" for i in range(262_144)])
    writer.add_token_merges([f"▁tok en{i}" for i in range(514_906)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    began = time.process_time()
    file = GGUFFile(path)
    assert time.process_time() - began < 3
    assert file.metadata["tokenizer.ggml.merges"][-1] == "▁tok en514905"
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 262_144
