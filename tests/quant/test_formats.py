"""Each safetensors format's values: worked bytes, and every bit of what the writers' own code makes of random tensors."""

import itertools

import pytest
import torch
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8, unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from torch import Tensor

from diffusiongemma.quant import Fp8Weight, Int4Weight, Int8Weight, Mxfp4Weight, Nvfp4Weight, PackedWeight
from diffusiongemma.quant.codes import e4m3, e8m0


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32)


def same(ours: PackedWeight, theirs: Tensor) -> None:
    """All of it, a piece of it, and rows by number have the oracle's bits; so has one expert of a stack."""
    assert ours.dequantize().dtype == torch.float32 and theirs.dtype == torch.float32
    assert torch.equal(bits(ours.dequantize()), bits(theirs))
    assert torch.equal(bits(ours.dequantize(3, 7)), bits(theirs[3:7]))
    ids = torch.tensor([[5, 0, 5], [1, 7, 2]])
    assert torch.equal(bits(ours.take(ids)), bits(theirs[ids]))
    stack = ours._each(lambda t: torch.stack((t, t)), (2, *ours.shape))
    assert torch.equal(bits(stack.expert(1).dequantize()), bits(theirs))
    x = torch.randn(5, ours.shape[1], generator=torch.Generator().manual_seed(1))
    assert torch.allclose(ours.apply(x), x @ theirs.T, atol=1e-5 * float(theirs.abs().max()) * ours.shape[1] ** 0.5)


