"""The library's norm against the plain one."""

import pytest
import torch

from diffusiongemma import kernels
from diffusiongemma.kernels import reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_the_plain_norm(dtype: torch.dtype, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in [(1, 64, 160), (3, 7, 5, 32), (11,)]:
        x = (10 * torch.randn(shape, generator=generator)).to(dtype)
        weight = torch.rand(shape[-1], generator=generator).to(dtype) if weighted else None
        ours, plain = kernels.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6)
        assert ours.dtype == dtype
        rounding = {torch.bfloat16: 1e-2, torch.float16: 1e-3}.get(dtype, 1e-6)
        assert torch.allclose(ours, plain, rtol=rounding, atol=0)


def test_a_weight_of_another_dtype_is_no_obstacle() -> None:
    x, weight = torch.randn(4, 8).bfloat16(), torch.rand(8)
    assert torch.equal(kernels.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))
