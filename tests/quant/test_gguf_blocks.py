"""Blocks of GGUF files: bit for bit the values of the format's own package, and examples worked out by hand."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from diffusiongemma.quant.gguf_blocks import BLOCK_TYPES, block_type

KINDS = sorted(BLOCK_TYPES.values(), key=lambda kind: kind.name)


def named(name: str):
    return next(kind for kind in KINDS if kind.name == name)


def test_all_types_of_the_published_files_are_there() -> None:
    assert {kind.name for kind in KINDS} == {
        "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4",
    }  # fmt: skip
    assert block_type(10) is None  # Q2_K
    for kind in KINDS:
        assert GGML_QUANT_SIZES[GGMLQuantizationType(kind.id)] == (kind.weights, kind.nbytes)
        assert GGMLQuantizationType(kind.id).name == kind.name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 3, 2)], ids=str)
def test_random_bytes_have_the_package_s_bits(kind, shape) -> None:
    """Any bytes: with scales that are NaN, infinite, subnormal and negative."""
    generator = torch.Generator().manual_seed(sum(shape))
    raw = torch.randint(0, 256, (*shape, kind.nbytes), dtype=torch.uint8, generator=generator)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(raw.numpy().reshape(*shape[:-1], -1), GGMLQuantizationType(kind.id))
    result = kind.dequantize(raw)
    assert result.shape == (*shape[:-1], shape[-1] * kind.weights)
    ours, theirs = result.numpy().ravel(), expected.ravel()
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    assert np.array_equal(ours.view(np.int32)[~np.isnan(ours)], theirs.view(np.int32)[~np.isnan(ours)])


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "MXFP4"])
def test_more_blocks_than_are_decoded_at_a_time(name: str) -> None:
    kind = named(name)
    one = torch.randint(0, 128, (1, kind.nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    many = kind.dequantize(one.expand((1 << 20) // kind.weights + 3, -1)).view(-1, kind.weights)
    assert torch.equal(many, kind.dequantize(one).expand_as(many))


def test_an_odd_address_is_no_trouble() -> None:
    kind = named("Q4_K")
    raw = torch.randint(0, 256, (5, kind.nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    shifted = torch.cat((torch.zeros(1, dtype=torch.uint8), raw.flatten()))[1:].view(5, kind.nbytes)
    assert kind.dequantize(raw).nan_to_num().equal(kind.dequantize(shifted).nan_to_num())


# The half 0x3800 is 0.5, 0x3c00 is 1, 0xbc00 is -1; what is not written is zero.
WORKED = [
    ("Q8_0", "0038 01 fe 03", {0: 0.5, 1: -1, 2: 1.5}),
    ("Q4_0", "0038 f0 88", {0: -4, 1: 0, 16: 3.5}),
    ("Q4_1", "0038 00bc f0 88", {0: -1, 1: 3, 16: 6.5}),
    ("Q5_0", "0038 01000100 f0 00", {0: 0, 1: -8, 16: 7.5}),
    ("Q5_1", "0038 00bc 01000100 f0 00", {0: 7, 1: -1, 16: 14.5}),
    ("IQ4_NL", "003c f0 88", {0: -127, 1: 1, 16: 113}),
    ("MXFP4", "7f f1 22", {0: 0.5, 1: 1, 16: -6}),
    (
        "Q4_K",
        "003c 0038 81828384c0c1c2c3c1d2e3f4 21" + "00" * 31 + "43" + "00" * 31 + "65" + "00" * 31 + "87",
        dict(zip(range(0, 256, 32), (1, 3.5, 8, 14.5, 135, 173.5, 214, 256.5), strict=True)),
    ),
    (
        "Q5_K",
        "003c 0038 81828384c0c1c2c3c1d2e3f4 a5" + "00" * 31 + "21" + "00" * 31 + "43" + "00" * 31 + "65" + "00" * 31 + "87",
        dict(zip(range(0, 256, 32), (17, 3.5, 56, 14.5, 135, 717.5, 214, 832.5), strict=True)),
    ),
    (
        "Q6_K",
        "21" + "00" * 31 + "43" + "00" * 31 + "65" + "00" * 31 + "87" + "00" * 31
        + "e4" + "00" * 31 + "1b" + "00" * 31 + "0102030405060708fffefdfcfbfaf9f8" + "0038",
        {0: -15.5, 16: -32, 32: -19.5, 64: 5, 96: 70, 128: -10.5, 160: -10.5, 192: 25, 224: 84},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "expected"), WORKED, ids=[name for name, _, _ in WORKED])
def test_worked_examples(name: str, text: str, expected: dict[int, float]) -> None:
    kind = named(name)
    raw = torch.zeros(1, kind.nbytes, dtype=torch.uint8)
    given = torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
    raw[0, : len(given)] = given
    values = kind.dequantize(raw)
    assert {at: values[at].item() for at in expected} == expected


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.halves], ids=lambda kind: kind.name)
@pytest.mark.parametrize("bad", [0x7C00, 0xFC00, 0x7E01], ids=["inf", "-inf", "nan"])
def test_scales_that_are_no_numbers_are_seen(kind, bad: int) -> None:
    raw = torch.zeros(3, 4, kind.nbytes, dtype=torch.uint8)
    assert kind.scales_finite(raw)
    for at in kind.halves:
        spoilt = raw.clone()
        spoilt[2, 1, at], spoilt[2, 1, at + 1] = bad & 255, bad >> 8
        assert not kind.scales_finite(spoilt)


def test_scales_of_other_types() -> None:
    mxfp4 = torch.full((2, 3, 17), 252, dtype=torch.uint8)
    assert named("MXFP4").scales_finite(mxfp4)
    assert named("MXFP4").dequantize(mxfp4).isfinite().all()
    mxfp4[1, 2, 0] = 253
    assert not named("MXFP4").scales_finite(mxfp4)
    for name, dtype in (("F32", torch.float32), ("BF16", torch.bfloat16)):
        values = torch.full((4, 6), torch.finfo(dtype).max, dtype=dtype)  # the sum overflows, no value does
        raw = values.view(torch.uint8).view(4, 6, -1)
        assert named(name).scales_finite(raw)
        values[3, 5] = torch.nan
        assert not named(name).scales_finite(raw)
