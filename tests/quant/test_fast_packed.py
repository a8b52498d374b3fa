"""4-bit weights that stay packed and are multiplied in int8."""

import pytest
import torch
from torch import Tensor

from diffusiongemma.kernels import expand
from diffusiongemma.quant import Int4Weight, Mxfp4Weight, Nvfp4Weight, PackedWeight, PlainWeight, Routing, Weight, fast_int8
from diffusiongemma.quant.fast_int8 import FastPacked
from diffusiongemma.quant.gguf import GGUFWeight, JoinedRows
from diffusiongemma.quant.gguf_blocks import BLOCK_TYPES
from tests.quant.records import packed, values

KINDS = ["nvfp4", "nvfp4 divided", "mxfp4", "int4", "int4 with zero points", "int4 in order", "int4 narrow"]
BLOCKS = ["Q4_0", "Q5_0", "Q4_K", "Q5_K", "Q4_1", "IQ4_NL"]


def record(kind: str, *shape: int) -> PackedWeight:
    draw = torch.Generator().manual_seed(len(kind))
    *stack, rows, columns = shape
    codes = torch.randint(0, 256, (*stack, rows, columns // 2), dtype=torch.uint8, generator=draw)

    def scales(width: int) -> Tensor:
        return 0.5 + torch.rand(*stack, rows, columns // width, generator=draw)

    if kind.startswith("nvfp4"):
        second = 0.01 + torch.rand(*stack, rows, generator=draw)
        scale = scales(16).to(torch.float8_e4m3fn)
        return Nvfp4Weight(shape=shape, codes=codes, scale=scale, second=second, divides="divided" in kind)
    if kind == "mxfp4":
        scale = torch.randint(120, 130, (*stack, rows, columns // 32), dtype=torch.uint8, generator=draw)
        return Mxfp4Weight(shape=shape, codes=codes, scale=scale)
    width = 16 if "narrow" in kind else 32
    zero = torch.randint(0, 17, (*stack, rows, columns // width), dtype=torch.uint8, generator=draw) if "zero" in kind else None
    order = torch.arange(columns, dtype=torch.int32).flip(0).div(width, rounding_mode="floor").int() if "order" in kind else None
    if order is not None:
        order = order.expand(*stack, 1, columns)
    return Int4Weight(shape=shape, codes=codes, scale=scales(width).half(), width=width, zero=zero, order=order)


def gguf_record(name: str, *shape: int) -> GGUFWeight:
    """Random blocks whose scales are small numbers of either sign."""
    kind = next(kind for kind in BLOCK_TYPES.values() if kind.name == name)
    draw = torch.Generator().manual_seed(len(name))
    blocks = torch.randint(0, 256, (*shape[:-1], shape[-1] // kind.weights, kind.nbytes), dtype=torch.uint8, generator=draw)
    for at in kind.halves:
        half = torch.randn(blocks.shape[:-1], generator=draw).half()
        blocks[..., at : at + 2] = half.unsqueeze(-1).view(torch.uint8)
    return GGUFWeight(shape=shape, blocks=blocks, block=kind)


def distance(result: Tensor, wanted: Tensor) -> float:
    return float((result - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_int8_rows_are_the_nearest_codes(monkeypatch: pytest.MonkeyPatch, kind: str, compiled: bool) -> None:
    if not compiled:
        monkeypatch.setattr(expand, "_compile", lambda: None)
    weight = record(kind, 48, 128)
    codes, scale = weight.int8_rows()
    assert codes.shape == (48, 128) and scale.shape == (48, 1) and codes.dtype == torch.int8
    assert ((codes.float() * scale - weight.dequantize()).abs() <= 0.501 * scale).all()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_int8_rows_of_gguf_blocks(monkeypatch: pytest.MonkeyPatch, name: str, compiled: bool) -> None:
    if not compiled:
        monkeypatch.setattr(expand, "_compile", lambda: None)
    weight = gguf_record(name, 40, 512)
    codes, scale = weight.int8_rows()
    assert ((codes.float() * scale - weight.dequantize()).abs() <= 0.501 * scale).all()
    assert (scale[:, 0] <= 2.1 * weight.dequantize().abs().amax(1) / 127).all()


def test_joined_rows_are_those_of_the_parts() -> None:
    first, second = gguf_record("Q4_K", 8, 256), gguf_record("Q5_0", 8, 256)
    codes, scale = JoinedRows(shape=(16, 256), first=first, second=second).int8_rows()
    assert torch.equal(codes[:8], first.int8_rows().codes) and torch.equal(scale[8:], second.int8_rows().scale)


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_near_the_exact_one_and_no_copy_is_kept(kind: str) -> None:
    weight = record(kind, 48, 128)
    fast = fast_int8(weight)
    assert isinstance(fast, FastPacked) and fast.nbytes == weight.nbytes and not fast.exact
    assert torch.equal(fast.dequantize(), weight.dequantize())
    x = torch.randn(20, 128, generator=torch.Generator().manual_seed(1))
    assert distance(fast.apply(x), x @ weight.dequantize().T) < 0.03


def test_eight_bits_are_converted() -> None:
    """Nothing is saved by expanding them again and again."""
    assert not isinstance(fast_int8(packed(torch.randn(8, 32))), FastPacked)


@pytest.mark.parametrize("kind", ["nvfp4", "int4"])
def test_experts_of_a_stack(kind: str) -> None:
    """Near the exact ones, and a token's bits do not depend on who else is there."""
    draw = torch.Generator().manual_seed(3)
    gate_up, down = record(kind, 6, 64, 96), record(kind, 6, 96, 32)
    x = torch.randn(30, 96, generator=draw)
    index = torch.stack([torch.randperm(6, generator=draw)[:2] for _ in range(30)])
    weight = torch.rand(30, 2, generator=draw)

    def experts(first: Weight, second: Weight, rows: slice = slice(0, 30)) -> Tensor:
        return first.apply_experts(x[rows], Routing(index[rows], weight[rows]), second, torch.nn.functional.silu)

    fast = experts(fast_int8(gate_up), fast_int8(down))
    assert distance(fast, experts(PlainWeight(values(gate_up)), PlainWeight(values(down)))) < 0.04
    for rows in (slice(0, 1), slice(5, 19)):
        alone = experts(fast_int8(gate_up), fast_int8(down), rows)
        assert torch.equal(alone, fast[rows])
