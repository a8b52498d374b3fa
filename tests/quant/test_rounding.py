"""Codes and scales that we write, read back by the library that defines the formats and by our own records."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusiongemma.quant import Fp8Weight, Int4Weight, Int8Weight, Nvfp4Weight
from diffusiongemma.quant.rounding import Rounded, round_fp8, round_int4, round_int8, round_nvfp4

ROUNDERS: dict[str, Callable[[Tensor, bool], Rounded]] = {
    "fp8": round_fp8, "int8": round_int8, "int4": round_int4, "nvfp4": round_nvfp4,
}  # fmt: skip
MAX_VARIANTS = {"fp8": 0.03, "int8": 0.01, "int4": 0.11, "nvfp4": 0.1}
"""Relative error of a normal matrix."""


def values(kind: str, stored: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """What the published layout stands for, through our records."""
    if kind == "fp8":
        record = Fp8Weight(shape=shape, codes=stored["weight"].view(torch.uint8), scale=stored["weight_scale"], width=shape[1])
    elif kind == "int8":
        record = Int8Weight(shape=shape, codes=stored["weight"], scale=stored["weight_scale"], width=shape[1])
    elif kind == "int4":
        record = Int4Weight(shape=shape, codes=stored["weight_packed"].view(torch.uint8), scale=stored["weight_scale"], width=32)
        assert stored["weight_shape"].tolist() == list(shape)
    else:
        second = stored["weight_global_scale"].expand(shape[0])
        record = Nvfp4Weight(shape=shape, codes=stored["weight_packed"], scale=stored["weight_scale"], second=second, divides=True)
    return record.dequantize()


def matrix(name: str, rows: int = 48, columns: int = 128) -> Tensor:
    made = torch.Generator().manual_seed(7)
    weight = torch.randn(rows, columns, generator=made) * 0.03
    if name == "outliers":
        weight[::5, 3] *= 30
    elif name == "ranges":
        weight *= torch.logspace(-4, 2, rows)[:, None]
    elif name == "zeros":
        weight[4:9] = 0
        weight[:, 32:64] = 0
    elif name == "nothing":
        weight *= 0
    elif name == "tiny":
        weight *= 1e-30
    return weight


@pytest.mark.parametrize("kind", ROUNDERS)
@pytest.mark.parametrize("name", ["normal", "outliers", "ranges", "zeros", "nothing", "tiny"])
@pytest.mark.parametrize("search", [True, False])
def test_what_is_stored_has_the_error_that_is_said(kind: str, name: str, search: bool) -> None:
    weight = matrix(name)
    rounded = ROUNDERS[kind](weight, search)
    back = values(kind, rounded.tensors, tuple(weight.shape))
    assert torch.isfinite(back).all()
    error = float((back.double() - weight.double()).square().sum())
    assert error == pytest.approx(rounded.error, rel=1e-3, abs=1e-30)
    assert rounded.error <= rounded.absmax_error * (1 + 1e-9)
    assert rounded.norm == pytest.approx(float(weight.double().square().sum()))
    if name == "normal":
        assert (rounded.error / rounded.norm) ** 0.5 < MAX_VARIANTS[kind]
        assert search is (rounded.error < rounded.absmax_error)
    for suffix, tensor in rounded.tensors.items():
        if "scale" in suffix:
            assert (tensor.float() > 0).all() and torch.isfinite(tensor.float()).all()


@pytest.mark.parametrize("kind", ROUNDERS)
def test_values_that_the_format_has_stay(kind: str) -> None:
    weight = matrix("normal")
    once = ROUNDERS[kind](weight, False)
    back = values(kind, once.tensors, tuple(weight.shape))
    again = ROUNDERS[kind](back, True)
    assert (again.error / again.norm) ** 0.5 < 0.02


def test_the_library_reads_the_same_values() -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors")
    from compressed_tensors.compressors import pack_quantized

    weight = matrix("outliers")
    stored = round_int4(weight).tensors
    unpacked = pack_quantized.unpack_from_int32(stored["weight_packed"], 4, torch.Size(weight.shape))
    scale = stored["weight_scale"].float().repeat_interleave(32, 1)
    assert torch.equal(unpacked.float() * scale, values("int4", stored, tuple(weight.shape)))
    assert compressors is not None
