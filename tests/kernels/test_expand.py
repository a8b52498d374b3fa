import pytest
import torch
from torch import Tensor

from diffusiongemma.kernels import expand
from diffusiongemma.kernels.expand import Value, can_expand, expand_pairs

pytest.importorskip("numba", reason="the extra 'cpu' is not installed")

TABLES: dict[Value, Tensor] = {
    "fp4": torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]),
    "integer": torch.arange(16.0),
}
SHAPES = [(1, 32, 32), (64, 64, 16), (7, 704, 16), (13, 2816, 128), (5, 256, 64), (33, 96, 96), (3, 36, 12)]


def inputs(rows: int, columns: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales (a row of them 0), zero points."""
    draw = torch.Generator().manual_seed(rows + columns)
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, generator=draw)
    factor = torch.randn(rows, columns // width, generator=draw)
    factor[rows // 2] = 0
    return codes, factor, torch.randint(0, 17, factor.shape, generator=draw).float()


def check(statistics: tuple[Tensor, Tensor], value: Tensor, factor: Tensor, zero: Tensor, table: Tensor) -> None:
    """What was found is the nearest code of each value, by scales that the largest possible value gives."""
    codes, scale = statistics
    width = value.shape[1] // factor.shape[1]
    largest = torch.maximum((table.max() - zero).abs(), (table.min() - zero).abs()) * factor.abs()
    wanted = largest.amax(1) / 127
    assert torch.allclose(scale, torch.where(wanted > 0, wanted, 1.0), rtol=1e-6)
    exact = (value - zero.repeat_interleave(width, 1)).double() * factor.repeat_interleave(width, 1).double()
    assert codes.dtype == torch.int8 and codes.abs().max() <= 127
    # A value between two codes may go to either, as float32 has it.
    assert ((codes.double() * scale.double()[:, None] - exact).abs() <= (0.5 + 1e-4) * scale.double()[:, None]).all()


def values(codes: Tensor, table: Tensor) -> Tensor:
    return torch.stack((table[(codes & 15).long()], table[(codes >> 4).long()]), dim=-1).flatten(1)


@pytest.mark.parametrize("value", TABLES)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_those_of_the_definition(shape: tuple[int, int, int], zeros: bool, value: Value) -> None:
    codes, factor, zero = inputs(*shape)
    assert can_expand()
    statistics = expand_pairs(codes, factor, None, zero if zeros else None, value)
    check(statistics, values(codes, TABLES[value]), factor, zero if zeros else torch.zeros_like(zero), TABLES[value])


def test_scales_may_be_codes() -> None:
    codes, factor, zero = inputs(40, 704, 16)
    decode = torch.arange(256).float() ** 2
    scale = torch.randint(0, 256, factor.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    statistics = expand_pairs(codes, scale, decode, None, "fp4")
    check(statistics, values(codes, TABLES["fp4"]), decode[scale.long()], torch.zeros_like(zero), TABLES["fp4"])


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_rows_are_shared_among_threads(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    codes, factor, _ = inputs(7, 64, 16)
    whole = expand_pairs(codes, factor, None, None, "fp4")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    statistics = expand_pairs(codes, factor, None, None, "fp4")
    assert torch.equal(statistics[0], whole[0]) and torch.equal(statistics[1], whole[1])


def test_no_rows() -> None:
    codes, scale = expand_pairs(torch.empty(0, 16, dtype=torch.uint8), torch.empty(0, 2), None, None, "integer")
    assert codes.shape == (0, 32) and scale.shape == (0,)


def test_without_numba_there_is_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expand, "_compile", lambda: None)
    assert not can_expand()
