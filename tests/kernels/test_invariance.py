"""One policy says how sequences are filled up, and where it holds."""

import pytest
import torch

from diffusiongemma.kernels import AS_THEY_COME, BATCH_INVARIANT
from tests.tiny import tiny_transformer


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 40])
def test_a_sequence_is_filled_up_with_its_last_entry(tokens: int) -> None:
    x = torch.arange(2 * tokens * 3).view(2, tokens, 3)
    filled = BATCH_INVARIANT.fill(x, 1)
    assert filled.shape[1] % 16 == 0 and filled.shape[1] - tokens < 16
    assert torch.equal(filled[:, :tokens], x) and (filled[:, tokens:] == x[:, -1:]).all()
    assert AS_THEY_COME.fill(x, 1) is x


def test_it_holds_in_float32_on_a_cpu_unless_it_is_turned_off() -> None:
    model = tiny_transformer()
    assert model.invariance is BATCH_INVARIANT
    model.compute_dtype = torch.bfloat16
    assert model.invariance is AS_THEY_COME
    model.compute_dtype, model.batch_invariant = None, False
    assert model.invariance is AS_THEY_COME
