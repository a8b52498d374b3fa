import pytest
import torch

from diffusiongemma.kernels import int8
from diffusiongemma.kernels.int8 import int8_backend, int8_product, prepare_int8, quantize_rows

BACKENDS = ["onednn", "int_mm", "float"]


def random_codes(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def test_rows_are_rounded_by_their_own_largest_value() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e-30, -1e-30, 0.0], [254.0, 1.0, 0.9]])
    codes, scale = quantize_rows(x)
    assert codes.tolist() == [[64, -127, 32], [0, 0, 0], [127, -127, 0], [127, 0, 0]]
    assert scale.shape == (4, 1) and scale[1] == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 3, 5), (7, 64, 33), (33, 96, 704), (256, 17, 2816)])
def test_a_product_is_that_of_the_rounded_rows(backend: str, shape: tuple[int, int, int]) -> None:
    tokens, outputs, inputs = shape
    codes = random_codes(outputs, inputs)
    scale = torch.rand(outputs) + 0.1
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(1))
    rows, row_scale = quantize_rows(x, int8._BACKENDS[backend].largest())
    exact = (rows.double() @ codes.double().T) * scale.double() * row_scale.double()
    statistics = int8_product(x, prepare_int8(codes, scale, backend))
    assert statistics.dtype == torch.float32
    assert torch.allclose(statistics.double(), exact, rtol=2e-6, atol=2e-6 * exact.abs().max().item())


@pytest.mark.parametrize("backend", ["onednn", "int_mm"])
def test_extreme_codes_do_not_saturate(backend: str) -> None:
    codes = torch.full((32, 4096), -127, dtype=torch.int8)
    x = torch.full((16, 4096), 3.0)
    statistics = int8_product(x, prepare_int8(codes, torch.ones(32), backend))
    assert torch.allclose(statistics, torch.tensor(-127.0 * 3 * 4096), rtol=1e-6)


@pytest.mark.parametrize("backend", ["onednn", "int_mm"])
def test_a_row_has_the_same_bits_in_any_company(backend: str) -> None:
    prepared = prepare_int8(random_codes(96, 200), torch.rand(96) + 0.1, backend)
    x = torch.randn(64, 200)
    whole = int8_product(x, prepared)
    for rows in (slice(0, 1), slice(5, 8), slice(3, 40)):
        assert torch.equal(int8_product(x[rows], prepared), whole[rows])


@pytest.mark.parametrize("backend", BACKENDS)
def test_codes_come_back(backend: str) -> None:
    codes = random_codes(24, 40)
    assert torch.equal(prepare_int8(codes, torch.ones(24), backend).codes(), codes)


def test_the_backend_is_one_that_runs() -> None:
    assert int8_backend() in BACKENDS
