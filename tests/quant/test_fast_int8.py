import pytest
import torch

from diffusiongemma.kernels import canvas_head
from diffusiongemma.quant import fast_int8


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def distance(result: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((result - wanted).norm() / wanted.norm())


def test_a_matrix_is_rounded_row_by_row() -> None:
    weight = weights(96, 80) * torch.logspace(-3, 3, 96)[:, None]
    record = fast_int8(weight)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((record.dequantize() - weight).abs() <= 0.5001 * step).all()
    assert record.nbytes == 96 * 80 + 4 * 96 and record.shape == (96, 80)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_product_is_near_the_exact_one(dtype: torch.dtype) -> None:
    weight, x = weights(96, 256), weights(40, 256, seed=1)
    result = fast_int8(weight).apply(x.to(dtype))
    assert result.dtype == dtype
    assert distance(result.float(), x @ weight.T) < 0.03


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    record, x = fast_int8(weights(64, 128)), weights(33, 128, seed=1)
    x[5] *= 1000
    whole = record.apply(x)
    assert torch.equal(record.apply(x[:5]), whole[:5]) and torch.equal(record.apply(x[6:]), whole[6:])


def test_experts_are_matrices_of_their_own() -> None:
    stack = fast_int8(weights(3, 16, 32))
    assert torch.equal(stack.expert(1).dequantize(), fast_int8(weights(3, 16, 32)[1]).dequantize())
    assert stack.nbytes == 3 * (16 * 32 + 4 * 16)


def test_the_head_in_int8_is_near_the_exact_one() -> None:
    table, hidden = weights(3000, 64), weights(2, 16, 64, seed=1)
    table[1234] = 0
    given = (30.0, torch.tensor([0.6, 0.8]), torch.arange(32).view(2, 16), torch.zeros(2, 16, dtype=torch.int64))
    exact = canvas_head(hidden, table, *given, soft={None: None})
    fast = canvas_head(hidden, fast_int8(table, table=True), *given, soft={None: None})
    assert (exact.entropy_BL - fast.entropy_BL).abs().max() < 0.2
    assert fast.soft_BLD is not None and exact.soft_BLD is not None
    assert distance(fast.soft_BLD, exact.soft_BLD) < 0.1
    assert (exact[0] == fast[0]).float().mean() > 0.8


def test_rows_of_a_table_are_looked_up() -> None:
    table = weights(50, 16)
    record = fast_int8(table, table=True)
    ids = torch.tensor([[3, 49], [0, 3]])
    assert torch.equal(record.take(ids), record.dequantize()[ids])
