import pytest
import torch
from torch import Tensor

from diffusiongemma.kernels import nibbles
from diffusiongemma.kernels.nibbles import can_expand_nibbles, expand_nibbles

numba = pytest.importorskip("numba", reason="the extra 'cpu' is not installed")

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
SHAPES = [(1, 32, 32), (64, 64, 16), (7, 704, 16), (13, 2816, 128), (5, 256, 64), (33, 96, 96)]


Given = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]


def inputs(rows: int, columns: int, width: int, zeros: bool) -> Given:
    draw = torch.Generator().manual_seed(rows + columns)
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, generator=draw)
    factor = torch.randn(rows, columns // width, generator=draw)
    factor[rows // 2] = 0
    if not zeros:
        return codes, factor, None, None, FP4
    return codes, factor, None, torch.randint(0, 17, factor.shape, generator=draw).float(), torch.arange(16.0)


def plainly(codes: Tensor, scale: Tensor, decode: Tensor | None, zero: Tensor | None, table: Tensor) -> tuple[Tensor, Tensor]:
    """The same from the definition."""
    factor = scale if decode is None else decode[scale.long()]
    value = torch.stack((table[(codes & 15).long()], table[(codes >> 4).long()]), dim=-1).flatten(1)
    width = value.shape[1] // factor.shape[1]
    shift = torch.zeros_like(factor) if zero is None else zero
    largest = torch.maximum((table.max() - shift).abs(), (table.min() - shift).abs()) * factor.abs()
    row_scale = largest.amax(1) / 127
    row_scale[row_scale == 0] = 1
    wide = (factor * row_scale.reciprocal()[:, None]).repeat_interleave(width, 1)
    return ((value - shift.repeat_interleave(width, 1)) * wide).round().to(torch.int8), row_scale


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_those_of_the_definition(shape: tuple[int, int, int], zeros: bool) -> None:
    given = inputs(*shape, zeros)
    assert can_expand_nibbles(*shape[1:])
    codes, scale = expand_nibbles(*given)
    wanted, wanted_scale = plainly(*given)
    assert torch.equal(codes, wanted) and torch.equal(scale, wanted_scale)


def test_scales_may_be_codes() -> None:
    codes, factor, *_ = inputs(40, 704, 16, zeros=False)
    decode = torch.arange(256).float() ** 2
    given = (codes, torch.randint(0, 256, factor.shape, dtype=torch.uint8), decode, None, FP4)
    found, scale = expand_nibbles(*given)
    wanted, wanted_scale = plainly(*given)
    assert torch.equal(found, wanted) and torch.equal(scale, wanted_scale)


@pytest.mark.parametrize("zeros", [False, True])
def test_the_plain_block_gives_the_same(monkeypatch: pytest.MonkeyPatch, zeros: bool) -> None:
    """What processors without AVX-512 run."""
    given = inputs(9, 192, 32, zeros)
    plain = nibbles._loop(numba, nibbles._plain_block(numba))
    monkeypatch.setattr(nibbles, "_compile", lambda: plain)
    codes, scale = expand_nibbles(*given)
    wanted, wanted_scale = plainly(*given)
    assert torch.equal(codes, wanted) and torch.equal(scale, wanted_scale)


def test_rows_are_shared_among_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(7, 64, 16, zeros=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(expand_nibbles(*given)[0], plainly(*given)[0])


@pytest.mark.parametrize(("columns", "width"), [(48, 16), (64, 8), (96, 64), (64, 24)])
def test_other_shapes_are_not_taken(columns: int, width: int) -> None:
    assert not can_expand_nibbles(columns, width)


def test_without_numba_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nibbles, "_compile", lambda: None)
    assert not can_expand_nibbles(64, 16)