def made(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def byte_tensor(text: str) -> Tensor:
    return torch.tensor([list(bytes.fromhex(text))], dtype=torch.uint8)


def test_every_code_of_e4m3() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    theirs = every.view(torch.float8_e4m3fn).float()
    real = ~theirs.isnan()
    assert torch.equal(bits(e4m3(every)[real]), bits(theirs[real])) and int(real.sum()) == 254


def test_every_code_of_e8m0() -> None:
    every = torch.arange(255, dtype=torch.uint8)
    assert torch.equal(e8m0(every).double(), 2.0 ** (every.double() - 127))
    assert e8m0(torch.tensor([255], dtype=torch.uint8)).isnan()


# -- worked bytes ----------------------------------------------------------------------------------------------------


def test_fp8_bytes() -> None:
    codes = byte_tensor("38b8407e01").view(torch.float8_e4m3fn)
    record = Fp8Weight(shape=(1, 5), codes=codes, scale=torch.tensor([[0.5]]).bfloat16(), width=5)
    assert record.dequantize().tolist() == [[0.5, -0.5, 1.0, 224.0, 2.0**-10]]


@pytest.mark.parametrize(("divides", "second"), [(False, 0.25), (True, 4.0)])
def test_nvfp4_bytes(divides: bool, second: float) -> None:
    codes, scale = byte_tensor("f153" + "00" * 6), byte_tensor("40").view(torch.float8_e4m3fn)
    record = Nvfp4Weight(shape=(1, 16), codes=codes, scale=scale, second=torch.tensor([second]), divides=divides)
    assert record.dequantize()[0, :4].tolist() == [0.25, -3.0, 0.75, 1.5]


def test_int4_bytes() -> None:
    word = torch.tensor([[0xFEA98710 - (1 << 32)]], dtype=torch.int32).view(torch.uint8)
    assert word.tolist() == [[0x10, 0x87, 0xA9, 0xFE]]
    record = Int4Weight(shape=(1, 8), codes=word, scale=torch.tensor([[0.5]]), width=8)
    assert record.dequantize().tolist() == [[-4.0, -3.5, -0.5, 0.0, 0.5, 1.0, 3.0, 3.5]]


def test_mxfp4_bytes() -> None:
    record = Mxfp4Weight(shape=(1, 32), codes=byte_tensor("f1" + "00" * 15), scale=byte_tensor("7e"))
    assert record.dequantize()[0, :2].tolist() == [0.25, -3.0]


# -- compressed-tensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["float", "int"])
def test_eight_bits_a_row(kind: str, dtype: torch.dtype) -> None:
    args = QuantizationArgs(num_bits=8, type=kind, strategy="channel", symmetric=True)
    scale = (torch.rand(24, 1, generator=made(1)) / 60).to(dtype)
    record: Fp8Weight | Int8Weight
    if kind == "float":
        codes = (torch.randn(24, 80, generator=made(0)) * 90).clamp(-448, 448).to(torch.float8_e4m3fn)
        record = Fp8Weight(shape=(24, 80), codes=codes, scale=scale, width=80)
    else:
        codes = torch.randint(-128, 128, (24, 80), generator=made(0), dtype=torch.int8)
        record = Int8Weight(shape=(24, 80), codes=codes, scale=scale, width=80)
    same(record, dequantize(codes, scale.float(), args=args))


@pytest.mark.parametrize("shape", [(256, 256), (88, 176), (8, 130)])
def test_fp8_in_blocks(shape: tuple[int, int]) -> None:
    rows, columns = shape
    codes = (torch.randn(shape, generator=made(0)) * 90).clamp(-448, 448).to(torch.float8_e4m3fn)
    blocks = torch.rand(-(-rows // 64), -(-columns // 64), generator=made(1))
    expected = torch.empty(shape)
    for i, j in itertools.product(range(blocks.shape[0]), range(blocks.shape[1])):
        area = slice(64 * i, 64 * i + 64), slice(64 * j, 64 * j + 64)
        expected[area] = codes[area].float() * blocks[i, j]
    scale = blocks.repeat_interleave(64, 0)[:rows]
    same(Fp8Weight(shape=shape, codes=codes, scale=scale, width=64), expected)


def test_asymmetric_int8() -> None:
    args = QuantizationArgs(num_bits=8, type="int", strategy="group", group_size=16, symmetric=False)
    codes = torch.randint(-128, 128, (24, 80), generator=made(0), dtype=torch.int8)
    scale, zero = torch.rand(24, 5, generator=made(1)), torch.randint(-128, 128, (24, 5), generator=made(2), dtype=torch.int8)
    theirs = dequantize(codes, scale, zero, args)
    same(Int8Weight(shape=(24, 80), codes=codes, scale=scale, zero=zero, width=16), theirs)


def test_nvfp4_as_compressed_tensors_divides() -> None:
    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True)
    codes = torch.randint(0, 256, (24, 40), generator=made(0), dtype=torch.uint8)
    scale = torch.randint(0, 127, (24, 5), generator=made(1), dtype=torch.uint8).view(torch.float8_e4m3fn)
    whole = torch.tensor([431.7])
    unpacked = unpack_fp4_from_uint8(codes, 24, 80, torch.float32)
    theirs = dequantize(unpacked, scale.float(), args=args, global_scale=whole, dtype=torch.float32)
    record = Nvfp4Weight(shape=(24, 80), codes=codes, scale=scale, second=whole.expand(24).contiguous(), divides=True)
    same(record, theirs)


@pytest.mark.parametrize("divides", [False, True])
def test_nvfp4_in_products_is_rounded_once(divides: bool) -> None:
    """And so are all values of modelopt's, whose second scale multiplies; each row has its own."""
    codes = torch.randint(0, 256, (24, 40), generator=made(0), dtype=torch.uint8)
    scale = torch.randint(0, 127, (24, 5), generator=made(1), dtype=torch.uint8).view(torch.float8_e4m3fn)
    second = torch.tensor([0.0012345] * 12 + [0.0067891] * 12)
    exact = unpack_fp4_from_uint8(codes, 24, 80, torch.float32).double() * scale.double().repeat_interleave(16, 1)
    exact = exact / second[:, None].double() if divides else exact * second[:, None].double()
    record = Nvfp4Weight(shape=(24, 80), codes=codes, scale=scale, second=second, divides=divides)
    assert torch.equal(record.operand(slice(0, 24)), exact.float())
    if not divides:
        same(record, exact.float())


def test_nvfp4_packs_as_compressed_tensors_packs() -> None:
    values = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 0.5]).repeat(2, 1)
    record = Nvfp4Weight(
        shape=(2, 16),
        codes=pack_fp4_to_uint8(values),
        scale=torch.ones(2, 1).to(torch.float8_e4m3fn),
        second=torch.ones(2),
        divides=True,
    )
    assert torch.equal(record.dequantize(), values)


