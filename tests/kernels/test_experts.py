"""Both forms of the experts against a loop over tokens, and the choice between them."""

import pytest
import torch
from torch.nn import functional as F

from diffusiongemma.kernels import experts, experts_choice
from diffusiongemma.kernels.dispatch import DENSE_LIMIT
from diffusiongemma.kernels.reference import experts_dense, experts_grouped

SIZES = [(1, 1, 1), (7, 4, 2), (9, 8, 3), (5, 16, 1), (3, 4, 4)]


def example(tokens: int, number: int, chosen: int) -> tuple[torch.Tensor, ...]:
    """Tokens, distinct experts for each, weights, and the experts' matrices, in float64."""
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 6, dtype=torch.float64, generator=generator)
    index = torch.stack([torch.randperm(number, generator=generator)[:chosen] for _ in range(tokens)])
    weight = torch.rand(tokens, chosen, dtype=torch.float64, generator=generator)
    gate_up = torch.randn(number, 10, 6, dtype=torch.float64, generator=generator)
    down = torch.randn(number, 6, 5, dtype=torch.float64, generator=generator)
    return x, index, weight, gate_up, down


@pytest.mark.parametrize("run", [experts_dense, experts_grouped, experts])
@pytest.mark.parametrize(("tokens", "number", "chosen"), SIZES)
def test_each_form_is_the_loop(run, tokens: int, number: int, chosen: int) -> None:
    x, index, weight, gate_up, down = example(tokens, number, chosen)
    expected = torch.zeros_like(x)
    for t in range(tokens):
        for slot in range(chosen):
            expert = int(index[t, slot])
            gate, up = (gate_up[expert] @ x[t]).split(5)
            expected[t] += weight[t, slot] * (down[expert] @ (F.silu(gate) * up))
    assert torch.allclose(run(x, index, weight, gate_up, down, F.silu), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("run", [experts_dense, experts_grouped])
def test_each_form_has_the_loops_gradient(run) -> None:
    x, index, weight, gate_up, down = example(7, 4, 2)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, gate_up, down)]
    assert torch.autograd.gradcheck(lambda a, w, g, d: run(a, index, w, g, d, F.silu), leaves)


def test_the_choice_goes_by_size_and_says_why() -> None:
    assert experts_choice(4, 2, 100).name == "dense"
    assert experts_choice(16, 2, 100).name == "grouped"
    assert experts_choice(4, 2, DENSE_LIMIT + 1).name == "grouped"
    assert "16 experts" in experts_choice(16, 2, 100).reason
