"""The weights of a GGUF file: the right values under the right names, packed where they are quantised, or an error."""

from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from diffusiongemma.errors import CheckpointError
from diffusiongemma.quant import PackedWeight
from diffusiongemma.quant.gguf import GGUFWeight, JoinedRows
from diffusiongemma.weights.gguf import GGUFFile
from diffusiongemma.weights.gguf_load import read_weights
from tests.gguf_files import SHAPE, WIDE, shapes, write_model
from tests.quant.records import values

KINDS = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4"]
K_KINDS = ["Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]


class Found(NamedTuple):
    packed: dict[str, PackedWeight]
    plain: dict[str, torch.Tensor]


def read(path: Path | GGUFFile, shape: dict[str, Any] = SHAPE) -> Found:
    result = Found({}, {})
    for name, weight in read_weights(path if isinstance(path, GGUFFile) else GGUFFile(path), shapes(shape)):
        (result.packed if isinstance(weight, PackedWeight) else result.plain)[name] = weight  # type: ignore[index]
    return result


@pytest.mark.parametrize("kind", KINDS + K_KINDS)
def test_every_weight_has_the_package_s_values(kind: str, tmp_path: Path) -> None:
    shape = WIDE if kind in K_KINDS else SHAPE
    expected = write_model(tmp_path / "m.gguf", kind, shape=shape)
    result = read(tmp_path / "m.gguf", shape)
    assert set(result.packed) | set(result.plain) == set(expected)
    assert not set(result.packed) & set(result.plain)
    assert set(result.packed) == {name for name, shape in shapes().items() if len(shape) > 1 and "router" not in name}
    for name, record in result.packed.items():
        assert record.kind == f"gguf-{kind.lower()}"
        assert record.shape == tuple(expected[name].shape)
        assert torch.equal(values(record), expected[name])
    for name, tensor in result.plain.items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_what_is_not_quantised_is_plain(kind: str, tmp_path: Path) -> None:
    expected = write_model(tmp_path / "m.gguf", kind)
    result = read(tmp_path / "m.gguf")
    assert not result.packed
    for name, tensor in result.plain.items():
        assert torch.equal(tensor.float(), expected[name])


def test_blocks_stay_in_the_map(tmp_path: Path) -> None:
    """No copy: the records' bytes are the file's, and there are as many."""
    write_model(tmp_path / "m.gguf", "Q4_0")
    file = GGUFFile(tmp_path / "m.gguf")
    result = read(file)
    base = file.blocks(next(iter(file.tensors))).data_ptr() - file.tensors[next(iter(file.tensors))].start
    for record in result.packed.values():
        assert isinstance(record, GGUFWeight)
        assert base <= record.blocks.data_ptr() < base + file.path.stat().st_size
    tables = sum(tensor.nbytes for tensor in file.tensors.values() if tensor.block.name == "Q4_0")
    assert sum(record.nbytes for record in result.packed.values()) == tables


@pytest.mark.parametrize("apart", ["Q8_0", "Q5_1", "F16"])
def test_gate_and_up_may_be_apart(apart: str, tmp_path: Path) -> None:
    expected = write_model(tmp_path / "m.gguf", "Q8_0", apart=apart)
    record = read(tmp_path / "m.gguf").packed["layers.1.experts.gate_up_proj"]
    assert isinstance(record, JoinedRows)
    whole = expected["layers.1.experts.gate_up_proj"]
    assert record.shape == tuple(whole.shape)
    assert torch.equal(values(record), whole)
    one = record.expert(2)
    for start, end in ((0, 10), (20, 40), (32, 64), (31, 33), (60, 64), (0, 32)):
        assert torch.equal(one.dequantize(start, end), whole[2, start:end])
    ids = torch.tensor([[63, 0], [31, 32]])
    assert torch.equal(one.take(ids), whole[2][ids])
    assert set(record.tensors()) == {"first.blocks", "second.blocks"}
    assert record.nbytes == record.first.nbytes + record.second.nbytes
    assert record.to("cpu").device == torch.device("cpu")


def test_plain_gate_and_up_apart(tmp_path: Path) -> None:
    expected = write_model(tmp_path / "m.gguf", "F16", apart="F32")
    name = "layers.0.experts.gate_up_proj"
    assert torch.equal(read(tmp_path / "m.gguf").plain[name].float(), expected[name])


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    file, seen = GGUFFile(tmp_path / "m.gguf"), []
    for _ in read_weights(file, shapes(), lambda name, size: seen.append((name, size))):
        pass
    assert {name for name, _ in seen} == set(file.tensors) - {"rope_freqs.weight"}
    assert sum(size for _, size in seen) == file.nbytes - file.tensors["rope_freqs.weight"].nbytes


def test_the_embedding_stored_twice(tmp_path: Path) -> None:
    """A head that is the embedding again is passed over; another one would be another model."""
    expected = write_model(tmp_path / "f.gguf", "F32")
    table = expected["embed_tokens.weight"].numpy()
    write_model(tmp_path / "m.gguf", "F32", extra={"output.weight": table})
    assert "embed_tokens.weight" in read(tmp_path / "m.gguf").plain
    write_model(tmp_path / "m.gguf", "F32", extra={"output.weight": table + 1})
    with pytest.raises(CheckpointError, match=r"output\.weight differs from token_embd\.weight"):
        read(tmp_path / "m.gguf")
    write_model(tmp_path / "m.gguf", "Q8_0", extra={"output.weight": table})
    with pytest.raises(CheckpointError, match=r"output\.weight differs"):
        read(tmp_path / "m.gguf")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a missing matrix": ({"drop": ("blk.1.attn_q.weight",)}, r"lacks the tensor blk\.1\.attn_q\.weight"),
    "a missing scalar": ({"drop": ("blk.2.enc_layer_output_scale.weight",)}, r"lacks .*blk\.2\.enc_layer_output_scale"),
    "a missing scale of experts": ({"drop": ("blk.0.ffn_down_exps.scale",)}, r"lacks .*ffn_down_exps\.scale"),
    "missing experts": ({"drop": ("blk.0.ffn_gate_up_exps.weight",)}, r"lacks .*blk\.0\.ffn_gate_up_exps\.weight"),
    "half of the experts": ({"apart": "Q8_0", "drop": ("blk.0.ffn_up_exps.weight",)}, r"lacks .*blk\.0\.ffn_up_exps\.weight"),
    "no self-conditioning": ({"drop": ("self_cond_up.weight",)}, r"lacks .*self_cond_up\.weight"),
    "an unknown tensor": ({"extra": {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}}, r"unknown the tensor blk\.0\.attn_sinks"),
    "a bias": ({"extra": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, r"unknown the tensor blk\.0\.attn_q\.bias"),
    "a layer too many": ({"extra": {"blk.3.attn_norm.weight": np.ones(64, np.float32)}}, r"blk\.3\.attn_norm\.weight left over"),
    "values of a full layer": (
        {"extra": {"blk.2.attn_v.weight": np.ones((32, 64), np.float32)}},
        r"blk\.2\.attn_v\.weight left over",
    ),
    "a norm of another size": (
        {"extra": {"output_norm.weight": np.ones(32, np.float32)}},
        r"output_norm\.weight has shape \[32\]; the metadata asks for \[64\]",
    ),
    "a transposed matrix": (
        {"extra": {"blk.0.ffn_up.weight": np.ones((64, 96), np.float32)}},
        r"blk\.0\.ffn_up\.weight has shape \[64, 96\]; the metadata asks for \[96, 64\]",
    ),
    "a norm that is NaN": (
        {"extra": {"output_norm.weight": np.full(64, np.nan, np.float32)}},
        r"output_norm\.weight \(F32\) has a scale or a value that is NaN",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case: str, tmp_path: Path) -> None:
    options, message = REFUSED[case]
    write_model(tmp_path / "m.gguf", **options)
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "m.gguf")


@pytest.mark.parametrize("bits", [0x7C00, 0x7E00, 0xFC00], ids=["inf", "nan", "-inf"])
def test_a_spoilt_scale_is_refused_by_its_tensor(bits: int, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", "Q5_0")
    place = GGUFFile(tmp_path / "m.gguf").tensors["blk.1.ffn_down_exps.weight"]
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    last_block = place.start + place.nbytes - place.block.nbytes
    content[last_block : last_block + 2] = bits.to_bytes(2, "little")
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_down_exps\.weight \(Q5_0\) has a scale .* NaN or infinite"):
        read(tmp_path / "m.gguf")


def test_a_quantised_norm_is_expanded(tmp_path: Path) -> None:
    """Not seen in a published file, and no reason to refuse one."""
    raw = gguf.quants.quantize(np.ones((1, 64), np.float32), GGMLQuantizationType.Q8_0).reshape(-1)
    write_model(tmp_path / "m.gguf", quantised={"output_norm.weight": raw})
    assert torch.allclose(read(tmp_path / "m.gguf").plain["norm.weight"], torch.ones(64), atol=1e-3)