def test_mxfp4() -> None:
    args = QuantizationArgs(num_bits=4, type="float", strategy="group", group_size=32, symmetric=True)
    codes = torch.randint(0, 256, (24, 32), generator=made(0), dtype=torch.uint8)
    scale = torch.randint(100, 140, (24, 2), generator=made(1), dtype=torch.uint8)
    theirs = dequantize(unpack_fp4_from_uint8(codes, 24, 64, torch.float32), decompress_mx_scale(scale).float(), args=args)
    same(Mxfp4Weight(shape=(24, 64), codes=codes, scale=scale), theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [8, 32, -1])
def test_int4(group: int, symmetric: bool, dtype: torch.dtype) -> None:
    strategy = {"strategy": "group", "group_size": group} if group > 0 else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, **strategy)
    width = group if group > 0 else 64
    integers = torch.randint(-8, 8, (24, 64), generator=made(0), dtype=torch.int8)
    scale = torch.rand(24, 64 // width, generator=made(1)).to(dtype)
    zero = None if symmetric else torch.randint(-8, 8, scale.shape, generator=made(2), dtype=torch.int8)
    theirs = dequantize(integers, scale.float(), zero, args)
    record = Int4Weight(
        shape=(24, 64),
        codes=pack_to_int32(integers, 4).view(torch.uint8),
        scale=scale,
        zero=None if zero is None else (zero + 8).to(torch.uint8),
        width=width,
    )
    same(record, theirs)


def test_int4_with_a_short_last_group() -> None:
    codes = torch.randint(0, 256, (8, 35), generator=made(0), dtype=torch.uint8)
    scale, zero = torch.rand(8, 3, generator=made(1)), torch.randint(0, 17, (8, 3), generator=made(2), dtype=torch.uint8)
    code = torch.stack((codes & 15, codes >> 4), -1).view(8, 70).float()
    wide = [t.float().repeat_interleave(32, 1)[:, :70] for t in (scale, zero)]
    same(Int4Weight(shape=(8, 70), codes=codes, scale=scale, zero=zero, width=32), (code - wide[1]) * wide[0])


@pytest.mark.parametrize("asymmetric", [False, True])
def test_int4_in_act_order(asymmetric: bool) -> None:
    """Two linears on top of each other, each with an order of its own."""
    codes = torch.randint(0, 256, (8, 32), generator=made(0), dtype=torch.uint8)
    scale, zero = torch.rand(8, 4, generator=made(1)), torch.randint(0, 16, (8, 4), generator=made(2), dtype=torch.uint8)
    order = torch.stack([torch.arange(64) // 16, torch.randperm(64, generator=made(3)) // 16]).int()
    code = torch.stack((codes & 15, codes >> 4), -1).view(8, 64).float()
    expected = torch.empty(8, 64)
    for row in range(8):
        for column in range(64):
            group = order[row // 4, column]
            expected[row, column] = (code[row, column] - (zero[row, group] if asymmetric else 8)) * scale[row, group]
    record = Int4Weight(shape=(8, 64), codes=codes, scale=scale, zero=zero if asymmetric else None, order=order, width=16)
    same(record, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_in_other_dtypes(dtype: torch.dtype) -> None:
    """448 as a code is too large for sums in float16: products must not overflow before the scale."""
    codes = torch.full((8, 640), 448.0).to(torch.float8_e4m3fn)
    record = Fp8Weight(shape=(8, 640), codes=codes, scale=torch.full((8, 1), 1e-3), width=640)
    out = record.apply(torch.ones(3, 640, dtype=dtype))
    assert out.dtype == dtype and torch.allclose(out.float(), torch.full((3, 8), 286.72), rtol=1e-2)
    assert torch.isfinite(record.product(torch.ones(3, 640, dtype=dtype), 0, 8)).all()
